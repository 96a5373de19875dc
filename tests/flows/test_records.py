"""What becomes of a site's records: at registration, and when they are gone."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chi2

from client.data.intake import intake_table
from client.home import SiteHome, create_home
from common import wire_pb2 as pb
from common.errors import DataRefused
from common.privacy.admission import AdmissionFilter
from common.privacy.ledger import BudgetLedger
from tests.flows.federation import (
    CLASSES,
    PASSPHRASE,
    POPULATION,
    Federation,
    make_federation,
    make_plan,
    make_schema,
    make_table,
    unmasked_units,
)

SITE = "east"
POLICY = b"[budget.ward]\nepsilon = 3.0\nepsilon_alone = 6.0\ndelta = 1e-5\n"


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    made = create_home(tmp_path / "site", name=SITE, passphrase=PASSPHRASE)
    made.install_policy(POLICY)
    return made


def register(home: SiteHome, path: Path) -> None:
    with BudgetLedger.open(home.ledger_path, site=SITE, key=home.identity) as ledger:
        intake_table(
            home,
            ledger,
            path=path,
            schema=make_schema(4),
            dataset=POPULATION,
            classes=CLASSES,
            admission=AdmissionFilter.gaussian(),
        )


def nothing_is_registered(home: SiteHome) -> bool:
    return (
        home.ledger_path.read_bytes() == b""
        and not (home.root / "data").exists()
        and not (home.root / "populations.sealed").exists()
        and not (home.root / "deid.json").exists()
    )


def test_an_empty_data_set_is_refused_and_nothing_is_registered(home: SiteHome, tmp_path: Path) -> None:
    make_table(SITE, patients=3).clear().write_csv(tmp_path / "ward.csv")
    with pytest.raises(DataRefused, match="0 records"):
        register(home, tmp_path / "ward.csv")
    assert nothing_is_registered(home)


@pytest.mark.parametrize("value", ["nan", "inf", "", "many"])
def test_a_table_of_nothing_but_unreadable_numbers_is_refused_with_their_count(
    home: SiteHome, tmp_path: Path, value: str
) -> None:
    table = make_table(SITE, patients=3)
    table.with_columns(table.get_column("size 2").cast(str).str.replace(".*", value)).write_csv(tmp_path / "ward.csv")
    with pytest.raises(DataRefused, match="4") as refused:
        register(home, tmp_path / "ward.csv")
    assert refused.value.exit_code == 5
    assert refused.value.hint
    assert nothing_is_registered(home)


def noise_only_answer(federation: Federation) -> pb.Masked:
    """The answer of a site whose records are gone since it joined."""
    with federation.agents() as agents:
        ciphertexts = federation.shake_hands(agents)
    (federation.homes[SITE].root / "data" / f"{POPULATION}.sealed").unlink()
    with federation.open_agent(SITE) as agent:
        reply = agent.handle(federation.round_request(SITE, ciphertexts=ciphertexts))
    answer = federation.opened(SITE, reply)
    assert isinstance(answer, pb.Masked)
    return answer


def test_a_site_without_records_sends_noise_of_the_promised_size(tmp_path: Path) -> None:
    federation = make_federation(tmp_path / "run", sites=3, plan=make_plan(features=64))
    units = unmasked_units(federation, SITE, noise_only_answer(federation), federation.names)
    manifest = federation.manifest
    variance = (manifest.noise_multiplier * manifest.sensitivity) ** 2 / (3 - manifest.colluding)
    total = float(np.square(units.astype(np.float64)).sum()) / variance
    assert min(chi2.cdf(total, units.size), chi2.sf(total, units.size)) > 5e-7


def test_an_answer_of_noise_alone_is_charged_like_any_other(federation: Federation) -> None:
    noise_only_answer(federation)
    assert federation.charged(SITE) == {(1, 1): "settled"}


def test_a_run_goes_on_with_a_site_whose_records_are_gone(federation: Federation) -> None:
    def without_records(handle):
        def answer(data: bytes) -> bytes:
            path = federation.homes[SITE].root / "data" / f"{POPULATION}.sealed"
            if b"round" in data[:80]:
                path.unlink(missing_ok=True)
            return handle(data)

        return answer

    with federation.agents() as agents:
        result = federation.train({**agents, SITE: without_records(agents[SITE])})
    assert (result.rounds, result.left) == (3, {})
