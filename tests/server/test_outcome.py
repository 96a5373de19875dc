from pathlib import Path

import pytest

from common.errors import BackendFailed, QuorumLost
from server.outcome import outcome_written, read_outcome, remove_outcome


def test_there_is_no_outcome_while_a_run_goes_on(tmp_path: Path) -> None:
    with outcome_written(tmp_path):
        assert read_outcome(tmp_path) is None


def test_a_run_that_returns_raises_nothing(tmp_path: Path) -> None:
    with outcome_written(tmp_path):
        pass
    outcome = read_outcome(tmp_path)
    assert outcome is not None
    outcome.raise_error()


def test_a_federation_error_comes_out_as_itself(tmp_path: Path) -> None:
    with pytest.raises(QuorumLost), outcome_written(tmp_path):
        raise QuorumLost("2 of 3 sites are left", hint="wait")
    outcome = read_outcome(tmp_path)
    assert outcome is not None
    with pytest.raises(QuorumLost) as raised:
        outcome.raise_error()
    assert (raised.value.fact, raised.value.hint) == ("2 of 3 sites are left", "wait")


def test_of_any_other_error_only_the_class_name_is_written(tmp_path: Path) -> None:
    with pytest.raises(KeyError), outcome_written(tmp_path):
        raise KeyError("a private detail")
    assert "private" not in (tmp_path / "outcome.json").read_text()
    outcome = read_outcome(tmp_path)
    assert outcome is not None
    with pytest.raises(BackendFailed, match="KeyError"):
        outcome.raise_error()


def test_an_outcome_can_be_forgotten(tmp_path: Path) -> None:
    with outcome_written(tmp_path):
        pass
    remove_outcome(tmp_path)
    assert read_outcome(tmp_path) is None
