"""One writer at a time: a lock between the commands and processes of one machine."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from common.errors import ConfigurationError

LONGEST_WAIT_S: Final = 30.0
_PAUSE_S: Final = 0.02


@contextmanager
def exclusive(path: Path, *, timeout_s: float = LONGEST_WAIT_S) -> Iterator[None]:
    """Hold the lock file `path` while the block runs; the system lets go of it when the process dies.

    Raises:
        ConfigurationError: If the file cannot be opened, or another holds the lock for `timeout_s` seconds.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be opened: {error.strerror}") from error
    try:
        _take(handle, path, deadline=time.monotonic() + timeout_s, timeout_s=timeout_s)
        yield
    finally:
        os.close(handle)


def _take(handle: int, path: Path, *, deadline: float, timeout_s: float) -> None:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                raise ConfigurationError(
                    f"{path}: another command holds this lock since {timeout_s:g} s", hint="wait for it, or end it"
                ) from error
        time.sleep(_PAUSE_S)
