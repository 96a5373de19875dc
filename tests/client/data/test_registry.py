from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from client.data.registry import check_populations, draw_lots, load_dataset, load_parts, register_dataset
from client.home import SiteHome, create_home
from common.errors import DataRefused, LedgerCorrupt, TrustError
from common.privacy.admission import AdmissionFilter
from common.privacy.ledger import BudgetLedger

POLICY = b"".join(
    b"[budget.%s]\nepsilon = %d.0\nepsilon_alone = 9.0\ndelta = 1e-5\n" % (name, epsilon)
    for name, epsilon in ((b"ward", 3), (b"clinic", 5))
)


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    made = create_home(tmp_path / "north", name="north", passphrase=b"a passphrase for tests only")
    made.install_policy(POLICY)
    return made


@pytest.fixture
def ledger(home: SiteHome) -> Iterator[BudgetLedger]:
    with BudgetLedger.open(home.ledger_path, site=home.name, key=home.identity) as opened:
        yield opened


def register(home: SiteHome, ledger: BudgetLedger, dataset: str, ids: Sequence[str], **changes) -> str:
    count = len(ids)
    given = {
        "features": np.arange(2 * count, dtype=np.float32).reshape(count, 2),
        "labels": np.arange(count, dtype=np.int64) % 2,
        "patients": [f"code {name}" for name in ids],
        **changes,
    }
    return register_dataset(
        home, ledger, dataset=dataset, patient_ids=ids, classes=2, admission=AdmissionFilter.gaussian(), **given
    )


def test_a_data_set_opens_a_population_of_its_name_with_the_policys_budget(
    home: SiteHome, ledger: BudgetLedger
) -> None:
    assert register(home, ledger, "ward", ["1", "2"]) == "ward"
    budget = ledger.account("ward").budget
    assert (budget.epsilon, budget.epsilon_alone, budget.delta, budget.unit.value) == (3.0, 9.0, 1e-5, "patient")


def test_records_come_back_grouped_by_patient(home: SiteHome, ledger: BudgetLedger) -> None:
    register(home, ledger, "ward", ["b", "a", "b"])
    batch = load_dataset(home, "ward", classes=2)
    assert batch.patients.tolist() == [0, 1, 1]
    assert batch.features.tolist() == [[2, 3], [0, 1], [4, 5]]
    assert batch.labels.tolist() == [1, 0, 0]


def test_a_data_set_that_shares_a_patient_spends_the_same_budget_whatever_its_name(
    home: SiteHome, ledger: BudgetLedger
) -> None:
    register(home, ledger, "ward", ["1", "2"])
    assert register(home, ledger, "clinic", ["2", "3"]) == "ward"
    assert register(home, ledger, "clinic", ["3"]) == "ward"
    assert ledger.populations == ("ward",)


def test_a_registration_that_broke_off_does_not_give_its_patients_a_second_budget(
    home: SiteHome, ledger: BudgetLedger
) -> None:
    in_the_way = home.root / "data" / "ward.sealed"
    in_the_way.mkdir(parents=True)
    with pytest.raises(OSError):
        register(home, ledger, "ward", ["1", "2"])
    in_the_way.rmdir()
    assert register(home, ledger, "clinic", ["2", "3"]) == "ward"
    assert load_dataset(home, "ward", classes=2).patient_count == 2


@pytest.mark.parametrize("spelling", ["MRN-7", " mrn-7 ", "Mrn-7"])
def test_case_and_blanks_do_not_make_another_patient(home: SiteHome, ledger: BudgetLedger, spelling: str) -> None:
    register(home, ledger, "ward", ["mrn-7"])
    assert register(home, ledger, "clinic", [spelling]) == "ward"


def test_other_patients_have_a_budget_of_their_own(home: SiteHome, ledger: BudgetLedger) -> None:
    register(home, ledger, "ward", ["1"])
    assert register(home, ledger, "clinic", ["2"]) == "clinic"
    assert ledger.account("clinic").budget.epsilon == 5.0


