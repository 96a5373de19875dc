"""Registering data as an administrator does: real homes, real ledgers, invented patients."""

import hashlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import squeezenet1_1

from client.data.catalogue import read_catalogue
from client.data.images import read_images
from client.data.registry import load_dataset
from client.datasets import Added, add_dataset
from client.datasets_text import added_text, catalogue_text, populations_in_words
from client.features import extract, load_backbone
from client.home import SiteHome, create_home
from client.site_view import SiteView
from common.errors import ConfigurationError, DataRefused, TrustError
from common.privacy.admission import FilterKind
from common.privacy.ledger import BudgetLedger

PASSPHRASE = b"a passphrase for tests only"
BUDGETS = "".join(
    f"[budget.{name}]\nepsilon = 3.0\nepsilon_alone = 6.0\ndelta = 1e-5\n" for name in ("ward", "clinic", "third")
)
SCHEMA = """
version = 1
deid.mode = "safe_harbor"
deid.columns.mrn = { action = "pseudonymise", kind = "id", role = "patient" }
deid.columns.name = { action = "drop" }
deid.columns.diagnosis = { action = "keep", type = "category", values = ["healthy", "ill"], role = "label" }
deid.families.sizes = { columns = ["a", "b"], action = "keep", type = "number", role = "feature" }
"""


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    made = create_home(tmp_path / "home", name="north", passphrase=PASSPHRASE)
    made.install_policy(BUDGETS.encode())
    return made


def table(place: Path, *, patients: range = range(12), odd: int = 0, name: str = "table.csv") -> Path:
    """Two records a patient; the first `odd` records have a diagnosis that no schema names."""
    rows = [patient for patient in patients for _ in range(2)]
    frame = pl.DataFrame(
        {
            "mrn": [f"MRN-{row:04d}" for row in rows],
            "name": [f"Octavia Whitcombe the {row}th" for row in rows],
            "diagnosis": ["odd" if number < odd else ("ill", "healthy")[row % 2] for number, row in enumerate(rows)],
            "a": np.linspace(-1, 1, len(rows)),
            "b": np.linspace(2, 3, len(rows)),
            "insurance": ["never declared"] * len(rows),
        }
    )
    frame.write_csv(place / name)
    return place / name


def add(home: SiteHome, source: Path, name: str = "ward", *, schema: str = SCHEMA, **options: object) -> Added:
    path = source.parent / "schema.toml"
    path.write_text(schema)
    return add_dataset(home, source=source, schema_path=path, name=name, **options)  # type: ignore[arg-type]


def charged(home: SiteHome) -> bytes:
    return home.ledger_path.read_bytes() if home.ledger_path.exists() else b""


def test_a_table_is_registered_and_what_became_of_its_records_adds_up(home: SiteHome, tmp_path: Path) -> None:
    added = add(home, table(tmp_path, odd=3))
    report = added.report
    assert (report.records_in, report.released, report.quarantined, report.rejected) == (24, 21, 3, 0)
    assert (added.dataset.records, added.dataset.patients, added.dataset.inputs) == (21, 11, (2,))
    assert report.undeclared_columns == 1
    assert load_dataset(home, "ward", classes=2).patient_count == 11
    text = added_text(added)
    assert "24 records came in" in text and "sum          24" in text and "undeclared_value: 3" in text


def test_no_name_of_a_patient_stands_in_what_is_shown_or_left_behind(home: SiteHome, tmp_path: Path) -> None:
    added = add(home, table(tmp_path))
    left = b"".join(path.read_bytes() for path in home.root.rglob("*") if path.is_file())
    shown = added_text(added) + catalogue_text(read_catalogue(home), {}) + str(added.to_json())
    for said in (left, shown.encode()):
        assert b"Whitcombe" not in said and b"MRN-" not in said


def test_a_new_population_is_opened_with_the_policys_budget(home: SiteHome, tmp_path: Path) -> None:
    added = add(home, table(tmp_path))
    account = SiteView.open(home.root).accounts()["ward"]
    assert (account.budget.epsilon, account.budget.epsilon_alone, account.budget.delta) == (3.0, 6.0, 1e-5)
    assert account.terms.admission.kind is FilterKind.GAUSSIAN
    assert added.opened and not added.joined


