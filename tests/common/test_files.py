import os
import stat
from pathlib import Path

import pytest

from common.files import sync_directory, write_atomic


def test_a_file_is_written_with_its_directories(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a" / "b.bin", b"content")
    assert (tmp_path / "a" / "b.bin").read_bytes() == b"content"


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    for content in (b"a long first content", b"short"):
        write_atomic(tmp_path / "b.bin", content)
    assert (tmp_path / "b.bin").read_bytes() == b"short"


@pytest.mark.parametrize(("given", "mode"), [({}, 0o600), ({"mode": 0o644}, 0o644)])
def test_only_the_owner_reads_it_unless_said(tmp_path: Path, given: dict[str, int], mode: int) -> None:
    write_atomic(tmp_path / "b.bin", b"", **given)
    assert stat.S_IMODE((tmp_path / "b.bin").stat().st_mode) == mode


def test_when_writing_fails_the_old_file_stays_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "b.bin").mkdir()
    (tmp_path / "b.bin" / "kept").touch()
    with pytest.raises(OSError):
        write_atomic(tmp_path / "b.bin", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["b.bin"]


def test_a_link_is_replaced_and_what_it_names_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"theirs")
    (tmp_path / "b.bin").symlink_to(tmp_path / "elsewhere")
    write_atomic(tmp_path / "b.bin", b"ours")
    assert (tmp_path / "elsewhere").read_bytes() == b"theirs"
    assert not (tmp_path / "b.bin").is_symlink()


def test_only_a_directory_is_synced_as_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    sync_directory(tmp_path)
    with pytest.raises(NotADirectoryError):
        sync_directory(tmp_path / "file")


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for _ in range(20):
        write_atomic(tmp_path / "b.bin", b"x")
    after = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    assert after == before
