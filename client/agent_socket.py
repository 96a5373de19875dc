"""Who may connect to an agent: the modes of its socket and of every directory above it."""

import errno
import grp
import os
import socket as sockets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from client.agent_channel import checked_socket_path
from common.errors import ConfigurationError

_OWN_DIRECTORY, _SHARED_DIRECTORY = 0o700, 0o2750
_OWN_SOCKET, _SHARED_SOCKET = 0o600, 0o660


def prepare_socket(path: Path, *, group: str) -> Path:
    """Make the place for a socket and clear away one that a dead agent left; the absolute path.

    Args:
        group: Whose members may connect; empty for the agent's own user alone.

    Raises:
        ConfigurationError: If somebody listens there, something else lies there, the path is too long, the group does
            not exist or cannot reach it, or a directory would let others put a socket of their own in its place.
    """
    path, group_id = checked_socket_path(path), _group_id(group)
    _make_directory(path.parent, group_id)
    _check_directories(path.parent, group, group_id)
    _clear(path)
    return path


@contextmanager
def narrow_umask() -> Iterator[None]:
    """While it is held, files and sockets are made for their owner alone."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def open_to_group(path: Path, *, group: str) -> None:
    """Give a new socket its mode: 0600, or 0660 for the members of `group`."""
    group_id = _group_id(group)
    if group_id is not None:
        _give(path, group_id)
    path.chmod(_OWN_SOCKET if group_id is None else _SHARED_SOCKET)


def _group_id(group: str) -> int | None:
    if not group:
        return None
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise ConfigurationError(
            f"socket_group {group!r}: there is no such group", hint=f"Make it with: groupadd --system {group}"
        ) from error


def _make_directory(directory: Path, group_id: int | None) -> None:
    """Make it, or set the mode of one that is the agent's own and holds nothing but sockets."""
    if not directory.exists():
        directory.mkdir(parents=True, mode=_OWN_DIRECTORY)
    if not directory.is_dir():
        raise ConfigurationError(f"{directory}: this is not a directory")
    ours = directory.stat().st_uid == os.geteuid()
    if ours and all(stat.S_ISSOCK(entry.lstat().st_mode) for entry in directory.iterdir()):
        if group_id is not None:
            _give(directory, group_id)
        directory.chmod(_OWN_DIRECTORY if group_id is None else _SHARED_DIRECTORY)


def _check_directories(directory: Path, group: str, group_id: int | None) -> None:
    status = directory.stat()
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigurationError(
            f"{directory}: others may write here (mode {stat.S_IMODE(status.st_mode):04o}), "
            "so another program could take the socket's place",
            hint="Put the socket into a directory of the agent's user with mode 2750.",
        )
    if group_id is None:
        return
    for above in (directory, *directory.parents):
        status = above.stat()
        reached = status.st_mode & stat.S_IXOTH or (status.st_gid == group_id and status.st_mode & stat.S_IXGRP)
        if not reached:
            raise ConfigurationError(
                f"{above}: members of {group} cannot pass through it (mode {stat.S_IMODE(status.st_mode):04o})",
                hint="Name a socket outside the site's directory in node.toml, such as /run/fedward/agent.sock.",
            )


def _clear(path: Path) -> None:
    """Remove a socket on which nobody listens; anything else stays and is an error."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigurationError(f"{path}: something that is no socket lies where the agent would listen")
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
        code = probe.connect_ex(str(path))
    if code == errno.ECONNREFUSED:
        path.unlink()
    elif code != errno.ENOENT:
        raise ConfigurationError(f"{path}: another agent listens there", hint="One agent serves one site.")


def _give(path: Path, group_id: int) -> None:
    try:
        os.chown(path, -1, group_id)
    except PermissionError as error:
        name = grp.getgrgid(group_id).gr_name
        raise ConfigurationError(
            f"{path}: the agent's user cannot give it to the group {name}",
            hint=f"The agent's user has to be a member: usermod --append --groups {name} USER",
        ) from error
