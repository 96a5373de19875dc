import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from client.data.intake import FeatureMaker, intake_table
from client.data.registry import load_dataset
from client.deid.report import DeidReport
from client.home import SiteHome, create_home
from common.errors import DataRefused
from common.privacy.admission import AdmissionFilter
from common.privacy.ledger import BudgetLedger
from simulations.identities import IDENTIFIER_KINDS, identifiers_of
from simulations.residual import ResidualScan
from tests.flows.federation import CLASSES, POPULATION, make_schema, make_table

PATIENTS = 9


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    made = create_home(tmp_path / "east", name="east", passphrase=b"a passphrase for tests only")
    made.install_policy(b"[budget.ward]\nepsilon = 3.0\nepsilon_alone = 6.0\ndelta = 1e-5\n")
    return made


@pytest.fixture
def table() -> pl.DataFrame:
    """Nine patients, three of them with a second record."""
    return make_table("east", patients=PATIENTS)


def intake(
    home: SiteHome, table: pl.DataFrame, *, classes: tuple[str, ...] = CLASSES, features: FeatureMaker | None = None
) -> DeidReport:
    path = home.root.with_name("ward.csv")
    table.write_csv(path)
    with BudgetLedger.open(home.ledger_path, site=home.name, key=home.identity) as ledger:
        return intake_table(
            home,
            ledger,
            path=path,
            schema=make_schema(4),
            dataset=POPULATION,
            classes=classes,
            admission=AdmissionFilter.gaussian(),
            features=features,
        )


def test_a_table_becomes_whole_patients(home: SiteHome, table: pl.DataFrame) -> None:
    report = intake(home, table)
    batch = load_dataset(home, POPULATION, classes=2)
    assert (report.records_in, report.released) == (12, 12)
    assert (batch.patient_count, len(batch.labels)) == (PATIENTS, 12)


def test_labels_are_places_in_the_plans_list_of_classes(home: SiteHome, table: pl.DataFrame) -> None:
    intake(home, table)
    ill = table.get_column("diagnosis").eq(CLASSES[1]).sum()
    assert load_dataset(home, POPULATION, classes=2).labels.sum() == ill


def test_the_numbers_of_a_record_are_registered_as_they_stand(home: SiteHome, table: pl.DataFrame) -> None:
    intake(home, table)
    expected = np.sort(table.select(f"size {n}" for n in range(4)).to_numpy().astype(np.float32), axis=0)
    found = np.sort(load_dataset(home, POPULATION, classes=2).features, axis=0)
    np.testing.assert_array_equal(found, expected)


def test_what_was_done_stands_in_a_report_of_counts_and_digests(home: SiteHome, table: pl.DataFrame) -> None:
    report = intake(home, table)
    assert json.loads((home.root / "deid.json").read_bytes()) == json.loads(json.dumps(report.to_json()))
    assert report.undeclared_columns == 1


def test_nothing_that_the_site_keeps_names_a_patient(home: SiteHome, table: pl.DataFrame) -> None:
    intake(home, table)
    people = [identifiers_of(row) for row in table.unique("mrn").iter_rows(named=True)]
    assert ResidualScan(people, kinds=IDENTIFIER_KINDS).scan_tree(home.root).hits == ()


def test_the_sites_own_table_is_only_read(home: SiteHome, table: pl.DataFrame) -> None:
    intake(home, table)
    before = home.root.with_name("ward.csv").read_bytes()
    intake(home, table)
    assert home.root.with_name("ward.csv").read_bytes() == before


def test_a_single_missing_number_keeps_the_table_out_with_its_column_and_their_count(
    home: SiteHome, table: pl.DataFrame
) -> None:
    first = pl.int_range(pl.len()) < 2
    broken = table.with_columns(pl.when(first).then(float("nan")).otherwise(pl.col("size 1")).alias("size 1"))
    with pytest.raises(DataRefused, match="column 'size 1': 2 of 12 records have no value") as refused:
        intake(home, broken)
    assert "correct or leave out these records" in refused.value.hint
    assert home.ledger_path.read_bytes() == b""
    assert not (home.root / "data").exists()


def test_labels_beside_the_plans_classes_are_refused_and_nothing_is_registered(
    home: SiteHome, table: pl.DataFrame
) -> None:
    with pytest.raises(DataRefused, match="1 declared labels are not among the classes"):
        intake(home, table, classes=("healthy", "recovered"))
    assert home.ledger_path.read_bytes() == b""
    assert not (home.root / "data").exists()


def test_made_features_that_are_no_numbers_are_refused(home: SiteHome, table: pl.DataFrame) -> None:
    with pytest.raises(DataRefused, match="12 of 12 records"):
        intake(home, table, features=lambda clean, raw: np.full((clean.records, 3), np.nan, dtype=np.float32))
    assert home.ledger_path.read_bytes() == b""


def test_features_can_be_made_of_what_was_released(home: SiteHome, table: pl.DataFrame) -> None:
    intake(home, table, features=lambda clean, raw: clean.feature_matrix()[:, :2].astype(np.float32))
    assert load_dataset(home, POPULATION, classes=2).features.shape == (12, 2)


def test_the_same_patients_later_spend_the_same_budget(home: SiteHome, table: pl.DataFrame) -> None:
    for _ in range(2):
        intake(home, table)
    assert len(home.ledger_path.read_bytes().splitlines()) == 1