def test_a_data_set_that_joins_two_populations_is_refused(home: SiteHome, ledger: BudgetLedger) -> None:
    register(home, ledger, "ward", ["1"])
    register(home, ledger, "clinic", ["2"])
    with pytest.raises(DataRefused, match="shares patients with 2 populations"):
        register(home, ledger, "both", ["1", "2"])


def test_a_population_without_a_budget_is_refused_with_what_to_write(home: SiteHome, ledger: BudgetLedger) -> None:
    with pytest.raises(DataRefused, match="no budget for population 'icu'") as refused:
        register(home, ledger, "icu", ["1"])
    assert "[budget.icu]" in refused.value.hint
    assert ledger.head.seq == 0


def test_registering_again_replaces_the_records_and_not_the_budget(home: SiteHome, ledger: BudgetLedger) -> None:
    register(home, ledger, "ward", ["1", "2"])
    register(home, ledger, "ward", ["2", "3", "4"])
    assert load_dataset(home, "ward", classes=2).patient_count == 3
    assert ledger.head.seq == 1


def test_an_empty_data_set_is_refused(home: SiteHome, ledger: BudgetLedger) -> None:
    with pytest.raises(DataRefused, match="'ward' has 0 records") as refused:
        register(home, ledger, "ward", [], features=np.empty((0, 2), dtype=np.float32))
    assert refused.value.hint == "register at least one patient"
    assert not (home.root / "data").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused_with_their_count(
    home: SiteHome, ledger: BudgetLedger, value: float
) -> None:
    features = np.array([[1, value], [value, value], [1, 2]], dtype=np.float32)
    with pytest.raises(DataRefused, match="2 of 3 records hold values that are not finite"):
        register(home, ledger, "ward", ["1", "2", "3"], features=features)
    assert ledger.head.seq == 0
    assert not (home.root / "data").exists()


@pytest.mark.parametrize("label", [-1, 2])
def test_labels_that_are_no_class_are_refused(home: SiteHome, ledger: BudgetLedger, label: int) -> None:
    with pytest.raises(DataRefused, match="1 of 2 labels are not one of 2 classes"):
        register(home, ledger, "ward", ["1", "2"], labels=np.array([0, label], dtype=np.int64))
    assert ledger.head.seq == 0


def test_patients_identifiers_are_not_kept(home: SiteHome, ledger: BudgetLedger) -> None:
    register(home, ledger, "ward", ["Octavia-Whitcombe-4410072215"])
    for path in home.root.rglob("*"):
        assert path.is_dir() or b"whitcombe" not in path.read_bytes().lower()
    assert b"whitcombe" not in home.unseal(home.root / "populations.sealed").lower()


def test_records_that_are_gone_are_an_empty_batch(home: SiteHome) -> None:
    assert load_dataset(home, "ward", classes=2).patient_count == 0


def test_records_that_were_changed_do_not_open(home: SiteHome, ledger: BudgetLedger) -> None:
    register(home, ledger, "ward", ["1"])
    path = home.root / "data" / "ward.sealed"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(TrustError):
        load_dataset(home, "ward", classes=2)


def test_a_plan_with_another_number_of_classes_gets_no_records(home: SiteHome, ledger: BudgetLedger) -> None:
    register(home, ledger, "ward", ["1"])
    with pytest.raises(DataRefused, match="2 classes, the plan 3"):
        load_dataset(home, "ward", classes=3)


def test_a_ledger_that_lost_a_population_is_found(home: SiteHome, tmp_path: Path) -> None:
    with BudgetLedger.open(home.ledger_path, site=home.name, key=home.identity) as ledger:
        register(home, ledger, "ward", ["1"])
    with (
        BudgetLedger.open(tmp_path / "fresh.jsonl", site=home.name, key=home.identity) as fresh,
        pytest.raises(LedgerCorrupt, match="1 registered populations are not in this ledger"),
    ):
        check_populations(home, fresh)


PATIENTS = [f"patient {number}" for number in range(400)]


