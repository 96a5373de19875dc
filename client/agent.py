"""The site's side of the protocol: signed requests in, signed replies out, nothing else.

A site answers an offer, a key exchange, each (round, attempt) of training and of evaluation, and the closing of a run.
Everything it must remember is on disk before it answers, so an agent may be closed and opened between any two messages.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar

from google.protobuf.message import Message

from client.attempt import Attempt, answer_attempt, answer_evaluation, burn_reserved, read_attempt
from client.data.registry import DataParts, check_data, check_enough, check_populations, load_parts
from client.guard import check_attempt, check_offer
from client.handshake import exchange_keys, learn_secrets, peer_keys, read_joined, signed_ciphertexts
from client.home import SiteHome, open_home
from client.memory import give_back_freed_memory
from client.plans import keep_offer
from client.runstate import RUN_ID, RunState, forget_secrets, joined, load_state, save_state
from client.training.batch import normalised
from client.training.engine import ClippedSumEngine, choose_engine
from client.update import expected_records
from common import wire_pb2 as pb
from common.crypto.masking import RunKeys
from common.errors import ConfigurationError, FederationError, LedgerCorrupt, TrustError
from common.exits import NAMES_THAT_TRAVEL, UNAVAILABLE, PublicSizes, check_reply
from common.journal import Journal
from common.plan import MAXIMUM_SITES, Manifest, ModelSection, TrainingPlan
from common.policy import check_hours, local_time
from common.privacy.budget import PrivacyUnit
from common.privacy.ledger import BudgetLedger
from common.privacy.witness import SignedHead, WitnessBook
from common.settings import parse_json_settings
from common.wire import (
    ANY_SITE,
    COORDINATOR,
    head_from_message,
    head_message,
    read_body,
    read_envelope,
    verify_envelope,
    write_envelope,
)

Device = Literal["auto", "cpu", "cuda"]
EngineChoice = Callable[[ModelSection, int], tuple[ClippedSumEngine, str]]
_Offered = TypeVar("_Offered", TrainingPlan, Manifest)


class SiteAgent:
    """A site that answers messages. Open it with `SiteAgent.open`, close it when done; use it from one thread."""

    def __init__(
        self,
        home: SiteHome,
        ledger: BudgetLedger,
        witnesses: WitnessBook,
        *,
        journal: Journal | None,
        device: Device,
        engines: EngineChoice | None = None,
        clock: Callable[[], datetime] = local_time,
    ) -> None:
        self._home = home
        self._ledger = ledger
        self._witnesses = witnesses
        self._journal = journal
        self._device: Device = device
        self._engine_choice = engines
        self._clock = clock
        self._states: dict[str, RunState] = {}
        self._parts: dict[str, DataParts] = {}
        self._engines: dict[str, ClippedSumEngine] = {}
        self._closing = ExitStack()

    @classmethod
    def open(
        cls,
        root: Path,
        *,
        passphrase: bytes,
        journal: Journal | None = None,
        device: Device = "auto",
        engines: EngineChoice | None = None,
        clock: Callable[[], datetime] = local_time,
    ) -> Self:
        """Rebuild the agent from its directory, holding the ledger's lock until it is closed.

        Args:
            device: Where gradients of `mlp` and `cnn` heads are computed; `auto` is the GPU where there is one.
            engines: Chooses the engine of each run, with its reason, in place of `choose_engine`. For audits that plant
                canaries: only who opens the agent in its own process can give it; no plan, policy or message can.
            clock: The machine's local time with its zone, for the policy's hours.

        Raises:
            ConfigurationError: If no site lives there or another process holds it.
            TrustError: If the passphrase is wrong. LedgerCorrupt: If the ledger does not verify.
        """
        home = open_home(root, passphrase=passphrase)
        with ExitStack() as opening:
            witnesses = WitnessBook(home.witness_path, holder=home.name)
            heads = witnesses.heads(home.name)
            ledger = opening.enter_context(
                BudgetLedger.open(home.ledger_path, site=home.name, key=home.identity, heads=heads)
            )
            check_populations(home, ledger)
            agent = cls(home, ledger, witnesses, journal=journal, device=device, engines=engines, clock=clock)
            agent._closing = opening.pop_all()
        return agent

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the lock back."""
        self._closing.close()

    @property
    def home(self) -> SiteHome:
        """The site's directory and keys."""
        return self._home

    @property
    def ledger(self) -> BudgetLedger:
        """The site's ledger."""
        return self._ledger

    def handle(self, data: bytes) -> bytes:
        """Answer one message. Never raises for what came from outside: a refusal is a reply, by its name alone.

        Whoever is not the pinned coordinator is told nothing more: no run, no head of the ledger.
        """
        run_id = ""
        try:
            envelope = read_envelope(data)
            recipient = ANY_SITE if envelope.kind == "offer" else self._home.name
            verify_envelope(
                envelope,
                key=self._home.trust().coordinator_key,
                run_id=envelope.run_id,
                sender=COORDINATOR,
                recipient=recipient,
            )
            if not RUN_ID.fullmatch(envelope.run_id):
                raise TrustError("a message names a run by something that is no run identifier")
            run_id = envelope.run_id
            self._log(envelope.kind, run_id)
            reply = self._handler(envelope.kind)(envelope)
            check_reply(reply, self._public_sizes(run_id))
        except Exception as error:  # an agent outlives any one request; the name alone goes out, the rest stays here
            reply = self._refusal(error, run_id)
        return write_envelope(
            reply, key=self._home.identity, run_id=run_id, sender=self._home.name, recipient=COORDINATOR
        )

    def _public_sizes(self, run_id: str) -> PublicSizes:
        state = self._states.get(run_id)
        return PublicSizes.of(state.manifest) if state is not None else PublicSizes()

    def _handler(self, kind: str) -> Callable[[pb.Envelope], Message]:
        handlers: dict[str, Callable[[pb.Envelope], Message]] = {
            "offer": self._join,
            "keys": self._encapsulate,
            "round": self._answer,
            "evaluate": self._evaluate,
            "close": self._close_run,
        }
        if kind not in handlers:
            raise TrustError("a coordinator does not send this kind of message")
        return handlers[kind]

    def _join(self, envelope: pb.Envelope) -> pb.Joined:
        offer = read_body(envelope, pb.Offer)
        plan = self._offered(offer.plan, TrainingPlan, run_id=envelope.run_id)
        manifest = self._offered(offer.manifest, Manifest, run_id=envelope.run_id)
        if manifest.run_id != envelope.run_id:
            raise TrustError("the manifest names another run than its message")
        self._witness(offer.heads)
        if not joined(self._home, manifest.run_id):
            self._remember(self._new_state(plan, manifest))
        state = self._state(manifest.run_id)
        if state.manifest != manifest:
            raise TrustError(f"run {manifest.run_id!r} was joined under another manifest")
        keys = state.keys.public
        others = (self._witnesses.latest(name) for name in manifest.names if name != self._home.name)
        return pb.Joined(
            manifest_digest=manifest.digest,
            x25519=keys.x25519,
            mlkem=keys.mlkem,
            head=self._head(manifest.run_id),
            held=[head_message(head) for head in others if head is not None],
        )

    def _offered(self, content: bytes, kind: type[_Offered], *, run_id: str) -> _Offered:
        """A document of an offer; the log names what does not fit in it, since the refusal's name does not."""
        try:
            return parse_json_settings(content, kind, source=f"the offered {kind.__name__}")
        except ConfigurationError as error:
            self._log("offer", run_id, reason=error.fact)
            raise

    def _new_state(self, plan: TrainingPlan, manifest: Manifest) -> RunState:
        keep_offer(self._home, plan, manifest, received=self._clock())
        population = check_offer(self._home, self._ledger, plan, manifest)
        policy = self._home.policy()
        check_hours(policy, self._clock())
        check_data(self._home, plan, population, minimum_patients=policy.minimum_patients)
        return RunState(
            plan=plan,
            manifest=manifest,
            population=population,
            keys=RunKeys.generate(),
            minimum_patients=policy.minimum_patients,
        )

    def _encapsulate(self, envelope: pb.Envelope) -> pb.Encapsulated:
        request = read_body(envelope, pb.Keys)
        state = self._state(envelope.run_id)
        self._witness(request.heads)
        trust = self._home.trust()
        agreed = [read_joined(trust, state.manifest, data) for data in request.joined]
        self._witness([body.head for _, body in agreed])
        for _, body in agreed:
            self._witness([head for head in body.held if head.site == self._home.name][:1])
        state = self._remember(exchange_keys(self._home, state, peer_keys(self._home, state, agreed)))
        return pb.Encapsulated(ciphertexts=signed_ciphertexts(self._home, state), head=self._head(envelope.run_id))

    def _answer(self, envelope: pb.Envelope) -> pb.Masked:
        state, attempt = self._attempt(envelope, pb.Round)
        batch = self._data(state).training
        answer = answer_attempt(self._home, self._ledger, state, attempt, engine=self._engine(state), batch=batch)
        if state.plan.model.head != "linear":
            give_back_freed_memory()  # which the engine keeps from step to step
        answer.head.CopyFrom(self._head(envelope.run_id))
        return answer

    def _evaluate(self, envelope: pb.Envelope) -> pb.Histogram:
        state, attempt = self._attempt(envelope, pb.Evaluate)
        answer = answer_evaluation(self._home, self._ledger, state, attempt, batch=self._data(state).held_out)
        answer.head.CopyFrom(self._head(envelope.run_id))
        return answer

    def _attempt(self, envelope: pb.Envelope, kind: type[pb.Round] | type[pb.Evaluate]) -> tuple[RunState, Attempt]:
        """A request to compute, checked; the secrets that came with it are kept."""
        request = read_body(envelope, kind)
        state = self._state(envelope.run_id)
        self._witness(request.heads)
        state = self._remember(learn_secrets(self._home, state, request.ciphertexts))
        attempt = read_attempt(self._home, state, request)
        check_attempt(self._home, self._ledger, state.plan, state.manifest, state.population, now=self._clock())
        self._check_raised_minimum(state)
        return state, attempt

    def _check_raised_minimum(self, state: RunState) -> None:
        """Hold a run to more patients only if the site has asked for more since it joined.

        Records that went missing since are no reason: the answer is then noise of the promised size, and tells nobody.
        """
        minimum = self._home.policy().minimum_patients
        if state.minimum_patients is not None and minimum > state.minimum_patients:
            check_enough(self._home, self._data(state), minimum_patients=minimum)

    def _close_run(self, envelope: pb.Envelope) -> pb.Closed:
        request = read_body(envelope, pb.Close)
        state = self._state(envelope.run_id)
        self._witness(request.heads)
        burn_reserved(self._ledger, state)
        self._remember(forget_secrets(state))
        return pb.Closed(head=self._head(envelope.run_id))

    def _witness(self, heads: Sequence[pb.Head]) -> None:
        """Keep what others' ledgers were said to end with; refuse to run behind what was said of this one.

        A site that left the consortium in the middle of a run stays in its roster; what it signed counts no more.
        """
        trust, others = self._home.trust(), []
        pinned = [message for message in heads if message.site in trust.sites]
        if len(pinned) > len(trust.sites) or len(heads) > MAXIMUM_SITES:
            raise TrustError(f"a message has {len(heads)} heads, there are {len(trust.sites)} sites")
        for message in pinned:
            head = head_from_message(message)
            head.verify(trust.site_key(head.site))
            if head.site == self._home.name:
                self._confirm(head)
            else:
                others.append(head)
        self._witnesses.record(*others)

    def _confirm(self, head: SignedHead) -> None:
        """Hold the ledger against what this site once signed; what it cannot match is kept, for the next start too."""
        try:
            self._ledger.confirm(head)
        except LedgerCorrupt:
            self._witnesses.record(head)
            raise

    def _head(self, run_id: str) -> pb.Head:
        return head_message(self._ledger.signed_head(run_id))

    def _state(self, run_id: str) -> RunState:
        if run_id not in self._states:
            self._states[run_id] = load_state(self._home, run_id)
        return self._states[run_id]

    def _remember(self, state: RunState) -> RunState:
        """Seal a state that changed; a run's identifier is checked before it ever names a directory."""
        run_id = state.manifest.run_id
        if self._states.get(run_id) is not state:
            save_state(self._home, state)
            self._states[run_id] = state
        return state

    def _data(self, state: RunState) -> DataParts:
        """The run's records, normalised by the plan's public constants; read once and kept while the agent is open."""
        run_id, plan = state.manifest.run_id, state.plan
        if run_id not in self._parts:
            held_out = plan.evaluation.held_out
            unit, classes = PrivacyUnit(plan.privacy.unit), len(plan.task.classes)
            parts = load_parts(self._home, state.population, classes=classes, held_out=held_out, unit=unit)
            self._parts[run_id] = DataParts(
                training=normalised(parts.training, plan.normalisation),
                held_out=normalised(parts.held_out, plan.normalisation),
                patients=parts.patients,
            )
        return self._parts[run_id]

    def _engine(self, state: RunState) -> ClippedSumEngine:
        run_id = state.manifest.run_id
        if run_id not in self._engines:
            model, classes = state.plan.model, len(state.plan.task.classes)
            if self._engine_choice is None:
                engine, reason = choose_engine(
                    model, classes, device=self._device, expected_records=expected_records(state.plan, state.manifest)
                )
            else:
                engine, reason = self._engine_choice(model, classes)
            self._log("engine", run_id, reason=reason)
            self._engines[run_id] = engine
        return self._engines[run_id]

    def _refusal(self, error: Exception, run_id: str) -> pb.Refused:
        name = type(error).__name__
        if self._journal is not None:
            why = {"reason": reason} if (reason := _reason(error)) else {}
            self._journal.write("refused", site=self._home.name, run=run_id, error=name, **why)
        public = name if isinstance(error, FederationError) and name in NAMES_THAT_TRAVEL else UNAVAILABLE
        return pb.Refused(name=public, head=self._head(run_id) if run_id else None)

    def _log(self, kind: str, run_id: str, **fields: str) -> None:
        if self._journal is not None:
            self._journal.write(kind, site=self._home.name, run=run_id, **fields)


def _reason(error: Exception) -> str:
    """What the site's own log says beyond the error's name: of errors that are decided without the records, and of the
    disk's."""
    if isinstance(error, FederationError) and type(error).__name__ in NAMES_THAT_TRAVEL:
        return f"{error.fact}. {error.hint}" if error.hint else error.fact
    return (error.strerror or "") if isinstance(error, OSError) else ""
