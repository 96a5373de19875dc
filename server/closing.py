"""The end of a run: the model is released, every site is told that it is over, and the result is written down."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

from common import wire_pb2 as pb
from common.canonical import canonical_json
from common.files import write_atomic
from server.aggregate import ServerState
from server.mailbox import Mailbox
from server.release import release_model
from server.rundir import PUBLIC, RESULT_FILE, PreparedRun

LONGEST_CLOSE_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What came of a run.

    Attributes:
        rounds: Rounds whose sum opened.
        attempts: Attempts made, the opened ones included.
        left: Sites that are no longer there, with the name of their error.
        exchanges: How often the sites were asked, set-up and closing included.
        bytes_up: Largest masked vector that one site sent.
    """

    rounds: int
    attempts: int
    model_digest: str
    left: dict[str, str]
    exchanges: int
    bytes_up: int


def release(run: PreparedRun, state: ServerState) -> str:
    """Publish the model so far and return its digest; nothing and an empty text before the first round."""
    if not state.rounds:
        return ""
    return release_model(
        run.root / "model",
        parameters=state.released,
        plan=run.plan,
        manifest=run.manifest,
        rounds=state.rounds,
        key=run.key,
    )


def close_at_sites(run: PreparedRun, mailbox: Mailbox, *, model_digest: str) -> None:
    """Tell every site that a node speaks for that the run is over, with the last heads that are known.

    Closing burns reservations, and only then are all last heads known; so whoever answered is told twice.
    """
    timeout_s = min(run.settings.round_timeout_s, LONGEST_CLOSE_S)
    sites = mailbox.reachable
    for _ in range(2):
        request, answered = pb.Close(model_digest=model_digest, heads=mailbox.heads()), list[str]()

        def note(site: str, _: pb.Closed, answered: list[str] = answered) -> None:
            answered.append(site)

        def close(_: str, request: pb.Close = request) -> pb.Close:
            return request

        mailbox.ask(sites, close, pb.Closed, timeout_s=timeout_s, accept=note)
        sites = answered


def write_result(
    run: PreparedRun,
    mailbox: Mailbox,
    *,
    state: ServerState,
    attempts: int,
    model_digest: str,
    left: Mapping[str, str],
    bytes_up: int,
) -> RunResult:
    """Write `result.json`, with which a run is over, and return what stands in it."""
    result = RunResult(
        rounds=state.rounds,
        attempts=attempts,
        model_digest=model_digest,
        left=dict(left),
        exchanges=mailbox.exchanges,
        bytes_up=bytes_up,
    )
    write_atomic(run.root / RESULT_FILE, canonical_json({"version": 1, **asdict(result)}) + b"\n", mode=PUBLIC)
    return result
