"""`up.json`: where the parts of the running coordinator are, for the commands that are typed beside it."""

from pathlib import Path
from typing import Final, Literal

from common.canonical import canonical_json
from common.errors import BackendFailed, ConfigurationError
from common.files import write_atomic
from common.settings import Settings, parse_json_settings
from server.lock import exclusive

UP_FILE: Final = "up.json"
UP_LOCK: Final = "up.lock"


class UpState(Settings):
    """The parts of a coordinator that is up.

    Attributes:
        pid: Of `fedward server up`.
        superlink: `127.0.0.1:port`.
        gateway: `host:port` where the gateway listens.
        api: `host:port` of the API; empty if it is off.
    """

    version: Literal[1] = 1
    pid: int
    superlink: str
    gateway: str
    api: str


def write_up(root: Path, state: UpState) -> None:
    """Say where the parts are; the caller holds `up.lock`."""
    write_atomic(root / UP_FILE, canonical_json(state.model_dump(mode="json")) + b"\n")


def read_up(root: Path) -> UpState | None:
    """The running coordinator; None if none is up. What one that was killed left behind does not count."""
    try:
        with exclusive(root / UP_LOCK, timeout_s=0.0):
            return None
    except ConfigurationError:
        pass
    try:
        return parse_json_settings((root / UP_FILE).read_bytes(), UpState, source=UP_FILE)
    except FileNotFoundError:
        return None


def require_up(root: Path) -> UpState:
    """The running coordinator; raises BackendFailed if none is up."""
    state = read_up(root)
    if state is None:
        raise BackendFailed(
            f"{root}: the coordinator is not up, or not ready yet",
            hint=f"start it in another terminal: fedward server up --home {root}",
        )
    return state
