"""A run's log for people: `log.jsonl` line by line, while it grows if they wish."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from common.terminal import one_line
from server.run_status import ENDED, asks_flower, run_status
from server.rundir import LOG_FILE

_LOOK_AGAIN_S: Final = 0.5


def log_lines(root: Path, run_dir: Path, *, follow: bool) -> Iterator[str]:
    """Every whole line of the log; with `follow` until the run ended and all was said."""
    path, flower_runs, position = run_dir / LOG_FILE, asks_flower(root), 0
    while True:
        ended = not follow or run_status(run_dir, flower_runs=flower_runs).state in ENDED
        if path.exists():
            with path.open("rb") as stream:
                stream.seek(position)
                for line in stream:
                    if line.endswith(b"\n"):
                        position += len(line)
                        yield line.decode(errors="replace").rstrip("\n")
        if ended:
            return
        time.sleep(_LOOK_AGAIN_S)


def log_text(line: str) -> str:
    """One line as people read it: time, event, and the rest as `name=value`."""
    try:
        fields = dict(json.loads(line))
        time_of, event = fields.pop("time"), fields.pop("event")
    except (ValueError, KeyError, TypeError):
        return one_line(line)
    fields.pop("run", None)
    shown = (f"{name}={','.join(value) if isinstance(value, list) else value}" for name, value in fields.items())
    return one_line(" ".join([str(time_of), str(event), *shown]))
