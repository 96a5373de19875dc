"""One run from the coordinator's side: sites join, keys are exchanged, rounds are summed, the run is closed.

It sees masked vectors and their sum, never one site's update. A site that is missing or refuses is left out and the
round is tried again with the rest, as long as a cohort and spare attempts are left.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from common import wire_pb2 as pb
from common.canonical import canonical_json
from common.crypto.masking import mask_context
from common.crypto.ring import Grid
from common.errors import FederationError, QuorumLost, SecureSumAborted, TrustError
from common.files import write_atomic
from common.journal import Journal
from common.model import initial_parameters
from common.parameters import parameters_digest, parameters_to_bytes, vector_from_bytes
from common.passphrase import read_passphrase
from common.privacy.witness import SignedHead, WitnessBook
from common.wire import (
    ANY_SITE,
    COORDINATOR,
    Body,
    head_from_message,
    head_message,
    read_body,
    read_envelope,
    verify_envelope,
    write_envelope,
)
from server.aggregate import ServerState, descent_direction, server_step
from server.cohort import Cohort
from server.release import release_model
from server.rundir import PreparedRun, load_run
from server.secagg import SealedSum

RESULT_FILE: Final = "result.json"


class Exchange(Protocol):
    """Asks nodes and collects their answers; `server.exchange.GridExchange` does it through Flower."""

    def node_ids(self) -> list[int]:
        """The nodes that are connected."""
        ...

    def exchange(
        self,
        requests: Mapping[int, bytes],
        *,
        timeout_s: float,
        on_reply: Callable[[int, bytes | None], None] | None = None,
    ) -> dict[int, bytes | None]:
        """One reply or None for each node."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What came of a run.

    Attributes:
        rounds: Rounds whose sum opened.
        attempts: Attempts made, the opened ones included.
        left: Sites that are no longer there, with the name of their error.
        exchanges: Messages to each site, set-up and closing included.
        bytes_up: Largest number of bytes that one site sent in one round.
    """

    rounds: int
    attempts: int
    model_digest: str
    left: dict[str, str]
    exchanges: int
    bytes_up: int


def run_from_directory(
    run_dir: Path, exchange: Exchange, *, passphrase: bytes | None = None, journal: Journal | None = None
) -> RunResult:
    """Run what `prepare_run` prepared; the key's passphrase comes from this machine's environment unless given."""
    secret = read_passphrase(os.environ) if passphrase is None else passphrase
    return Coordinator(load_run(run_dir, passphrase=secret), exchange, journal=journal).run()


class Coordinator:
    """Runs one prepared run over an exchange."""

    def __init__(self, run: PreparedRun, exchange: Exchange, *, journal: Journal | None = None) -> None:
        self._run = run
        self._exchange = exchange
        self._journal = journal
        self._nodes: dict[str, int] = {}
        self._joined: dict[str, bytes] = {}
        self._ciphertexts: dict[str, list[pb.Ciphertext]] = defaultdict(list)
        self._witnesses = WitnessBook(run.root / "witnesses.jsonl", holder=COORDINATOR)
        self._heads: dict[str, SignedHead] = {}
        self._refused: dict[str, str] = {}
        self._exchanges = 0
        self._bytes_up = 0

    def run(self) -> RunResult:
        """Train to the end of the plan, release the model, close the run at every site.

        Raises:
            QuorumLost: If the sites or the attempts run out. The run is closed first, so that reservations are burned
                and the last heads witnessed, and the model so far is released if a round was completed.
        """
        manifest = self._run.manifest
        state = ServerState.start(
            initial_parameters(
                self._run.plan.model, len(self._run.plan.task.classes), seed=self._run.settings.seed
            )
        )
        attempts = 0
        cohort = Cohort(manifest.names, minimum=manifest.minimum_cohort)
        failure: FederationError | None = None
        try:
            self._set_up(cohort)
            for round_number in range(1, manifest.rounds + 1):
                cohort.next_round()
                state, attempts = self._round(state, cohort, round_number, attempts)
                self._keep_model(state)
                self._log("round", round=round_number, attempt=attempts)
        except (QuorumLost, SecureSumAborted) as error:
            failure = error
        return self._finish(state, attempts, cohort, failure)

    def _set_up(self, cohort: Cohort) -> None:
        run, manifest = self._run, self._run.manifest
        offer = pb.Offer(plan=canonical_json(run.plan.to_json()), manifest=canonical_json(manifest.to_json()))
        request = self._envelope(offer, ANY_SITE)
        timeout_s = run.settings.setup_timeout_s
        replies = self._exchange.exchange(dict.fromkeys(self._exchange.node_ids(), request), timeout_s=timeout_s)
        self._exchanges += 1
        for node, data in replies.items():
            if data is not None:
                self._welcome(node, data)
        self._drop(cohort, absent="NotConnected")
        joined = cohort.select()
        envelopes = [self._joined[site] for site in joined]
        answers = self._ask(
            joined, lambda _: pb.Keys(joined=envelopes, heads=self._head_messages()), pb.Encapsulated, timeout_s
        )
        for answer in answers.values():
            for item in answer.ciphertexts:
                self._ciphertexts[item.recipient].append(item)
        for site in set(joined) - set(answers):
            cohort.refused(site, self._refused.get(site, "NoReply"))
        cohort.select()

    def _welcome(self, node: int, data: bytes) -> None:
        """Take in one reply to the offer; who it is from is what its signature proves, not what a node says."""
        try:
            envelope = read_envelope(data)
            reply = self._open(envelope, envelope.sender)
            if isinstance(reply, pb.Refused):
                return
            if not isinstance(reply, pb.Joined) or reply.manifest_digest != self._run.manifest.digest:
                raise TrustError(f"{envelope.sender} did not agree to the manifest")
        except TrustError as error:
            self._log("refused", error=type(error).__name__)
            return
        self._nodes[envelope.sender] = node
        self._joined[envelope.sender] = data

    def _drop(self, cohort: Cohort, *, absent: str) -> None:
        for site in self._run.manifest.names:
            if site not in self._joined:
                cohort.refused(site, self._refused.get(site, absent))

    def _round(
        self, state: ServerState, cohort: Cohort, round_number: int, attempts: int
    ) -> tuple[ServerState, int]:
        run, manifest = self._run, self._run.manifest
        allowed = manifest.rounds + manifest.spare_attempts
        parameters = state.current.astype(np.float32)
        attempt = 0
        while True:
            chosen = cohort.select()
            if attempts >= allowed:
                raise QuorumLost(
                    f"round {round_number}: all {allowed} attempts of the plan are used",
                    hint="plan more spare_attempts; the privacy budget is calibrated for them",
                )
            attempts, attempt = attempts + 1, attempt + 1
            total = self._attempt(chosen, cohort, parameters, round_number, attempt)
            if total is not None:
                nominal = sum(manifest.entry(site).nominal_patients for site in chosen)
                direction = descent_direction(
                    total, mode=manifest.mode, cohort_nominal=nominal, nominal=manifest.nominal_patients
                )
                return server_step(state, direction, run.plan.training), attempts

    def _attempt(
        self,
        chosen: list[str],
        cohort: Cohort,
        parameters: NDArray[np.float32],
        round_number: int,
        attempt: int,
    ) -> NDArray[np.float64] | None:
        """The opened sum over `chosen`; None, and the cohort told, if anyone is missing."""
        run, manifest = self._run, self._run.manifest
        context = mask_context(
            manifest_digest=manifest.digest,
            kind="train",
            round_number=round_number,
            attempt=attempt,
            cohort=chosen,
            model_digest=parameters_digest(parameters),
        )
        grid = Grid(
            scale=manifest.scale,
            clamp=manifest.clamp,
            dimension=manifest.dimension,
            clipping_norm=run.plan.privacy.clipping_norm,
        )
        sealed = SealedSum(cohort=chosen, context="sha256:" + context.hex(), grid=grid)
        body = parameters_to_bytes(parameters)
        heads = self._head_messages()

        def request(site: str) -> pb.Round:
            return pb.Round(
                round=round_number,
                attempt=attempt,
                cohort=chosen,
                parameters=body,
                ciphertexts=self._ciphertexts.get(site, []),
                heads=heads,
            )

        def add(site: str, answer: pb.Masked) -> None:
            if (answer.round, answer.attempt) != (round_number, attempt):
                raise SecureSumAborted(f"{site} answered another attempt")
            sealed.add(site, context=answer.context, vector=vector_from_bytes(answer.vector, dimension=grid.dimension))
            self._ciphertexts.pop(site, None)
            self._bytes_up = max(self._bytes_up, len(answer.vector))

        self._ask(chosen, request, pb.Masked, run.settings.round_timeout_s, add)
        for site in sealed.missing:
            if site in self._refused:
                cohort.refused(site, self._refused[site])
            else:
                cohort.silent(site)
        return None if sealed.missing else sealed.open()

    def _finish(
        self, state: ServerState, attempts: int, cohort: Cohort, failure: FederationError | None
    ) -> RunResult:
        run = self._run
        digest = ""
        if state.rounds:
            digest = release_model(
                run.root / "model",
                parameters=state.released,
                plan=run.plan,
                manifest=run.manifest,
                rounds=state.rounds,
                key=run.key,
            )
        self._close(digest)
        result = RunResult(
            rounds=state.rounds,
            attempts=attempts,
            model_digest=digest,
            left=dict(cohort.left),
            exchanges=self._exchanges,
            bytes_up=self._bytes_up,
        )
        document = {"version": 1, **{name: getattr(result, name) for name in RunResult.__slots__}}
        write_atomic(run.root / RESULT_FILE, canonical_json(document) + b"\n", mode=0o644)
        if failure is not None:
            raise failure
        return result

    def _close(self, model_digest: str) -> None:
        """Close twice: the second message carries every site's last head to every other site."""
        for _ in range(2):
            present = sorted(self._nodes)
            if present:
                self._ask(
                    present,
                    lambda _: pb.Close(model_digest=model_digest, heads=self._head_messages()),
                    pb.Closed,
                    self._run.settings.round_timeout_s,
                )

    def _ask(
        self,
        sites: Iterable[str],
        request: Callable[[str], Message],
        kind: type[Body],
        timeout_s: float,
        accept: Callable[[str, Body], None] | None = None,
    ) -> dict[str, Body]:
        """Ask sites by name and return the answers of the right kind; refusals are noted in `_refused`.

        With `accept` an answer is handed over as it arrives and not kept; what `accept` refuses counts as a refusal.
        """
        site_of = {self._nodes[site]: site for site in sites}
        requests = {node: self._envelope(request(site), site) for node, site in site_of.items()}
        answers: dict[str, Body] = {}

        def on_reply(node: int, data: bytes | None) -> None:
            if data is None:
                return
            site = site_of[node]
            try:
                reply = self._open(read_envelope(data), site)
                if isinstance(reply, pb.Refused):
                    return
                if not isinstance(reply, kind):
                    raise TrustError(f"{site} answered with another kind of message")
                if accept is None:
                    answers[site] = reply
                else:
                    accept(site, reply)
            except (TrustError, SecureSumAborted) as error:
                self._refused[site] = type(error).__name__
                self._log("refused", site=site, error=type(error).__name__)

        self._exchange.exchange(requests, timeout_s=timeout_s, on_reply=on_reply)
        self._exchanges += 1
        return answers

    def _open(self, envelope: pb.Envelope, site: str) -> Message:
        """Verify one reply and keep its head; a refusal is noted by the error's name."""
        run = self._run
        if site not in run.manifest.names:
            raise TrustError(f"{site[:63]!r} is not in the roster")
        key = run.trust.site_key(site)
        verify_envelope(envelope, key=key, run_id=run.manifest.run_id, sender=site, recipient=COORDINATOR)
        kinds = {"joined": pb.Joined, "encapsulated": pb.Encapsulated, "masked": pb.Masked, "closed": pb.Closed}
        if envelope.kind == "refused":
            refused = read_body(envelope, pb.Refused)
            self._refused[site] = refused.name[:40]
            self._log("refused", site=site, error=refused.name[:40])
            self._keep_head(site, refused.head)
            return refused
        if envelope.kind not in kinds:
            raise TrustError(f"{site} sent a {envelope.kind!r} message")
        body = read_body(envelope, kinds[envelope.kind])
        self._keep_head(site, body.head)
        return body

    def _keep_head(self, site: str, message: pb.Head) -> None:
        head = head_from_message(message)
        if head.site != site:
            raise TrustError(f"{site} sent the head of another site's ledger")
        head.verify(self._run.trust.site_key(site))
        self._witnesses.record(head)
        self._heads[site] = head

    def _head_messages(self) -> list[pb.Head]:
        return [head_message(self._heads[site]) for site in sorted(self._heads)]

    def _envelope(self, body: Message, recipient: str) -> bytes:
        return write_envelope(
            body, key=self._run.key, run_id=self._run.manifest.run_id, sender=COORDINATOR, recipient=recipient
        )

    def _keep_model(self, state: ServerState) -> None:
        if self._run.settings.keep_models:
            path = self._run.model_path(state.rounds)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(parameters_to_bytes(state.released))

    def _log(self, event: str, **fields: str | int) -> None:
        if self._journal is not None:
            self._journal.write(event, run=self._run.manifest.run_id, **fields)
