"""Random codes and the way back."""

import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from client.deid.escrow import Escrow
from common.crypto.seal import StorageKey, open_sealed, seal_bytes
from common.errors import DataRefused, TrustError


def at(path: Path, key: StorageKey) -> Escrow:
    return Escrow(
        path,
        seal=partial(seal_bytes, key=key, purpose="escrow"),
        unseal=partial(open_sealed, key=key, purpose="escrow"),
    )


def test_a_code_is_120_bits_of_base32(escrow: Escrow) -> None:
    assert re.fullmatch(r"[A-Z2-7]{24}", escrow.codes("patient", ["MRN-1"])["MRN-1"])


def test_a_later_run_gives_the_same_codes(tmp_path: Path, storage_key: StorageKey) -> None:
    first = at(tmp_path / "escrow", storage_key).codes("patient", ["MRN-1", "MRN-2"])
    later = at(tmp_path / "escrow", storage_key).codes("patient", ["MRN-2", "MRN-3", "MRN-1"])
    assert {name: later[name] for name in first} == first


def test_codes_say_nothing_about_the_identifier(tmp_path: Path, storage_key: StorageKey) -> None:
    here = at(tmp_path / "here", storage_key).codes("patient", ["MRN-1"])
    there = at(tmp_path / "there", storage_key).codes("patient", ["MRN-1"])
    assert here != there


def test_an_issued_code_stands_for_itself(escrow: Escrow) -> None:
    code = escrow.codes("patient", ["MRN-1"])["MRN-1"]
    assert escrow.codes("patient", [code]) == {code: code}


def test_two_spellings_of_one_number_are_one_patient(escrow: Escrow) -> None:
    codes = escrow.codes("patient", ["MRN-1", "mrn-1"])
    assert codes["MRN-1"] == codes["mrn-1"]


def test_namespaces_do_not_share_codes(escrow: Escrow) -> None:
    assert escrow.codes("patient", ["7"]) != escrow.codes("column/visit", ["7"])


def test_the_site_finds_its_way_back(escrow: Escrow) -> None:
    code = escrow.codes("patient", ["mrn-1"])["mrn-1"]
    assert escrow.identifier_of("patient", code) == "mrn-1"


def test_a_code_that_was_never_issued_leads_nowhere(escrow: Escrow) -> None:
    with pytest.raises(DataRefused, match="no such code"):
        escrow.identifier_of("patient", "A" * 24)


def test_the_file_shows_no_identifier(tmp_path: Path, storage_key: StorageKey) -> None:
    at(tmp_path / "escrow", storage_key).codes("patient", ["mrn-4410072215"])
    assert b"4410072215" not in (tmp_path / "escrow").read_bytes()
    assert (tmp_path / "escrow").stat().st_mode & 0o077 == 0


def test_another_key_does_not_open_it(tmp_path: Path, storage_key: StorageKey) -> None:
    at(tmp_path / "escrow", storage_key).codes("patient", ["MRN-1"])
    with pytest.raises(TrustError):
        at(tmp_path / "escrow", StorageKey.generate()).codes("patient", ["MRN-1"])


def test_a_mapping_of_another_version_is_refused(tmp_path: Path, storage_key: StorageKey) -> None:
    sealed = seal_bytes(b'{"version": 2, "codes": {}}', storage_key, purpose="escrow")
    (tmp_path / "escrow").write_bytes(sealed)
    with pytest.raises(DataRefused, match="version 2, this program reads 1"):
        at(tmp_path / "escrow", storage_key).codes("patient", ["MRN-1"])


def test_runs_at_the_same_time_agree_on_every_patient(tmp_path: Path, storage_key: StorageKey) -> None:
    def run(number: int) -> dict[str, str]:
        return at(tmp_path / "escrow", storage_key).codes("patient", [f"MRN-{number}", "MRN-shared"])

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, range(8)))
    final = at(tmp_path / "escrow", storage_key).codes("patient", [name for codes in found for name in codes])
    assert all(final[name] == code for codes in found for name, code in codes.items())


def test_its_text_form_shows_nothing(escrow: Escrow) -> None:
    escrow.codes("patient", ["MRN-1"])
    assert repr(escrow) == "Escrow(sealed)"
