"""How the tests with real processes wait: for what has to come, and never for a time."""

import time
from collections.abc import Callable
from typing import TypeVar

PATIENCE_S = 90.0
LOOK_AGAIN_S = 0.05

Found = TypeVar("Found")


def wait_until(
    happens: Callable[[], Found],
    *,
    what: str,
    timeout_s: float = PATIENCE_S,
    says: Callable[[], str] = lambda: "",
    pause_s: float = LOOK_AGAIN_S,
) -> Found:
    """The first true value of `happens`; raises TimeoutError with what there is to say if there is none in time."""
    deadline = time.monotonic() + timeout_s
    while not (found := happens()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}\n{says()}")
        time.sleep(pause_s)
    return found
