"""Who can read what at a site: the two directories, the keys, the socket between them, the passphrase."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from client.node_files import COURIER_FILE
from client.node_key import public_path, public_text, read_node_key, read_public_key
from client.preflight_finding import Finding, Premises, Verdict, worst
from common.errors import ConfigurationError, TrustError
from common.passphrase import PASSPHRASE_FILE_VARIABLE, PASSPHRASE_VARIABLE

PUBLIC_FILES: Final = frozenset({"enrolment.json", "consortium.json", "trust.json", "trust.sig"})
PUBLIC_SUFFIXES: Final = frozenset({".pub", ".crt"})
OTHERS: Final = 0o077
OTHERS_WRITE: Final = 0o022
MOST_NAMED: Final = 3
_NEW_KEY: Final = (
    "restore the courier's directory; else make a new key and let it be enrolled: fedward site node-key --replace"
)


def check_home(premises: Premises) -> Iterator[Finding]:
    """The agent's directory: nobody but its owner reads anything in it."""
    home = premises.home
    yield from _private_directory(home, check="home", socket=premises.socket)
    owner, own = home.stat().st_uid, os.geteuid()
    if owner != own:
        yield Finding(
            check="home",
            looked_at=f"the owner of {home}",
            verdict=Verdict.WARNING,
            found=f"it belongs to {_user(owner)} and this check runs as {_user(own)}",
            mend=f"run the check as the agent's user: sudo -u {_user(owner)} fedward site check --home {home}",
        )


def check_courier_directory(premises: Premises) -> Iterator[Finding]:
    """The courier's directory and its node key."""
    directory = premises.courier
    if not directory.is_dir():
        yield Finding(
            check="courier",
            looked_at=str(directory),
            verdict=Verdict.WRONG,
            found="there is no such directory",
            mend="name it with --courier DIR or as courier in node.toml; fedward site init makes one",
        )
        return
    yield from _private_directory(directory, check="courier", socket=None)
    settings = premises.courier_settings
    yield Finding(
        check="courier",
        looked_at=str(directory / COURIER_FILE),
        verdict=Verdict.FINE,
        found=f"gateway {settings.gateway}, courier {settings.courier!r}",
    )
    key = directory / settings.node_key
    fault, mend = _node_key_fault(key)
    yield Finding(
        check="node-key",
        looked_at=f"{key} and {public_path(key).name}",
        verdict=Verdict.WRONG if fault else Verdict.FINE,
        found=fault or "an ECDSA key on P-384 that only its owner reads",
        mend=mend,
    )


def check_users(premises: Premises) -> Iterator[Finding]:
    """Whether agent and courier are two users: only then the courier can be taken over without the data."""
    home, courier = premises.home, premises.courier
    if not courier.is_dir():
        yield Finding(
            check="users", looked_at=str(courier), verdict=Verdict.SKIPPED, found="there is no courier's directory"
        )
        return
    agent, other = home.stat().st_uid, courier.stat().st_uid
    same, looked_at = agent == other, f"the owners of {home} and {courier}"
    if same:
        yield Finding(
            check="users",
            looked_at=looked_at,
            verdict=Verdict.WARNING,
            found=f"agent and courier both run as {_user(agent)}: who takes over the courier reads the data",
            mend="fine for a trial; for patients give each a user of its own, as client/deploy shows",
        )
    else:
        yield Finding(
            check="users",
            looked_at=looked_at,
            verdict=Verdict.FINE,
            found=f"the agent is {_user(agent)}, the courier {_user(other)}",
        )
    if other == 0 or agent == 0:
        yield Finding(
            check="users",
            looked_at=looked_at,
            verdict=Verdict.WARNING,
            found="one of them is root, from whom no file mode protects anything",
            mend="fine in a container of its own; elsewhere use a user without rights",
        )


def check_socket(premises: Premises) -> Iterator[Finding]:
    """The agent's socket: short enough, open to the courier's group and to nobody else."""
    from client.preflight_socket import socket_findings

    yield from socket_findings(premises)


