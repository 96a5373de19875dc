"""What a residual scan finds, and what it must not find."""

import base64
import html
import io
import json
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data.readers import read_table
from client.deid.escrow import Escrow
from client.deid.rules import TableSchema
from client.deid.tabular import deidentify
from common.crypto.seal import StorageKey, open_sealed, seal_bytes
from simulations.identities import IDENTIFIER_KINDS, IDENTITY_RULES, add_identities, identifiers_of
from simulations.residual import Hit, ResidualScan

PEOPLE = add_identities(pl.DataFrame({"radius": np.arange(40) + 0.5, "sick": ["no", "yes"] * 20}), site="north", seed=3)
IDENTIFIERS = [identifiers_of(row) for row in PEOPLE.iter_rows(named=True)]
SCAN = ResidualScan(IDENTIFIERS, kinds=IDENTIFIER_KINDS)
NAME = 'Søren "Bo" O\'Callaghan & Sons'


def encodings(scan: ResidualScan, data: bytes) -> set[str]:
    return {hit.encoding for hit in scan.scan_bytes(data)}


@pytest.mark.parametrize("kind", IDENTIFIER_KINDS)
@pytest.mark.parametrize("record", [0, 17, 39])
def test_every_kind_of_identifier_is_found_between_other_bytes(record: int, kind: str) -> None:
    text = IDENTIFIERS[record][IDENTIFIER_KINDS.index(kind)]
    hits = SCAN.scan_bytes(b"\x00\xff some bytes " + text.encode() + b" and more \xfe")
    assert Hit(record=record, kind=kind, encoding="plain") in hits


@pytest.mark.parametrize("change", [str.upper, str.lower, str.title])
def test_case_does_not_hide_an_identifier(change) -> None:
    assert encodings(ResidualScan([[NAME]]), change(NAME).encode()) >= {"plain"}


@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_json_escapes_do_not_hide_an_identifier(ensure_ascii: bool) -> None:
    assert "json" in encodings(ResidualScan([[NAME]]), json.dumps({"a": NAME}, ensure_ascii=ensure_ascii).encode())


def test_html_escapes_do_not_hide_an_identifier() -> None:
    assert "html" in encodings(ResidualScan([[NAME]]), f"<td>{html.escape(NAME)}</td>".encode())


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("before", range(7))
def test_base64_does_not_hide_an_identifier_at_any_alignment(before: int, encode) -> None:
    assert encodings(ResidualScan([[NAME]]), encode(b"\xfb" * before + NAME.encode() + b"\xff tail")) == {"base64"}


@given(before=st.binary(max_size=40), after=st.binary(max_size=40), record=st.integers(0, 39), data=st.data())
def test_a_planted_identifier_is_found_wherever_it_stands(before, after, record, data) -> None:
    text = data.draw(st.sampled_from([text for text in IDENTIFIERS[record] if not text.isdigit()]))
    assert record in {hit.record for hit in SCAN.scan_bytes(before + text.encode() + after)}


def test_digits_inside_a_longer_number_are_no_identifier() -> None:
    scan = ResidualScan([["6175550142"]])
    assert scan.scan_bytes(b"0.61755501425 16175550142") == []
    assert len(scan.scan_bytes(b"tel:6175550142.")) == 1


def test_a_string_of_two_records_is_reported_for_both() -> None:
    scan = ResidualScan([["Octavia Whitcombe"], ["Octavia Whitcombe"]])
    assert [hit.record for hit in scan.scan_bytes(b"octavia whitcombe")] == [0, 1]


def test_hits_do_not_show_the_value() -> None:
    hits = ResidualScan([["Octavia Whitcombe"]]).scan_bytes(b"Octavia Whitcombe")
    assert hits and "hitcombe" not in repr(hits)


@pytest.mark.parametrize("identifiers", [[], [[]], [["", ""]]])
def test_a_scan_that_cannot_fail_is_refused(identifiers) -> None:
    with pytest.raises(ValueError, match="no identifiers"):
        ResidualScan(identifiers)


def test_an_identifier_that_chance_would_find_is_refused() -> None:
    with pytest.raises(ValueError, match="has 6 bytes; below 8"):
        ResidualScan([["Al Lee"]])


@pytest.mark.parametrize("data", [b"", b"short", b"nothing here that names anyone at all", bytes(range(256)) * 40])
def test_other_bytes_are_clean(data: bytes) -> None:
    assert SCAN.scan_bytes(data) == []


def test_a_tree_is_read_to_the_last_file_and_name(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "notes.txt").write_text(IDENTIFIERS[5][-1])
    (tmp_path / f"{IDENTIFIERS[6][3]}.json").write_text("{}")
    (tmp_path / "clean.txt").write_text("nothing")
    report = SCAN.scan_tree(tmp_path)
    assert report.files == 3
    assert report.bytes == len(IDENTIFIERS[5][-1].encode()) + 2 + 7
    assert {hit.file for hit in report.hits if hit.record == 5} == {"a/b/notes.txt"}
    assert {hit.file for hit in report.hits if hit.record == 6} == {""}


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "secret.txt").write_text(IDENTIFIERS[0][0])
    (tmp_path / "out" / "link.txt").symlink_to(tmp_path / "secret.txt")
    assert SCAN.scan_tree(tmp_path / "out").files == 0


def test_nothing_is_left_after_deidentification_and_everything_was_there_before(tmp_path: Path) -> None:
    PEOPLE.write_csv(tmp_path / "patients.csv")
    columns = {name: dict(rule) for name, rule in IDENTITY_RULES.items()} | {
        "radius": {"action": "keep", "type": "number", "role": "feature"},
        "sick": {"action": "keep", "type": "category", "values": ["no", "yes"], "role": "label"},
    }
    schema = TableSchema.model_validate({"mode": "safe_harbor", "as_of_year": 2026, "columns": columns})
    key = StorageKey.generate()
    escrow = Escrow(
        tmp_path / "out" / "escrow.sealed",
        seal=partial(seal_bytes, key=key, purpose="escrow"),
        unseal=partial(open_sealed, key=key, purpose="escrow"),
    )
    clean, report = deidentify(read_table(tmp_path / "patients.csv"), schema, key=bytes(32), escrow=escrow)
    (tmp_path / "out" / "clean.csv").write_bytes(clean.to_csv())
    (tmp_path / "out" / "deid.json").write_text(json.dumps(report.to_json()))
    assert report.released == 40
    assert SCAN.scan_tree(tmp_path / "out").hits == ()
    raw = io.BytesIO()
    PEOPLE.write_csv(raw)
    assert {hit.record for hit in SCAN.scan_bytes(raw.getvalue()) if hit.kind == "note"} == set(range(40))
