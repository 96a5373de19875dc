"""What de-identification does to a table as a whole."""

import io
import json
import pickle
import re

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.data.readers import RawTable
from client.deid.clean import CleanTable
from client.deid.escrow import Escrow
from client.deid.report import require_registrable
from client.deid.rules import TableSchema
from client.deid.tabular import deidentify
from common.crypto.seal import open_sealed
from common.errors import DataRefused

CELLS = {
    "mrn": ["MRN-1000000001", "MRN-1000000002", ""],
    "birth_date": ["1954-03-02", "1931-01-01", "soon", ""],
    "zip": ["02139-4307", "03601", "x", ""],
    "age": ["71", "93", "-4", ""],
    "stage": ["II", "IV", ""],
    "diagnosis": ["benign", "malignant", "unclear"],
    "radius": ["17.99", "nan", "", "6175550142", "1e999"],
}
RECORDS = st.lists(st.fixed_dictionaries({name: st.sampled_from(cells) for name, cells in CELLS.items()}), min_size=1)


def again(clean: CleanTable) -> RawTable:
    """A clean table as the raw table that reading its CSV would give."""
    return RawTable(frame=pl.read_csv(io.BytesIO(clean.to_csv()), infer_schema=False).fill_null(""))


def test_a_clean_record_holds_what_was_declared(rows, schema, key, escrow) -> None:
    clean, _ = deidentify(rows(), schema, key=key, escrow=escrow)
    assert clean.frame.drop("mrn").row(0, named=True) == {
        "diagnosis": "malignant",
        "birth_date": "1954",
        "zip": "021",
        "age": "71",
        "stage": "II",
        "radius": 17.99,
        "texture": 10.38,
    }


def test_safe_harbor_gives_a_random_code_that_the_escrow_keeps(rows, schema, key, escrow) -> None:
    clean, _ = deidentify(rows(), schema, key=key, escrow=escrow)
    assert escrow.identifier_of("patient", clean.patient_codes()[0]) == "mrn-4410072215"


def test_expert_mode_gives_keyed_pseudonyms_without_an_escrow(rows, expert_schema, key) -> None:
    clean, _ = deidentify(rows(), expert_schema, key=key, escrow=None)
    assert re.fullmatch(r"[A-Z2-7]{32}", clean.patient_codes()[0])


def test_safe_harbor_without_an_escrow_is_a_mistake(rows, schema, key) -> None:
    with pytest.raises(ValueError, match="needs an escrow"):
        deidentify(rows(), schema, key=key, escrow=None)


def test_expert_mode_moves_all_dates_of_a_patient_by_the_same_days(rows, expert_schema, key) -> None:
    table = rows({"birth_date": "1954-03-02"}, {"birth_date": "1954-03-09"}, {"birth_date": ""})
    clean, _ = deidentify(table, expert_schema, key=key, escrow=None)
    empty, first, second = sorted(clean.frame.get_column("birth_date"))
    moved = [np.datetime64(text.removeprefix("~")) for text in (first, second)]
    assert empty == ""
    assert first.startswith("~") and moved[0] != np.datetime64("1954-03-02")
    assert moved[1] - moved[0] == np.timedelta64(7, "D")


def test_another_identifier_column_gets_codes_of_its_own(rows, schema, key, escrow) -> None:
    columns = {**schema.model_dump()["columns"], "insurance_id": {"action": "pseudonymise", "kind": "id"}}
    wider = TableSchema.model_validate({**schema.model_dump(), "columns": columns})
    clean, _ = deidentify(rows(), wider, key=key, escrow=escrow)
    code = clean.frame.item(0, "insurance_id")
    assert escrow.identifier_of("column/insurance_id", code) == "hic-983-22-9917"


def test_an_undeclared_column_never_passes_and_is_not_named(rows, schema, key, escrow) -> None:
    clean, report = deidentify(rows(), schema, key=key, escrow=escrow)
    shown = clean.to_csv().decode() + json.dumps(report.to_json()) + repr(clean) + repr(report)
    assert report.undeclared_columns == 1
    assert "insurance_id" not in shown and "HIC" not in shown


