import os
import stat
from pathlib import Path

import pytest

from common.crypto.keys import SigningKey
from common.errors import ConfigurationError, OutputExists, TrustError
from server.acts import verified_acts
from server.home import ServerHome, ServerSettings, create_server, open_server, read_public_key
from server.setup import set_up
from tests.server.coordinators import ACTOR, ADDRESS, PASSPHRASE, copy_coordinator, make_coordinator

SETTINGS = ServerSettings(address=ADDRESS, listen="0.0.0.0:8443")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ServerHome:
    """Not to be changed: `home` is the copy for that."""
    return make_coordinator(tmp_path_factory.mktemp("made") / "home")


@pytest.fixture
def home(made: ServerHome, tmp_path: Path) -> ServerHome:
    return copy_coordinator(made, tmp_path / "home")


def test_a_coordinator_is_opened_again(home: ServerHome) -> None:
    opened = open_server(home.root, passphrase=PASSPHRASE)
    assert opened.settings == home.settings
    assert opened.key.public_key == home.key.public_key == read_public_key(home.root)


def test_settings_survive_their_file(tmp_path: Path) -> None:
    settings = ServerSettings(
        address="[2001:db8::1]:443",
        listen="[::]:443",
        api="127.0.0.1:0",
        client_certificates=True,
        requests_per_second=2.5,
    )
    create_server(tmp_path, settings=settings, passphrase=PASSPHRASE)
    assert open_server(tmp_path, passphrase=PASSPHRASE).settings == settings


def test_only_the_owner_reads_what_is_secret(home: ServerHome) -> None:
    public = {"coordinator.pub", "acts.pub", "consortium.json", "ca.crt", "server.crt"}
    files = [path for path in home.root.rglob("*") if path.is_file()]
    open_ones = {path.name for path in files if stat.S_IMODE(path.stat().st_mode) != 0o600}
    assert open_ones == public
    directories = [home.root, *(path for path in home.root.rglob("*") if path.is_dir())]
    assert {stat.S_IMODE(path.stat().st_mode) for path in directories} == {0o700}


def test_keys_lie_encrypted(home: ServerHome) -> None:
    assert b"ENCRYPTED" in (home.root / "coordinator.pem").read_bytes()
    assert b"ENCRYPTED" in (home.pki / "ca.key").read_bytes()
    assert b"ENCRYPTED" in (home.root / "acts.key").read_bytes()


def test_the_superexec_secret_is_long_and_ends_without_a_newline(home: ServerHome) -> None:
    secret = home.superexec_secret_path.read_bytes()
    assert len(secret) == 64 and secret.isalnum()


def test_a_wrong_passphrase_opens_nothing(home: ServerHome) -> None:
    with pytest.raises(TrustError, match="passphrase"):
        open_server(home.root, passphrase=b"another passphrase for tests")


def test_a_second_coordinator_in_the_same_place_is_refused(home: ServerHome) -> None:
    before = (home.root / "coordinator.pem").read_bytes()
    with pytest.raises(OutputExists, match="there is a coordinator already"):
        set_up(home.root, settings=SETTINGS, passphrase=PASSPHRASE, actor=ACTOR)
    assert (home.root / "coordinator.pem").read_bytes() == before


def test_a_directory_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / "pki").mkdir()
    with pytest.raises(OutputExists, match="not empty"):
        set_up(tmp_path, settings=SETTINGS, passphrase=PASSPHRASE, actor=ACTOR)
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.suffix != ".lock") == ["pki", "thesis.txt"]


def test_a_short_passphrase_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="15 bytes, the least is 16"):
        set_up(tmp_path / "home", settings=SETTINGS, passphrase=b"fifteen letters", actor=ACTOR)
    assert not (tmp_path / "home").exists()


def test_a_host_that_fits_no_certificate_leaves_nothing_behind(tmp_path: Path) -> None:
    settings = ServerSettings(address="a..b:8443", listen="0.0.0.0:8443")
    with pytest.raises(ConfigurationError, match="neither a DNS name nor an address"):
        set_up(tmp_path / "home", settings=settings, passphrase=PASSPHRASE, actor=ACTOR)
    assert not (tmp_path / "home").exists()


def test_an_empty_directory_that_was_there_stays_empty_after_a_failure(tmp_path: Path) -> None:
    settings = ServerSettings(address="a..b:8443", listen="0.0.0.0:8443")
    with pytest.raises(ConfigurationError):
        set_up(tmp_path, settings=settings, passphrase=PASSPHRASE, actor=ACTOR)
    assert [entry.name for entry in tmp_path.iterdir()] == ["members.lock"]
    set_up(tmp_path, settings=SETTINGS, passphrase=PASSPHRASE, actor=ACTOR)


@pytest.mark.parametrize("moves", [0, 1, 7, 14])
def test_a_set_up_that_was_killed_is_repeated(tmp_path: Path, moves: int) -> None:
    """The directory is brought to where a kill between two renames would leave it."""
    home, staging = tmp_path / "home", tmp_path / "home" / ".init-killed"
    made = make_coordinator(tmp_path / "made")
    home.mkdir()
    entries = sorted(made.root.iterdir(), key=lambda entry: entry.name == "coordinator.pem")
    made.root.rename(staging)
    for entry in entries[:moves]:
        (staging / entry.name).rename(home / entry.name)
    with pytest.raises(ConfigurationError):
        open_server(home, passphrase=PASSPHRASE)
    again = set_up(home, settings=SETTINGS, passphrase=PASSPHRASE, actor=ACTOR)
    assert open_server(home, passphrase=PASSPHRASE).key.public_key == again.key.public_key != made.key.public_key
    assert not list(home.glob(".init-*"))


def test_setting_up_is_the_first_act(home: ServerHome) -> None:
    ((act, _),) = verified_acts(home.root)
    assert (act.seq, act.act, act.actor, act.role) == (1, "init", ACTOR.name, "coordinator")


@pytest.mark.parametrize("name", ["coordinator.pem", "storage.key", "server.toml"])
def test_a_missing_file_is_refused(home: ServerHome, name: str) -> None:
    (home.root / name).unlink()
    with pytest.raises(ConfigurationError):
        open_server(home.root, passphrase=PASSPHRASE)


@pytest.mark.parametrize("content", [b"", b"ed25519:AAAA\n", b"\xff", SigningKey.generate().to_pem(PASSPHRASE)])
def test_a_public_key_that_is_none_is_refused(home: ServerHome, content: bytes) -> None:
    (home.root / "coordinator.pub").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"coordinator\.pub"):
        read_public_key(home.root)


@pytest.mark.parametrize(
    "address", ["", "fed.example.org", "fed.example.org:", ":443", "a b:1", "x:123456", "https://x:1", "[x]:1"]
)
def test_an_address_is_a_host_and_a_port(address: str) -> None:
    with pytest.raises(ValueError, match="address"):
        ServerSettings(address=address, listen="0.0.0.0:1")


@pytest.mark.skipif(os.getuid() == 0, reason="root writes everywhere")
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigurationError, match="Permission denied"):
        set_up(tmp_path / "home", settings=SETTINGS, passphrase=PASSPHRASE, actor=ACTOR)


def test_a_file_in_the_place_of_the_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(ConfigurationError, match="no coordinator can be made there"):
        set_up(tmp_path / "home", settings=SETTINGS, passphrase=PASSPHRASE, actor=ACTOR)
