from pathlib import Path

import pytest

from common.errors import ConfigurationError
from common.passphrase import read_passphrase


def test_the_file_goes_before_the_variable(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"from the file\n")
    environment = {"FEDWARD_PASSPHRASE_FILE": str(tmp_path / "secret"), "FEDWARD_PASSPHRASE": "from the variable"}
    assert read_passphrase(environment) == b"from the file"


def test_the_variable_is_used_without_a_file() -> None:
    assert read_passphrase({"FEDWARD_PASSPHRASE": "from the variable"}) == b"from the variable"


def test_no_passphrase_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no passphrase"):
        read_passphrase({})


def test_an_empty_file_is_refused_although_the_variable_is_set(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\n")
    with pytest.raises(ConfigurationError, match="no passphrase"):
        read_passphrase({"FEDWARD_PASSPHRASE_FILE": str(tmp_path / "secret"), "FEDWARD_PASSPHRASE": "other"})


def test_a_missing_file_is_named_without_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as raised:
        read_passphrase({"FEDWARD_PASSPHRASE_FILE": str(tmp_path / "gone")})
    assert str(tmp_path) not in raised.value.fact
