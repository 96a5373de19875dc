from pathlib import Path

import pytest

from common.errors import ConfigurationError, OutputExists
from simulations.outdir import MARKER, claim_out_directory


@pytest.mark.parametrize("force", [False, True])
def test_a_new_directory_is_made_with_its_parents_and_marked(tmp_path: Path, force: bool) -> None:
    claim_out_directory(tmp_path / "a" / "run", force=force)
    assert [path.name for path in (tmp_path / "a" / "run").iterdir()] == [MARKER]


def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    claim_out_directory(tmp_path, force=False)
    assert (tmp_path / MARKER).is_file()


def test_an_earlier_run_is_kept_unless_forced(tmp_path: Path) -> None:
    claim_out_directory(tmp_path / "run", force=False)
    (tmp_path / "run" / "summary.json").touch()
    with pytest.raises(OutputExists, match="is there already") as refused:
        claim_out_directory(tmp_path / "run", force=False)
    assert "--force" in refused.value.hint
    claim_out_directory(tmp_path / "run", force=True)
    assert not (tmp_path / "run" / "summary.json").exists()


def test_what_no_simulation_made_is_never_deleted(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigurationError, match="not made by a simulation"):
        claim_out_directory(tmp_path, force=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("force", [False, True])
def test_a_file_and_a_link_are_no_directory(tmp_path: Path, force: bool) -> None:
    (tmp_path / "file").touch()
    claim_out_directory(tmp_path / "run", force=False)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    for name in ("file", "link", "dangling"):
        with pytest.raises(ConfigurationError, match="no directory"):
            claim_out_directory(tmp_path / name, force=force)


def test_a_marker_that_is_a_directory_does_not_count(tmp_path: Path) -> None:
    (tmp_path / MARKER).mkdir()
    with pytest.raises(ConfigurationError):
        claim_out_directory(tmp_path, force=True)
