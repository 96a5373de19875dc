import os
import socket
from pathlib import Path

import pytest

from common.errors import BackendFailed
from common.passphrase import PASSPHRASE_FILE_VARIABLE, PASSPHRASE_VARIABLE
from server.flower_control import FlowerControl
from server.moments import utc_now
from server.pki import loopback_files, make_authority
from server.superlink import (
    FlowerDirectory,
    flower_environment,
    free_port,
    installed_program,
    submit_run,
    superexec_command,
    superlink_command,
)

INHERITED = {
    "PATH": "/bin",
    "FLWR_HOME": "/elsewhere",
    "RAY_ADDRESS": "ray://elsewhere",
    PASSPHRASE_VARIABLE: "sesame",
    PASSPHRASE_FILE_VARIABLE: "/run/passphrase",
    "LANG": "C",
}


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    make_authority(tmp_path / "pki", hosts=["localhost"], passphrase=b"sixteen characters", now=utc_now())
    return tmp_path / "pki"


def test_only_the_executor_learns_where_the_passphrase_is(tmp_path: Path) -> None:
    closed = flower_environment(tmp_path, passphrase=False, inherited=INHERITED)
    opened = flower_environment(tmp_path, passphrase=True, inherited=INHERITED)
    assert not {PASSPHRASE_VARIABLE, PASSPHRASE_FILE_VARIABLE} & closed.keys()
    assert (opened[PASSPHRASE_VARIABLE], opened[PASSPHRASE_FILE_VARIABLE]) == ("sesame", "/run/passphrase")


def test_no_home_or_cluster_of_the_user_is_used_and_nothing_calls_home(tmp_path: Path) -> None:
    environment = flower_environment(tmp_path, passphrase=False, inherited=INHERITED)
    assert environment["FLWR_HOME"] == str(tmp_path)
    assert "RAY_ADDRESS" not in environment
    assert (environment["FLWR_TELEMETRY_ENABLED"], environment["FLWR_DISABLE_UPDATE_CHECK"]) == ("0", "1")
    assert environment["LANG"] == "C"
    assert environment["PATH"].split(os.pathsep)[0] == str(Path(installed_program("flwr")).parent)


def test_the_commands_keep_to_loopback_with_authentication_and_name_no_secret(tmp_path: Path, pki: Path) -> None:
    secret = tmp_path / "superexec.secret"
    secret.write_bytes(b"0123456789abcdef")
    directory, files = FlowerDirectory(root=tmp_path / "flower"), loopback_files(pki)
    superlink = superlink_command(directory, port=4321, files=files, secret=secret)
    superexec = superexec_command(port=4321, authority=files.authority, secret=secret)
    assert "--enable-supernode-auth" in superlink and "--insecure" not in [*superlink, *superexec]
    assert superlink[superlink.index("--host") + 1] == "127.0.0.1"
    assert superlink[superlink.index("--isolation") + 1] == "process"
    directory.prepare(address="127.0.0.1:4321", authority=files.authority)
    for command in (superlink, superexec):
        assert command[command.index("--superexec-auth-secret-file") + 1] == str(secret)
        assert "0123456789abcdef" not in " ".join(command)
        assert directory.token.read_text() not in " ".join(command)


def test_the_token_is_private_and_another_one_at_every_start(tmp_path: Path, pki: Path) -> None:
    directory, tokens = FlowerDirectory(root=tmp_path / 'with "quotes"'), set()
    for _ in range(2):
        directory.prepare(address="127.0.0.1:4321", authority=pki / "ca.crt")
        tokens.add(directory.token.read_text())
    assert [len(token) for token in tokens] == [64, 64]
    assert (directory.token.stat().st_mode | directory.connection.stat().st_mode) & 0o777 == 0o600
    assert [entry.name for entry in directory.bundle.iterdir()] == ["pyproject.toml"]


def test_forgetting_the_state_removes_the_journals_of_the_database_too(tmp_path: Path) -> None:
    directory = FlowerDirectory(root=tmp_path)
    for name in ("state.db", "state.db-wal", "state.db-shm", "superlink.log"):
        (tmp_path / name).touch()
    directory.forget_state()
    assert [entry.name for entry in tmp_path.iterdir()] == ["superlink.log"]


def test_a_superlink_that_is_not_there_is_a_backend_failure(pki: Path) -> None:
    token = pki / "token"
    token.touch()
    control = FlowerControl(f"127.0.0.1:{free_port()}", authority=pki / "ca.crt", token=token)
    assert not control.is_healthy()
    with pytest.raises(BackendFailed, match=r"does not answer on 127\.0\.0\.1"):
        control.nodes()


def test_a_program_that_is_no_superlink_is_not_healthy(pki: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        assert not FlowerControl(f"127.0.0.1:{port}", authority=pki / "ca.crt", token=pki / "token").is_healthy()


def test_a_run_that_flower_does_not_take_fails_with_its_words(tmp_path: Path, pki: Path) -> None:
    directory = FlowerDirectory(root=tmp_path / "flower")
    directory.prepare(address=f"127.0.0.1:{free_port()}", authority=pki / "ca.crt")
    with pytest.raises(BackendFailed, match="Flower did not take the run") as raised:
        submit_run(directory, run_dir=tmp_path)
    assert raised.value.hint
