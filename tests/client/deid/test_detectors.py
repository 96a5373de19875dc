"""What raises an alarm, and what must not."""

import polars as pl
import pytest

from client.deid.detectors import alarm_in, alarms_in, long_numbers


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("o.whitcombe215@mail.example.org", "email"),
        ("see 983-22-9917", "ssn"),
        ("(617) 555-0142", "phone"),
        ("617-555-0142", "phone"),
        ("+1 617.555.0142", "phone"),
        ("1954-03-02", "date"),
        ("3/2/1954", "date"),
        ("MRN-4410072215", "record_number"),
        ("mrn 44100", "record_number"),
        ("6175550142", "long_number"),
    ],
)
def test_an_identifier_is_recognised(text: str, kind: str) -> None:
    assert alarm_in(text) == kind


@pytest.mark.parametrize(
    "text", ["benign", "II", "90+", "1954", "021", "000", "71", "250000", "0.123456789012", "T2N0"]
)
def test_what_a_clean_table_holds_raises_no_alarm(text: str) -> None:
    assert alarm_in(text) is None


def test_alarms_point_at_their_rows() -> None:
    found = alarms_in(pl.Series(["benign", "a@b.org", "benign", "617-555-0142"]))
    assert {kind: mask.to_list() for kind, mask in found.items()} == {
        "email": [False, True, False, False],
        "phone": [False, False, False, True],
    }


def test_a_whole_number_of_eight_digits_is_no_measurement() -> None:
    numbers = pl.Series([17.99, 250000.0, 6175550142.0, -44100722.0, 12345678.5, None])
    assert long_numbers(numbers).to_list() == [False, False, True, True, False, False]