def test_a_population_for_sampled_plans_is_opened_on_request(home: SiteHome, tmp_path: Path) -> None:
    add(home, table(tmp_path), sampled=True)
    assert SiteView.open(home.root).accounts()["ward"].terms.admission.kind is FilterKind.RDP


def test_without_a_budget_nothing_is_registered_and_the_missing_lines_are_said(home: SiteHome, tmp_path: Path) -> None:
    with pytest.raises(DataRefused, match="grants population 'fourth' no budget") as error:
        add(home, table(tmp_path), name="fourth")
    assert "[budget.fourth]\nepsilon = 3.0" in error.value.hint
    home.install_policy((BUDGETS + error.value.hint.split("\n", 1)[1]).encode())
    assert not (home.root / "data").exists()
    add(home, table(tmp_path), name="fourth")


def test_a_policy_that_is_not_signed_lets_no_data_in(home: SiteHome, tmp_path: Path) -> None:
    (home.root / "policy.toml").write_text(BUDGETS.replace("3.0", "30.0"))
    with pytest.raises(TrustError, match="not the one this site signed"):
        add(home, table(tmp_path))
    assert not (home.root / "data").exists()


def test_a_table_that_shares_a_patient_joins_that_population_whatever_its_name(home: SiteHome, tmp_path: Path) -> None:
    add(home, table(tmp_path))
    with pytest.raises(DataRefused, match="has the records of data set 'ward', and 'clinic' would replace them"):
        add(home, table(tmp_path, patients=range(11, 40)), name="clinic")
    added = add(home, table(tmp_path, patients=range(11, 40)), name="clinic", replace=True)
    assert (added.dataset.population, added.joined, added.replaced) == ("ward", True, "ward")
    assert list(SiteView.open(home.root).accounts()) == ["ward"]
    assert list(read_catalogue(home).datasets) == ["clinic"]


def test_a_refused_replacement_leaves_records_and_list_as_they_were(home: SiteHome, tmp_path: Path) -> None:
    add(home, table(tmp_path))
    before = {path: path.read_bytes() for path in home.root.rglob("*") if path.is_file() and path.suffix != ".lock"}
    with pytest.raises(DataRefused):
        add(home, table(tmp_path, patients=range(5)))
    assert {path: path.read_bytes() for path in before} == before


def test_a_table_of_two_populations_patients_belongs_to_neither(home: SiteHome, tmp_path: Path) -> None:
    add(home, table(tmp_path, patients=range(10)))
    add(home, table(tmp_path, patients=range(20, 30)), name="clinic")
    with pytest.raises(DataRefused, match="shares patients with 2 populations"):
        add(home, table(tmp_path, patients=range(5, 25)), name="third")


def test_other_patients_under_a_populations_name_spend_the_same_budget(home: SiteHome, tmp_path: Path) -> None:
    add(home, table(tmp_path))
    before = charged(home)
    added = add(home, table(tmp_path, patients=range(50, 60)), replace=True)
    assert not added.opened and not added.joined
    assert "what was spent of it stand" in added_text(added)
    assert charged(home) == before


def test_while_an_agent_runs_no_data_is_registered(home: SiteHome, tmp_path: Path) -> None:
    with (
        BudgetLedger.open(home.ledger_path, site=home.name, key=home.identity),
        pytest.raises(ConfigurationError, match="in use by another process") as error,
    ):
        add(home, table(tmp_path))
    assert "stop it" in error.value.hint


