"""The program's log: JSON lines whose fields are allow-listed, so that no record, path or key can slip into it."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, TextIO

FIELDS: Final = frozenset(
    {"site", "run", "kind", "round", "attempt", "rounds", "cohort", "error", "seq", "digest", "engine", "reason"}
)


class Journal:
    """Writes one JSON object a line; refuses a field that is not on the list.

    Values are strings, integers and lists of site names; strings are cut at 200 characters.
    """

    def __init__(self, stream: TextIO, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._stream = stream
        self._clock = clock

    def write(self, event: str, **fields: str | int | list[str]) -> None:
        """Log one event; raises ValueError for a field that is not allow-listed."""
        strangers = set(fields) - FIELDS
        if strangers:
            raise ValueError(f"log fields {sorted(strangers)} are not among {sorted(FIELDS)}")
        shown = {name: value[:200] if isinstance(value, str) else value for name, value in fields.items()}
        time = self._clock().isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._stream.write(json.dumps({"time": time, "event": event, **shown}, ensure_ascii=True) + "\n")
        self._stream.flush()
