"""A compromised courier's user: owns the courier's directory and every setting in it, and waits for an administrator.

`fedward site trust` writes into that directory, often as root, so what it reads there is a stranger's word.
"""

import os
import threading
from pathlib import Path

import pytest

from client.home import create_home
from client.pinning import pin_consortium, tell_courier
from common.crypto.keys import SigningKey
from common.enrolment import Consortium
from server.moments import utc_now
from server.pki import make_authority

NOBODY = 65534
LEDGER = b"what the site has spent\n"


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    pki = tmp_path_factory.mktemp("pki") / "pki"
    make_authority(pki, hosts=["localhost"], passphrase=b"sixteen characters", now=utc_now())
    return Consortium(
        coordinator=SigningKey.generate().public_key.text,
        gateway="localhost:9092",
        certificates=(pki / "ca.crt").read_text(),
        sites={"north": SigningKey.generate().public_key.text},
    )


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """The courier's directory, and the agent's ledger beside it."""
    courier, home = tmp_path / "courier", tmp_path / "home"
    courier.mkdir()
    home.mkdir()
    ledger = home / "ledger.jsonl"
    ledger.write_bytes(LEDGER)
    ledger.chmod(0o600)
    (courier / "there").symlink_to(home)
    return courier, ledger


def _settings(courier: Path, certificates: str | Path) -> None:
    lines = ['gateway = ""', 'agent = "/run/fedward/agent.sock"', f'certificates = "{certificates}"', ""]
    (courier / "courier.toml").write_text("\n".join(lines))


@pytest.mark.parametrize("named", ["../home/ledger.jsonl", "there/ledger.jsonl", "{ledger}"])
def test_no_file_outside_his_directory_is_overwritten_for_him(
    places: tuple[Path, Path], consortium: Consortium, named: str
) -> None:
    courier, ledger = places
    before = ledger.stat()
    _settings(courier, named.format(ledger=ledger))
    change = tell_courier(courier, consortium)
    assert ledger.read_bytes() == LEDGER
    assert (ledger.stat().st_uid, ledger.stat().st_mode) == (before.st_uid, before.st_mode)
    assert (change.written, bool(change.failed)) == ((), True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who may write for another user")
def test_root_gives_him_nothing_while_he_swaps_files_for_links(
    places: tuple[Path, Path], consortium: Consortium
) -> None:
    courier, ledger = places
    for parent in (courier, *courier.parents):
        if parent.stat().st_uid == os.geteuid() and parent not in (Path("/"), Path("/tmp")):
            parent.chmod(parent.stat().st_mode | 0o055)
    _settings(courier, "ca.crt")
    for entry in (courier, courier / "courier.toml"):
        os.chown(entry, NOBODY, NOBODY)
    stopping = threading.Event()

    def swap() -> None:
        while not stopping.is_set():
            for entry in courier.iterdir():
                if entry.name not in ("courier.toml", "there") and not entry.is_symlink():
                    link = courier / "link"
                    try:
                        link.symlink_to(ledger)
                        link.rename(entry)
                    except OSError:
                        link.unlink(missing_ok=True)

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        for _ in range(20):
            tell_courier(courier, consortium)
    finally:
        stopping.set()
        swapping.join()
    assert ledger.read_bytes() == LEDGER
    assert (ledger.stat().st_uid, ledger.stat().st_mode & 0o777) == (0, 0o600)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who may write for another user")
def test_root_still_writes_for_the_courier(places: tuple[Path, Path], consortium: Consortium) -> None:
    courier, _ = places
    for parent in courier.parents:
        if parent not in (Path("/"), Path("/tmp")):
            parent.chmod(parent.stat().st_mode | 0o055)
    _settings(courier, "ca.crt")
    for entry in (courier, courier / "courier.toml"):
        os.chown(entry, NOBODY, NOBODY)
    change = tell_courier(courier, consortium)
    assert change.failed == ""
    assert {path.name for path in change.written} == {"ca.crt", "courier.toml"}
    assert {path.stat().st_uid for path in change.written} == {NOBODY}
    assert os.geteuid() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who may write for another user")
def test_what_root_pins_belongs_to_the_agents_user(tmp_path: Path, consortium: Consortium) -> None:
    for parent in (tmp_path, *tmp_path.parents):
        if parent not in (Path("/"), Path("/tmp")):
            parent.chmod(parent.stat().st_mode | 0o055)
    home = create_home(tmp_path / "home", name="north", passphrase=b"sixteen characters")
    for entry in (home.root, *home.root.iterdir()):
        os.chown(entry, NOBODY, NOBODY)
    own = consortium.model_copy(update={"sites": {"north": home.identity.public_key.text}})
    pin_consortium(home, own)
    assert {(home.root / name).stat().st_uid for name in ("trust.json", "trust.sig")} == {NOBODY}
    assert os.geteuid() == 0 and home.trust().coordinator == own.coordinator