def test_classes_stand_in_the_order_that_was_given(home: SiteHome, tmp_path: Path) -> None:
    added = add(home, table(tmp_path), classes=["ill", "healthy"])
    assert added.dataset.classes == ("ill", "healthy")
    labels = load_dataset(home, "ward", classes=2).labels
    assert set(labels.tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("classes", "said"),
    [(["ill"], "at least two"), (["ill", "ill"], "each once"), (["ill", "other"], "lacks 1 of the 2 values")],
)
def test_classes_that_do_not_cover_the_labels_are_refused(
    home: SiteHome, tmp_path: Path, classes: list[str], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        add(home, table(tmp_path), classes=classes)


@pytest.mark.parametrize("name", ["Ward", "a/b", "", "x" * 64])
def test_a_name_that_could_be_a_path_is_refused(home: SiteHome, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="--name: name: "):
        add(home, table(tmp_path), name=name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('"patient"', '"patientt"'), "schema.toml: deid.columns.mrn.role"),
        (('"a", "b"', '"a", "c"'), "the table has no column 'c'"),
        (('type = "number", role', 'type = "numbr", role'), "type"),
    ],
)
def test_a_schema_that_does_not_fit_says_where(
    home: SiteHome, tmp_path: Path, change: tuple[str, str], said: str
) -> None:
    with pytest.raises((ConfigurationError, DataRefused), match=said):
        add(home, table(tmp_path), schema=SCHEMA.replace(*change))
    assert charged(home) == b""


def test_what_is_registered_is_listed_with_what_is_left_of_its_budget(home: SiteHome, tmp_path: Path) -> None:
    add(home, table(tmp_path, odd=2))
    words = populations_in_words(SiteView.open(home.root).accounts())
    text = catalogue_text(read_catalogue(home), words)
    assert "ward: 22 records of 11 patients" in text
    assert "2 quarantined, 0 rejected" in text
    assert "epsilon 3, 6 alone, at delta 1e-05, per patient; 0% of the room used by 0 answers" in text


def test_pictures_and_tables_are_told_apart(home: SiteHome, tmp_path: Path) -> None:
    pictured = SCHEMA.split("deid.families")[0] + 'deid.columns.file = { action = "drop", role = "image" }\n'
    with pytest.raises(ConfigurationError, match="a single table was given"):
        add(home, table(tmp_path), schema=pictured)
    (tmp_path / "pictures").mkdir()
    with pytest.raises(ConfigurationError, match="one column with role 'image' in the schema, not 0"):
        add(home, tmp_path / "pictures")
    with pytest.raises(ConfigurationError, match="pictures need the weights of squeezenet1_1"):
        add(home, tmp_path / "pictures", schema=pictured)


PICTURED = SCHEMA.split("deid.families")[0] + 'deid.columns.file = { action = "drop", role = "image" }\n'


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SqueezeNet's weights as torchvision makes them up."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = squeezenet1_1(weights=None).features.state_dict()
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save_file({f"features.{name}": value for name, value in state.items()}, path)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    directory = tmp_path / "pictures"
    directory.mkdir()
    frame = pl.DataFrame({"mrn": ["a", "b", "c"], "diagnosis": ["ill", "odd", "healthy"], "name": ["x", "y", "z"]})
    frame = frame.with_columns(pl.Series("file", [f"{row}.png" for row in range(3)]))
    for row in range(3):
        Image.fromarray(np.full((40, 30), 80 * row, dtype=np.uint8)).save(directory / f"{row}.png")
    frame.write_csv(directory / "index.csv")
    return directory


def test_pictures_become_features_of_the_weights_that_a_plan_pins(
    home: SiteHome, pictures: Path, weights: Path
) -> None:
    added = add(home, pictures, schema=PICTURED, weights=weights)
    assert (added.dataset.records, added.dataset.quarantined, added.dataset.inputs) == (2, 1, (512,))
    assert added.dataset.weights == "sha256:" + hashlib.sha256(weights.read_bytes()).hexdigest()
    backbone = load_backbone("squeezenet1_1", weights, expected=added.dataset.weights)
    expected = extract(backbone, read_images(pictures, ["0.png", "2.png"]))
    found = load_dataset(home, "ward", classes=2)
    by_label = dict(zip(found.labels.tolist(), found.features, strict=True))
    assert np.allclose(by_label[1], expected[0], atol=1e-5) and np.allclose(by_label[0], expected[1], atol=1e-5)


def test_a_picture_outside_the_directory_is_not_read(home: SiteHome, pictures: Path, weights: Path) -> None:
    (pictures / "0.png").rename(pictures.parent / "elsewhere.png")
    (pictures / "0.png").symlink_to(pictures.parent / "elsewhere.png")
    with pytest.raises(DataRefused, match=r"picture [12] of 2 lies outside the data directory"):
        add(home, pictures, schema=PICTURED, weights=weights)
    assert charged(home) == b""
