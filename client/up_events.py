"""What agent and courier write into their logs, as one line an event for whoever watches `fedward site up`."""

import json
import re
from pathlib import Path
from typing import Any, Final

MOST_BYTES: Final = 1 << 20
LONGEST_LINE: Final = 400

_TIME = re.compile(r"^\d{4}-\d\d-\d\dT\S+Z ")
_OF_AN_EVENT: Final = ("run", "round", "attempt", "kind", "error", "reason")


class LogFollower:
    """Hands out the lines that were written to a log since the last look, from now on."""

    def __init__(self, name: str, path: Path) -> None:
        """Begin at the log's present end; there may be no log yet."""
        self._name = name
        self._path = path
        self._read_bytes = path.stat().st_size if path.exists() else 0

    def new_lines(self) -> list[str]:
        """Whole lines since the last look, oldest first; of very much at once only the end."""
        try:
            size_bytes = self._path.stat().st_size
            if size_bytes < self._read_bytes:  # it was cut, since it had grown too long
                self._read_bytes = 0
            with self._path.open("rb") as stream:
                stream.seek(max(self._read_bytes, size_bytes - MOST_BYTES))
                content = stream.read(MOST_BYTES)
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._read_bytes = max(self._read_bytes, size_bytes - MOST_BYTES) + len(whole)
        return [
            f"{self._name}: {shown}"
            for line in whole.splitlines()
            if (shown := event_text(line.decode(errors="replace")))
        ]


def event_text(line: str) -> str:
    """A line of a log for people: an event of the journal in words, anything else without its time."""
    try:
        event = json.loads(line)
    except ValueError:
        return _TIME.sub("", line).strip()[:LONGEST_LINE]
    return _words(event)[:LONGEST_LINE] if isinstance(event, dict) else line[:LONGEST_LINE]


def _words(event: dict[str, Any]) -> str:
    facts = [f"{name} {event[name]}" for name in _OF_AN_EVENT if event.get(name) not in (None, "")]
    return ", ".join([str(event.get("event", "")), *facts])