@pytest.mark.parametrize("mode", ["safe_harbor", "expert"])
def test_no_identifier_of_the_record_is_in_output_or_report(mode, rows, schema, expert_schema, key, escrow) -> None:
    chosen = schema if mode == "safe_harbor" else expert_schema
    clean, report = deidentify(rows(), chosen, key=key, escrow=escrow)
    shown = clean.to_csv().decode() + json.dumps(report.to_json()) + repr(clean) + repr(report)
    for text in ("4410072215", "Whitcombe", "Octavia", "1954-03-02", "02139", "4307", "983-22-9917"):
        assert text not in shown


def test_a_dropped_column_that_is_missing_is_no_fault(rows, schema, key, escrow) -> None:
    _, report = deidentify(rows({"name": None}), schema, key=key, escrow=escrow)
    assert {column.name: column.count for column in report.columns}["name"] == 0


def test_a_declared_column_that_is_missing_is_refused_by_name(rows, schema, key, escrow) -> None:
    with pytest.raises(DataRefused, match="no column 'radius'"):
        deidentify(rows({"radius": None}), schema, key=key, escrow=escrow)


@pytest.mark.parametrize("text", ["", "nan", "NaN", "inf", "-inf", "1,5", "twelve", "983-22-9917"])
def test_a_feature_that_is_no_finite_number_rejects_its_record(text, rows, schema, key, escrow) -> None:
    _, report = deidentify(rows({}, {"radius": text}), schema, key=key, escrow=escrow)
    assert (report.released, report.quarantined, report.rejected) == (1, 0, 1)


def test_registration_names_the_unreadable_column_and_no_value(rows, schema, key, escrow) -> None:
    _, report = deidentify(rows({}, {"radius": "983-22-9917"}), schema, key=key, escrow=escrow)
    with pytest.raises(DataRefused) as refused:
        require_registrable(report)
    assert "column 'radius': 1 of 2 records" in refused.value.fact
    assert "983" not in refused.value.fact + refused.value.hint


@pytest.mark.parametrize(
    "change",
    [{"mrn": " "}, {"birth_date": "soon"}, {"zip": "2139"}, {"age": ""}, {"age": "old"}],
    ids=["no patient", "no date", "no zip", "no age", "age in words"],
)
def test_a_cell_that_is_not_as_declared_rejects_its_record(change, rows, schema, key, escrow) -> None:
    _, report = deidentify(rows({}, change), schema, key=key, escrow=escrow)
    assert (report.released, report.rejected) == (1, 1)


def test_a_missing_birth_date_stays_missing(rows, schema, key, escrow) -> None:
    clean, _ = deidentify(rows({"birth_date": ""}), schema, key=key, escrow=escrow)
    assert clean.frame.item(0, "birth_date") == ""


def test_a_category_outside_the_list_quarantines_its_record(rows, schema, key, escrow) -> None:
    _, report = deidentify(rows({}, {"stage": "see Octavia"}), schema, key=key, escrow=escrow)
    assert (report.released, report.quarantined) == (1, 1)
    assert report.alarms == {"undeclared_value": 1}


def test_a_telephone_number_among_the_numbers_raises_an_alarm(rows, schema, key, escrow) -> None:
    _, report = deidentify(rows({}, {"radius": "6175550142"}), schema, key=key, escrow=escrow)
    assert (report.released, report.quarantined) == (1, 1)
    assert report.alarms == {"long_number": 1}


def test_a_schema_that_lists_an_identifier_does_not_authorise_it(rows, schema, key, escrow) -> None:
    document = schema.model_dump()
    document["columns"]["stage"]["values"] = ["II", "617-555-0142"]
    wider = TableSchema.model_validate(document)
    _, report = deidentify(rows({}, {"stage": "617-555-0142"}), wider, key=key, escrow=escrow)
    assert (report.released, report.quarantined, report.alarms) == (1, 1, {"phone": 1})


def test_counts_are_of_filled_cells_of_released_records(rows, schema, key, escrow) -> None:
    table = rows({}, {"birth_date": "", "name": ""}, {"radius": "nan"})
    _, report = deidentify(table, schema, key=key, escrow=escrow)
    counts = {column.name: column.count for column in report.columns}
    assert (counts["mrn"], counts["birth_date"], counts["name"], counts["radius"]) == (2, 1, 1, 2)


