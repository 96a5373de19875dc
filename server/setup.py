"""A new coordinator directory, whole or not at all."""

import secrets
import shutil
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

from common.crypto.seal import MINIMUM_PASSPHRASE_BYTES
from common.errors import ConfigurationError, OutputExists
from common.files import sync_directory, write_atomic
from server.actlog import ActLog
from server.acts import Actor
from server.certificates import place_own
from server.home import ServerHome, ServerSettings, create_server
from server.lock import exclusive
from server.members import Members, write_members
from server.moments import utc_now
from server.pki import TlsFiles, host_of, make_authority
from server.tokens import Tokens, write_tokens

MARK: Final = "coordinator.pem"
_STAGING: Final = ".init-"
_LOCK: Final = "members.lock"
_HARMLESS: Final = frozenset({_LOCK, "lost+found"})


def set_up(
    root: Path,
    *,
    settings: ServerSettings,
    passphrase: bytes,
    actor: Actor,
    own: TlsFiles | None = None,
    clock: Callable[[], datetime] = utc_now,
) -> ServerHome:
    """Make everything that a coordinator begins with, in a directory that is new or empty.

    All of it is made aside and then moved into place, `coordinator.pem` last; what a crash left half done is swept
    away by the next attempt.

    Args:
        own: Certificates that somebody else issued; without them an authority is made.

    Raises:
        OutputExists: If a coordinator lives there, or files that are not a coordinator's.
        ConfigurationError: If the passphrase is too short. TrustError: If couriers would refuse the certificates.
    """
    if len(passphrase) < MINIMUM_PASSPHRASE_BYTES:
        raise ConfigurationError(
            f"the passphrase has {len(passphrase)} bytes, the least is {MINIMUM_PASSPHRASE_BYTES}",
            hint="make one with: openssl rand -base64 24",
        )
    new = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with exclusive(root / _LOCK):
            _sweep(root)
            made = _make_aside(root, settings, passphrase, actor, own, clock)
        root.chmod(0o700)
    except BaseException as error:
        if new and not (root / MARK).exists():
            shutil.rmtree(root, ignore_errors=True)
        if isinstance(error, OSError):
            raise ConfigurationError(f"{root}: no coordinator can be made there: {error.strerror}") from error
        raise
    return ServerHome(root=root, settings=made.settings, key=made.key, storage=made.storage)


def _make_aside(
    root: Path,
    settings: ServerSettings,
    passphrase: bytes,
    actor: Actor,
    own: TlsFiles | None,
    clock: Callable[[], datetime],
) -> ServerHome:
    staging = Path(tempfile.mkdtemp(dir=root, prefix=_STAGING))
    try:
        made = _make(staging, settings, passphrase, actor, own, clock)
        _move(staging, root)
    except BaseException:
        if not (root / MARK).exists():
            for name in _MADE:
                _remove(root / name)
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return made


def _make(
    staging: Path,
    settings: ServerSettings,
    passphrase: bytes,
    actor: Actor,
    own: TlsFiles | None,
    clock: Callable[[], datetime],
) -> ServerHome:
    home = create_server(staging, settings=settings, passphrase=passphrase)
    if own is None:
        make_authority(home.pki, hosts=[host_of(settings.address)], passphrase=passphrase, now=clock())
    else:
        place_own(home.pki, own, address=settings.address, passphrase=passphrase, now=clock())
    write_atomic(home.superexec_secret_path, secrets.token_hex(32).encode())
    for directory in (home.pki, home.runs, home.flower, home.proposals):
        directory.mkdir(exist_ok=True)
        directory.chmod(0o700)
    log = ActLog.create(staging, coordinator=home.key, clock=clock)
    detail = {"fingerprint": home.key.public_key.fingerprint, "address": settings.address}
    log.append("init", actor=actor, detail={**detail, "certificates": "own" if own is not None else "authority"})
    write_tokens(home, Tokens(by_id={}))
    write_members(home, Members(by_name={}))
    return home


def _sweep(root: Path) -> None:
    """Remove what a crash left; raises OutputExists if there is anything that `_make` does not make."""
    if (root / MARK).exists():
        raise OutputExists(f"{root}: there is a coordinator already", hint="see: fedward server members --home DIR")
    left = [entry for entry in root.iterdir() if entry.name not in _HARMLESS]
    if left and not any(entry.name.startswith(_STAGING) for entry in left):
        raise OutputExists(f"{root}: the directory is not empty", hint="give a new one with --home DIR")
    strange = sorted(entry.name for entry in left if not entry.name.startswith(_STAGING) and entry.name not in _MADE)
    if strange:
        raise OutputExists(f"{root}: the directory holds {strange[0]}", hint="give a new one with --home DIR")
    for entry in left:
        _remove(entry)


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink(missing_ok=True)


_MADE: Final = frozenset(
    {
        *("server.toml", "storage.key", "coordinator.pub", "pki", "superexec.secret", "runs", "flower", "proposals"),
        *("acts.secret", "acts.key", "acts.pub", "acts.jsonl", "acts.head", "acts.lock"),
        *("tokens.json", "members.json", "consortium.json"),
    }
)


def _move(staging: Path, root: Path) -> None:
    for entry in sorted(staging.iterdir(), key=lambda entry: entry.name == MARK):
        if entry.name == MARK:
            sync_directory(root)
        entry.rename(root / entry.name)
    sync_directory(root)