def check_passphrase(premises: Premises) -> Iterator[Finding]:
    """Where the passphrase of the keys comes from, and whether it opens them."""
    from client.preflight_site import opened_home

    named = premises.environment.get(PASSPHRASE_FILE_VARIABLE)
    if named:
        path = Path(named)
        found = path.stat()
        loose = stat.S_IMODE(found.st_mode) & OTHERS
        where = f"{path}, named by {PASSPHRASE_FILE_VARIABLE}"
        verdict = Verdict.WRONG if loose else Verdict.FINE
        fact, mend = f"mode {stat.S_IMODE(found.st_mode):04o}", f"chmod 600 {path}" if loose else ""
        if premises.courier.is_dir() and found.st_uid == premises.courier.stat().st_uid != premises.home.stat().st_uid:
            verdict, mend = Verdict.WRONG, f"chown {_user(premises.home.stat().st_uid)} {path}"
            fact += "; it belongs to the courier's user"
    elif premises.environment.get(PASSPHRASE_VARIABLE):
        where, verdict, fact = PASSPHRASE_VARIABLE, Verdict.WARNING, "the passphrase stands in the environment"
        mend = f"write it to a file of mode 0600 and name that in {PASSPHRASE_FILE_VARIABLE}"
    else:
        yield Finding(
            check="passphrase",
            looked_at=f"{PASSPHRASE_FILE_VARIABLE} and {PASSPHRASE_VARIABLE}",
            verdict=Verdict.SKIPPED,
            found="no passphrase is given: the keys were not opened and the data was not counted",
            mend=f"set {PASSPHRASE_FILE_VARIABLE} to look at these too; the agent cannot start without",
        )
        return
    yield Finding(check="passphrase", looked_at=where, verdict=verdict, found=fact, mend=mend)
    keys, fault = f"identity.pem and storage.key in {premises.home}", ""
    try:
        opened_home(premises)
    except TrustError as error:
        fault = error.fact
    yield Finding(
        check="passphrase",
        looked_at=keys,
        verdict=Verdict.WRONG if fault else Verdict.FINE,
        found=fault or "the passphrase opens them, and they are the keys that site.json names",
        mend="give the passphrase that fedward site init was given" if fault else "",
    )


def _private_directory(root: Path, *, check: str, socket: Path | None) -> Iterator[Finding]:
    """One finding on a directory that is its owner's alone, with everything inside."""
    owner, mode = root.stat().st_uid, stat.S_IMODE(root.stat().st_mode)
    open_ones, strangers, count = [], [], 0
    for path, found in _below(root):
        count += 1
        spared = socket is not None and path in (socket, socket.parent)
        if found.st_uid != owner:
            strangers.append(path)
        if not spared and _is_open(path, found.st_mode):
            open_ones.append(path)
    facts = [f"mode {mode:04o}"] if not mode & OTHERS else [f"mode {mode:04o} lets others in; 0700 is wanted"]
    facts += [f"the modes of {_names(open_ones, root)} would let others in"] if open_ones else []
    facts += [f"{_names(strangers, root)} not of {_user(owner)}"] if strangers else []
    facts += [f"{count} files and directories inside, all private"] if not (open_ones or strangers) else []
    mends = [f"chmod -R go-rwx {root}"] if mode & OTHERS or open_ones else []
    mends += [f"chown -R {_user(owner)} {root}"] if strangers else []
    yield Finding(
        check=check,
        looked_at=f"{root} and everything inside",
        verdict=worst((bool(mode & OTHERS or strangers), Verdict.WRONG), (bool(open_ones), Verdict.WARNING)),
        found="; ".join(facts),
        mend="; ".join(mends),
    )


def _is_open(path: Path, mode: int) -> bool:
    """Whether others may do to an entry what they may not. A directory's listing is guarded by the one above it."""
    if stat.S_ISLNK(mode):
        return False
    is_public = path.name in PUBLIC_FILES or path.suffix in PUBLIC_SUFFIXES
    return bool(stat.S_IMODE(mode) & (OTHERS_WRITE if is_public or stat.S_ISDIR(mode) else OTHERS))


def _below(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Everything below a directory, links not followed; what vanishes meanwhile is left out."""
    for directory, names, files in os.walk(root):
        for name in (*names, *files):
            path = Path(directory, name)
            try:
                yield path, path.lstat()
            except FileNotFoundError:
                continue


def _node_key_fault(key: Path) -> tuple[str, str]:
    """What is wrong with a node key, and how to mend it; empty if nothing is."""
    try:
        mode = stat.S_IMODE(key.stat().st_mode)
        if mode & OTHERS:
            return f"mode {mode:04o}; 0600 is wanted", f"chmod 600 {key}"
        own, public = public_text(read_node_key(key)), public_path(key)
        if public.exists() and read_public_key(public) != own:
            return f"{public.name} is the public key of another one", _NEW_KEY
    except FileNotFoundError:
        return "there is no such key", _NEW_KEY
    except ConfigurationError as error:
        return error.fact, _NEW_KEY
    return "", ""


def _names(paths: list[Path], root: Path) -> str:
    shown = ", ".join(str(path.relative_to(root)) for path in paths[:MOST_NAMED])
    return shown + (f" and {len(paths) - MOST_NAMED} more" if len(paths) > MOST_NAMED else "")


def _user(number: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"
