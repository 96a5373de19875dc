"""The logs that other programs write beside ours: their last lines for a person, and a limit to their size."""

import os
import re
import shutil
from pathlib import Path
from typing import Final

TAIL_LINES: Final = 40
LONGEST_LOG_BYTES: Final = 16 << 20

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_REQUEST_LINE = " INFO [uvicorn.access] "
_TAIL_BYTES = 1 << 18


def log_tail(path: Path, *, lines: int = TAIL_LINES) -> str:
    """The last lines of a log, without colours and without the lines on single HTTP requests; empty without a log."""
    try:
        with path.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - _TAIL_BYTES))
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    return last_lines(text, lines=lines)


def last_lines(text: str, *, lines: int = TAIL_LINES) -> str:
    """The last lines of what a program printed, without colours and request lines."""
    kept = [line for line in _COLOUR.sub("", text).splitlines() if _REQUEST_LINE not in line]
    return "\n".join(kept[-lines:])


def keep_short(path: Path, *, longest_bytes: int = LONGEST_LOG_BYTES) -> None:
    """Move a log that grew too long to `<name>.1` and go on with an empty one.

    Whoever writes the log keeps it open for appending, so it is copied and cut; a line written in between is lost.
    """
    try:
        if path.stat().st_size > longest_bytes:
            shutil.copyfile(path, path.with_name(f"{path.name}.1"))
            os.truncate(path, 0)
    except FileNotFoundError:
        return
