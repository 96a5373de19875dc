"""What a ServerApp has to reach inside Flower for; nothing else at the coordinator's ServerApp touches these.

A reply can be seen before its parts have arrived. Flower then waits a whole second before it looks for them again,
which is more than a whole exchange takes. The names below hold for flwr >=1.41,<1.42.
"""

import sys
from functools import partial
from typing import Final

import httpx
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

SUPPORTED_FLOWER: Final = ">=1.41,<1.42"
FIRST_WAIT_S: Final = 0.05
LONGEST_WAIT_S: Final = 1.0
NOT_PUSHED: Final = (ObjectPushError, httpx.TransportError)
"""What a push raises when SuperLink ends or begins in the middle of it."""

_GRID_MODULE = "flwr.superlink.grid.http_grid"


def look_for_parts_soon() -> None:
    """Let this process's Grid look again for a part of a reply after 0.05 s, then twice that, up to a second.

    Nothing happens in a process that has no Grid of a SuperLink, such as a simulation's.
    """
    grid = sys.modules.get(_GRID_MODULE)
    if grid is not None and not isinstance(pull := vars(grid)["pull_objects"], partial):
        soon = partial(pull, initial_backoff=FIRST_WAIT_S, backoff_cap=LONGEST_WAIT_S)
        setattr(grid, "pull_objects", soon)  # noqa: B010 - a module has no such attribute for the type checker