def test_a_patient_who_is_not_released_gets_no_code(rows, schema, key, escrow, storage_key, tmp_path) -> None:
    deidentify(rows({}, {"mrn": "MRN-held", "stage": "IV"}), schema, key=key, escrow=escrow)
    mapping = open_sealed((tmp_path / "escrow.sealed").read_bytes(), storage_key, purpose="escrow")
    assert b"mrn-4410072215" in mapping and b"mrn-held" not in mapping


@pytest.mark.parametrize("mode", ["safe_harbor", "expert"])
def test_the_same_input_gives_the_same_bytes(mode, rows, schema, expert_schema, key, escrow) -> None:
    chosen = schema if mode == "safe_harbor" else expert_schema
    table = rows({}, {"mrn": "MRN-2"}, {"mrn": "MRN-3", "radius": "-0.0"})
    first, report = deidentify(table, chosen, key=key, escrow=escrow)
    second, report_again = deidentify(table, chosen, key=key, escrow=escrow)
    assert first.to_csv() == second.to_csv()
    assert report == report_again


@pytest.mark.parametrize("mode", ["safe_harbor", "expert"])
def test_a_second_run_changes_nothing(mode, rows, schema, expert_schema, key, escrow) -> None:
    chosen = schema if mode == "safe_harbor" else expert_schema
    table = rows({}, {"mrn": "MRN-2", "age": "95", "birth_date": "1931-01-01"}, {"zip": "03601", "radius": "1e-7"})
    once, report = deidentify(table, chosen, key=key, escrow=escrow)
    twice, report_again = deidentify(again(once), chosen, key=key, escrow=escrow)
    assert once.to_csv() == twice.to_csv()
    assert report.output_digest == report_again.output_digest


def test_the_order_of_the_records_does_not_show(rows, schema, key, escrow) -> None:
    changes = [{"mrn": f"MRN-{number}", "radius": f"{number}.5"} for number in range(20)]
    changes += [{"mrn": "MRN-3", "radius": "99"}]
    forward, _ = deidentify(rows(*changes), schema, key=key, escrow=escrow)
    backward, _ = deidentify(rows(*reversed(changes)), schema, key=key, escrow=escrow)
    assert forward.to_csv() == backward.to_csv()
    assert forward.patient_codes() == sorted(forward.patient_codes())


def test_another_key_gives_other_bytes_in_expert_mode(rows, expert_schema, key) -> None:
    here, _ = deidentify(rows(), expert_schema, key=key, escrow=None)
    there, _ = deidentify(rows(), expert_schema, key=bytes(32), escrow=None)
    assert here.to_csv() != there.to_csv()


@given(records=RECORDS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_record_ends_in_exactly_one_way(records, rows, expert_schema, key) -> None:
    schema = TableSchema.model_validate({**expert_schema.model_dump(), "mode": "expert"})
    clean, report = deidentify(rows(*records), schema, key=key, escrow=None)
    assert report.released + report.quarantined + report.rejected == report.records_in == len(records)
    assert clean.records == report.released
    assert np.isfinite(clean.feature_matrix()).all()


def test_features_are_numbers_ages_and_one_column_a_category(rows, schema, key, escrow) -> None:
    clean, _ = deidentify(rows({"age": "97", "stage": "III"}), schema, key=key, escrow=escrow)
    assert clean.feature_names == ("age", "stage=I", "stage=II", "stage=III", "radius", "texture")
    assert clean.feature_matrix().tolist() == [[90.0, 0.0, 0.0, 1.0, 17.99, 10.38]]
    assert clean.labels() == ["malignant"]


def test_the_digest_is_of_the_csv_form(rows, schema, key, escrow: Escrow) -> None:
    clean, report = deidentify(rows({}, {"mrn": "MRN-2"}), schema, key=key, escrow=escrow)
    smaller, _ = deidentify(rows(), schema, key=key, escrow=escrow)
    assert report.output_digest == clean.digest != smaller.digest


def test_a_clean_table_cannot_be_pickled(rows, schema, key, escrow) -> None:
    clean, _ = deidentify(rows(), schema, key=key, escrow=escrow)
    with pytest.raises(TypeError, match="stays at its site"):
        pickle.dumps(clean)


def test_a_long_table_has_one_header_and_every_record(schema) -> None:
    frame = pl.DataFrame({"mrn": [str(number) for number in range(100_001)]})
    clean = CleanTable(frame=frame, schema=schema, source_rows=np.arange(frame.height))
    assert clean.to_csv() == frame.write_csv().encode()
