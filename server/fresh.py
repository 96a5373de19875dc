"""Documents that other processes replace: read again when the file is another one."""

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

Document = TypeVar("Document")


class Fresh(Generic[Document]):
    """What a file says now. Files are replaced whole, so a new one has another inode or time."""

    def __init__(self, path: Path, read: Callable[[], Document]) -> None:
        self._path, self._read = path, read
        self._kept: tuple[tuple[int, ...], Document] | None = None

    def get(self) -> Document:
        """The document; raises what `read` raises, each time until it can be read again."""
        stamp = self._stamp()
        if self._kept is None or self._kept[0] != stamp:
            self._kept = None
            self._kept = (stamp, self._read())
        return self._kept[1]

    def _stamp(self) -> tuple[int, ...]:
        try:
            found = self._path.stat()
        except OSError:
            return ()
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
