"""Whether the courier can reach the agent's socket, and nobody else can."""

import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from client.agent_channel import LONGEST_PATH_BYTES, AgentChannel
from client.preflight_finding import Finding, Premises, Verdict


def socket_findings(premises: Premises) -> Iterator[Finding]:
    """The path, the directory's mode and group, and whether both sides name the same socket."""
    socket = premises.socket
    length = len(os.fsencode(socket.absolute()))
    if length > LONGEST_PATH_BYTES:
        yield _finding(
            socket,
            Verdict.WRONG,
            f"its path has {length} bytes; a Unix socket's may have {LONGEST_PATH_BYTES}",
            'write a shorter one into node.toml and courier.toml, such as socket = "/run/fedward/agent.sock"',
        )
    if premises.courier.is_dir():
        named = premises.courier / premises.courier_settings.agent
        if os.path.realpath(named) != os.path.realpath(socket):
            yield _finding(
                socket,
                Verdict.WRONG,
                f"the agent listens here, and courier.toml names {named}",
                "let `agent` in courier.toml and `socket` in node.toml name one socket",
            )
    yield from _directory(premises, socket)


def check_agent(premises: Premises) -> Iterator[Finding]:
    """Whether the agent answers on its socket."""
    socket = premises.socket
    if not socket.exists():
        yield Finding(
            check="agent",
            looked_at=str(socket),
            verdict=Verdict.WARNING,
            found="no agent listens here: it is not running",
            mend="fedward site up, or systemctl start fedward-agent",
        )
        return
    with AgentChannel(socket) as channel:
        status = channel.status()
    same = status.site == premises.site.name
    yield Finding(
        check="agent",
        looked_at=str(socket),
        verdict=Verdict.FINE if same else Verdict.WRONG,
        found=f"the agent of {status.site!r} answers, Fedward {status.version}",
        mend="" if same else f"that is not {premises.site.name!r}: let node.toml name a socket of its own",
    )


def _directory(premises: Premises, socket: Path) -> Iterator[Finding]:
    directory, group = socket.parent, premises.node.socket_group
    if not directory.is_dir():
        yield _finding(
            directory, Verdict.FINE, "the agent makes this directory when it starts" if not group else "not there yet"
        )
        return
    found = directory.stat()
    mode = stat.S_IMODE(found.st_mode)
    if not group:
        loose = mode & 0o077
        yield _finding(
            directory,
            Verdict.WRONG if loose else Verdict.FINE,
            f"mode {mode:04o}; only the agent's own user may connect",
            f"chmod 700 {directory}" if loose else "",
        )
        return
    try:
        wanted = grp.getgrnam(group)
    except KeyError:
        yield _finding(directory, Verdict.WRONG, f"there is no group {group!r}", f"groupadd --system {group}")
        return
    if found.st_gid != wanted.gr_gid or mode & 0o007 or not mode & 0o010:
        yield _finding(
            directory,
            Verdict.WRONG,
            f"mode {mode:04o}, group {_group(found.st_gid)}; 2750 and group {group} are wanted",
            f"chgrp {group} {directory} && chmod 2750 {directory}",
        )
    elif _is_inside(directory, premises.home):
        yield _finding(
            directory,
            Verdict.WRONG,
            f"group {group} may connect, but the socket lies in {premises.home}, which only the agent may enter",
            'write socket = "/run/fedward/agent.sock" into node.toml and the same into courier.toml',
        )
    elif not _may_connect(premises, wanted):
        yield _finding(
            directory,
            Verdict.WRONG,
            f"the courier's user is not in the group {group}",
            f"usermod --append --groups {group} {pwd.getpwuid(premises.courier.stat().st_uid).pw_name}",
        )
    else:
        yield _finding(directory, Verdict.FINE, f"mode {mode:04o}, group {group}")


def _may_connect(premises: Premises, group: grp.struct_group) -> bool:
    if not premises.courier.is_dir():
        return True
    try:
        user = pwd.getpwuid(premises.courier.stat().st_uid)
    except KeyError:
        return False
    return user.pw_uid == 0 or user.pw_gid == group.gr_gid or user.pw_name in group.gr_mem


def _is_inside(path: Path, directory: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(directory))


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _finding(path: Path, verdict: Verdict, found: str, mend: str = "") -> Finding:
    return Finding(check="socket", looked_at=str(path), verdict=verdict, found=found, mend=mend)