def held_out_patients(home: SiteHome, share: float) -> set[float]:
    """The first feature of every held-out patient, which names the patient here."""
    return set(load_parts(home, "ward", classes=2, held_out=share).held_out.features[:, 0].tolist())


def test_without_a_share_everybody_is_trained_on(home: SiteHome, ledger: BudgetLedger) -> None:
    register(home, ledger, "ward", PATIENTS)
    parts = load_parts(home, "ward", classes=2, held_out=None)
    assert (parts.training.patient_count, parts.held_out.patient_count) == (400, 0)


def test_every_patient_is_trained_on_or_evaluated_and_never_both(home: SiteHome, ledger: BudgetLedger) -> None:
    register(home, ledger, "ward", PATIENTS)
    parts = load_parts(home, "ward", classes=2, held_out=0.3)
    training = set(parts.training.features[:, 0].tolist())
    held_out = set(parts.held_out.features[:, 0].tolist())
    assert training.isdisjoint(held_out)
    assert len(training) + len(held_out) == 400
    assert 65 <= len(held_out) <= 175  # 120, give or take six standard deviations


def test_all_records_of_a_patient_fall_into_one_part(home: SiteHome, ledger: BudgetLedger) -> None:
    register(home, ledger, "ward", PATIENTS * 2)
    parts = load_parts(home, "ward", classes=2, held_out=0.3)
    for batch in (parts.training, parts.held_out):
        assert len(batch.labels) == 2 * batch.patient_count
        assert sorted((batch.features[:, 0] % 800).tolist()[::2]) == sorted((batch.features[:, 0] % 800).tolist()[1::2])


def test_a_larger_share_holds_out_the_same_patients_and_more(home: SiteHome, ledger: BudgetLedger) -> None:
    register(home, ledger, "ward", PATIENTS)
    assert held_out_patients(home, 0.1) < held_out_patients(home, 0.3)


def test_registered_again_in_another_order_the_same_patients_are_held_out(home: SiteHome, ledger: BudgetLedger) -> None:
    register(home, ledger, "ward", PATIENTS)
    before = {PATIENTS[int(first) // 2] for first in held_out_patients(home, 0.3)}
    register(home, ledger, "ward", PATIENTS[::-1])
    assert {PATIENTS[::-1][int(first) // 2] for first in held_out_patients(home, 0.3)} == before


def test_another_spelling_of_an_identifier_draws_the_same_lot(home: SiteHome) -> None:
    assert len(set(draw_lots(home, ["MRN-7", " mrn-7 ", "Mrn-7"]).tolist())) == 1


def test_lots_follow_from_the_sites_own_secret(home: SiteHome, tmp_path: Path) -> None:
    other = create_home(tmp_path / "south", name="south", passphrase=b"a passphrase for tests only")
    assert draw_lots(home, ["1"]).tolist() != draw_lots(other, ["1"]).tolist()


def test_pseudonyms_differ_and_one_identifier_is_in_one_part(home: SiteHome, ledger: BudgetLedger) -> None:
    """Two codes of one patient, as from two spellings, get one lot."""
    ids = [name for name in PATIENTS for _ in range(2)]
    register(home, ledger, "ward", ids, patients=[f"code {n}" for n in range(800)], record_ids=ids)
    parts = load_parts(home, "ward", classes=2, held_out=0.3)
    own = {int(value) // 4 for value in parts.held_out.features[:, 0]}
    assert len(parts.held_out.labels) == 2 * len(own)


def test_data_from_before_lots_were_drawn_trains_and_is_not_evaluated(home: SiteHome, ledger: BudgetLedger) -> None:
    register(home, ledger, "ward", PATIENTS)
    path = home.root / "data" / "ward.sealed"
    arrays = load(home.unseal(path))
    del arrays["lots"]
    home.seal(path, save(arrays))
    assert load_parts(home, "ward", classes=2, held_out=None).training.patient_count == 400
    with pytest.raises(DataRefused, match="registered before patients were drawn") as refused:
        load_parts(home, "ward", classes=2, held_out=0.3)
    assert refused.value.hint == "register them again"
