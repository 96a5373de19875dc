"""The site's side of the protocol: signed requests in, signed replies out, nothing else.

A site answers an offer, a key exchange and each (round, attempt) of a run, in that order. Everything it must remember
is on disk before it answers, so an agent may be closed and opened between any two messages. The order of one attempt:

    reserve in the ledger → compute → masked bytes on disk → settle in the ledger → send

A crash leaves a reservation (counted as spent, burned at the next request) or the bytes (sent again as they are).
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from google.protobuf.message import Message

from client.data.registry import load_dataset
from client.guard import check_offer, permit_attempt
from client.home import SiteHome, open_home
from client.protect import mask_update
from client.runstate import (
    Outbox,
    RunState,
    joined,
    load_local_update,
    load_state,
    save_local_update,
    save_state,
)
from client.training.batch import PatientBatch
from client.training.engine import ClippedSumEngine, choose_engine
from client.update import LocalUpdate, compute_update
from common import wire_pb2 as pb
from common.canonical import digest_bytes
from common.crypto.masking import (
    RunKeys,
    RunPublicKeys,
    comes_first,
    encapsulate,
    mask_context,
    pair_secret,
    pair_transcript,
)
from common.errors import DataRefused, FederationError, PolicyRefused, TrustError
from common.journal import Journal
from common.model import normalise
from common.parameters import parameters_digest, parameters_from_bytes, vector_to_bytes
from common.plan import Manifest, TrainingPlan
from common.privacy.account import AttemptState
from common.privacy.entries import AttemptKey
from common.privacy.ledger import BudgetLedger
from common.privacy.witness import WitnessBook
from common.settings import parse_json_settings
from common.wire import (
    ANY_SITE,
    COORDINATOR,
    head_from_message,
    head_message,
    length_prefixed,
    read_body,
    read_envelope,
    verify_envelope,
    write_envelope,
)

NAMES_THAT_TRAVEL: Final = frozenset(
    {"TrustError", "PolicyRefused", "PlanNotApproved", "PrivacyBudgetExhausted", "LedgerCorrupt"}
)
UNAVAILABLE: Final = "Unavailable"


class SiteAgent:
    """A site that answers messages. Open it with `SiteAgent.open`, close it when done; use it from one thread."""

    def __init__(self, home: SiteHome, ledger: BudgetLedger, witnesses: WitnessBook, journal: Journal | None) -> None:
        self._home = home
        self._ledger = ledger
        self._witnesses = witnesses
        self._journal = journal
        self._states: dict[str, RunState] = {}
        self._batches: dict[str, PatientBatch] = {}
        self._engines: dict[str, ClippedSumEngine] = {}
        self._closing = ExitStack()

    @classmethod
    def open(cls, root: Path, *, passphrase: bytes, journal: Journal | None = None) -> Self:
        """Rebuild the agent from its directory, holding the ledger's lock until it is closed.

        Raises:
            ConfigurationError: If no site lives there or another process holds it.
            TrustError: If the passphrase is wrong. LedgerCorrupt: If the ledger does not verify.
        """
        home = open_home(root, passphrase=passphrase)
        witnesses = WitnessBook(home.witness_path, holder=home.name)
        with ExitStack() as opening:
            ledger = opening.enter_context(BudgetLedger.open(home.ledger_path, site=home.name, key=home.identity))
            agent = cls(home, ledger, witnesses, journal)
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
        """Answer one message. Never raises for what came from outside: a refusal is a reply, by its name alone."""
        run_id = ""
        try:
            envelope = read_envelope(data)
            run_id = envelope.run_id[:63]
            handler = self._handlers()[envelope.kind]
            trust = self._home.trust()
            recipient = ANY_SITE if envelope.kind == "offer" else self._home.name
            verify_envelope(
                envelope, key=trust.coordinator_key, run_id=envelope.run_id, sender=COORDINATOR, recipient=recipient
            )
            self._log(envelope.kind, run_id)
            reply = handler(envelope)
        except Exception as error:  # an agent outlives any one request; the name alone goes out, the rest stays here
            reply = self._refusal(error, run_id)
        return write_envelope(
            reply, key=self._home.identity, run_id=run_id, sender=self._home.name, recipient=COORDINATOR
        )

    def _handlers(self) -> dict[str, Callable[[pb.Envelope], Message]]:
        return {"offer": self._join, "keys": self._encapsulate, "round": self._answer, "close": self._close_run}

    def _join(self, envelope: pb.Envelope) -> pb.Joined:
        offer = read_body(envelope, pb.Offer)
        plan = parse_json_settings(offer.plan, TrainingPlan, source="the offered plan")
        manifest = parse_json_settings(offer.manifest, Manifest, source="the offered manifest")
        if manifest.run_id != envelope.run_id:
            raise TrustError("the manifest names another run than its message")
        self._witness(offer.heads)
        if joined(self._home, manifest.run_id):
            state = self._state(manifest.run_id)
            if state.manifest != manifest:
                raise TrustError(f"run {manifest.run_id!r} was joined under another manifest")
        else:
            state = self._new_state(plan, manifest)
        return pb.Joined(
            manifest_digest=manifest.digest,
            x25519=state.keys.public.x25519,
            mlkem=state.keys.public.mlkem,
            head=self._head(manifest.run_id),
        )

    def _new_state(self, plan: TrainingPlan, manifest: Manifest) -> RunState:
        population = check_offer(self._home, self._ledger, plan, manifest)
        batch = load_dataset(self._home, population, classes=len(plan.task.classes))
        minimum = self._home.policy().minimum_patients
        if batch.patient_count < minimum:
            raise DataRefused(f"{self._home.name}: {batch.patient_count} patients are fewer than {minimum}")
        if batch.features.shape[1:] != plan.model.inputs:
            raise DataRefused(f"{self._home.name}: the data has another shape than {list(plan.model.inputs)}")
        state = RunState(plan=plan, manifest=manifest, population=population, keys=RunKeys.generate())
        save_state(self._home, state)
        self._states[manifest.run_id] = state
        return state

    def _encapsulate(self, envelope: pb.Envelope) -> pb.Encapsulated:
        request = read_body(envelope, pb.Keys)
        state = self._state(envelope.run_id)
        self._witness(request.heads)
        peers = self._verified_peers(state, request.joined)
        if not state.peers:
            state = self._exchange_keys(state, peers)
        elif state.peers != peers:
            raise TrustError(f"run {envelope.run_id!r} was set up with other keys")
        own = self._home.name
        ciphertexts = [
            pb.Ciphertext(
                sender=own,
                recipient=peer,
                ciphertext=value,
                signature=self._home.identity.sign("ciphertext", _ciphertext_bytes(state.manifest, own, peer, value)),
            )
            for peer, value in sorted(state.ciphertexts.items())
        ]
        return pb.Encapsulated(ciphertexts=ciphertexts, head=self._head(envelope.run_id))

    def _verified_peers(self, state: RunState, envelopes: Sequence[bytes]) -> dict[str, RunPublicKeys]:
        trust, manifest = self._home.trust(), state.manifest
        found: dict[str, RunPublicKeys] = {}
        for data in envelopes:
            envelope = read_envelope(data)
            manifest.names.index(envelope.sender)
            verify_envelope(
                envelope,
                key=trust.site_key(envelope.sender),
                run_id=manifest.run_id,
                sender=envelope.sender,
                recipient=COORDINATOR,
            )
            body = read_body(envelope, pb.Joined)
            if body.manifest_digest != manifest.digest:
                raise TrustError(f"{envelope.sender} signed another manifest")
            if envelope.sender in found:
                raise TrustError(f"{envelope.sender} stands twice among the joined sites")
            found[envelope.sender] = RunPublicKeys(x25519=body.x25519, mlkem=body.mlkem)
            self._witness([body.head])
        if found.pop(self._home.name, None) != state.keys.public:
            raise TrustError(f"{self._home.name}: this site's own keys are missing or changed")
        if len(found) + 1 < manifest.minimum_cohort:
            raise PolicyRefused(f"{len(found) + 1} sites joined, the minimum cohort is {manifest.minimum_cohort}")
        return found

    def _exchange_keys(self, state: RunState, peers: dict[str, RunPublicKeys]) -> RunState:
        ciphertexts: dict[str, bytes] = {}
        secrets: dict[str, bytes] = {}
        for peer, keys in peers.items():
            if comes_first(self._home.name, peer):
                kem_secret, ciphertexts[peer] = encapsulate(keys)
                secrets[peer] = self._pair_secret(state, peer, keys, kem_secret, ciphertexts[peer])
        state = RunState(
            plan=state.plan,
            manifest=state.manifest,
            population=state.population,
            keys=state.keys,
            peers=peers,
            ciphertexts=ciphertexts,
            pair_secrets=secrets,
        )
        self._remember(state)
        return state

    def _answer(self, envelope: pb.Envelope) -> pb.Masked:
        request = read_body(envelope, pb.Round)
        state = self._state(envelope.run_id)
        manifest = state.manifest
        if state.closed:
            raise PolicyRefused(f"run {manifest.run_id!r} is closed")
        self._witness(request.heads)
        state = self._learn_secrets(state, request.ciphertexts)
        cohort = self._checked_cohort(state, request)
        parameters = parameters_from_bytes(request.parameters, dimension=manifest.dimension)
        context = mask_context(
            manifest_digest=manifest.digest,
            kind="train",
            round_number=request.round,
            attempt=request.attempt,
            cohort=cohort,
            model_digest=parameters_digest(parameters),
        )
        outbox = Outbox(self._home, manifest.run_id)
        answer = self._stored_answer(state, outbox, request, context)
        if answer is None:
            update = self._kept_update(state, request)
            charged = update is None
            if update is None:
                permit = permit_attempt(
                    self._ledger,
                    site=self._home.name,
                    plan=state.plan,
                    manifest=manifest,
                    population=state.population,
                    cohort=cohort,
                    round_number=request.round,
                    attempt=request.attempt,
                )
                update = compute_update(
                    permit, engine=self._engine(state), batch=self._batch(state), parameters=parameters
                )
            secrets = {peer: state.pair_secrets[peer] for peer in cohort if peer != self._home.name}
            vector = mask_update(update, site=self._home.name, pair_secrets=secrets, context=context)
            answer = pb.Masked(
                round=request.round,
                attempt=request.attempt,
                context="sha256:" + context.hex(),
                vector=vector_to_bytes(vector),
            )
            if manifest.mode == "local":
                save_local_update(self._home, manifest.run_id, request.round, update.units)
            outbox.write(answer)
            if charged:
                self._settle(state, answer)
        answer.head.CopyFrom(self._head(manifest.run_id))
        return answer

    def _stored_answer(
        self, state: RunState, outbox: Outbox, request: pb.Round, context: bytes
    ) -> pb.Masked | None:
        """The answer already given to this very attempt; None for a new one. Anything else is refused."""
        run_id, asked = state.manifest.run_id, (request.round, request.attempt)
        stored = outbox.read()
        account = self._ledger.account(state.population)
        charged = account.attempt(AttemptKey(run_id=run_id, round_number=asked[0], attempt=asked[1]))
        if stored is not None and (stored.round, stored.attempt) == asked:
            if stored.context != "sha256:" + context.hex():
                raise TrustError(f"round {asked[0]} attempt {asked[1]} was answered under another context")
            if charged is not None and charged.state is AttemptState.RESERVED:
                self._settle(state, stored)
            return stored
        if stored is not None and asked < (stored.round, stored.attempt):
            raise TrustError(f"round {asked[0]} attempt {asked[1]} lies before the last one answered")
        if charged is not None:
            self._burn_reserved(state)
            raise PolicyRefused(f"round {asked[0]} attempt {asked[1]} was begun and lost; it stays charged")
        return None

    def _kept_update(self, state: RunState, request: pb.Round) -> LocalUpdate | None:
        """In local mode a retry of a round masks the same update again; in pooled mode there is nothing to keep."""
        if state.manifest.mode != "local":
            return None
        units = load_local_update(self._home, state.manifest.run_id, request.round)
        return None if units is None else LocalUpdate(units=units)

    def _checked_cohort(self, state: RunState, request: pb.Round) -> list[str]:
        manifest, cohort = state.manifest, list(request.cohort)
        if cohort != sorted(set(cohort)) or self._home.name not in cohort:
            raise TrustError("a cohort is sorted, names each site once, and this site among them")
        unknown = set(cohort) - {self._home.name} - set(state.pair_secrets)
        if unknown:
            raise TrustError(f"{len(unknown)} sites of the cohort share no secret with this one")
        if len(cohort) < manifest.minimum_cohort:
            raise PolicyRefused(f"a cohort of {len(cohort)} is below the minimum of {manifest.minimum_cohort}")
        if not 1 <= request.round <= manifest.rounds or request.attempt < 1:
            raise PolicyRefused(f"round {request.round} attempt {request.attempt} is outside the plan")
        return cohort

    def _learn_secrets(self, state: RunState, ciphertexts: Sequence[pb.Ciphertext]) -> RunState:
        learned: dict[str, bytes] = {}
        for item in ciphertexts:
            if item.recipient != self._home.name or item.sender not in state.peers:
                raise TrustError("a ciphertext is not for this site or from a stranger")
            if item.sender in state.pair_secrets:
                continue
            if not comes_first(item.sender, self._home.name):
                raise TrustError(f"{item.sender} does not encapsulate to {self._home.name}")
            signed = _ciphertext_bytes(state.manifest, item.sender, item.recipient, item.ciphertext)
            self._home.trust().site_key(item.sender).verify("ciphertext", signed, item.signature)
            kem_secret = state.keys.decapsulate(item.ciphertext)
            learned[item.sender] = self._pair_secret(
                state, item.sender, state.peers[item.sender], kem_secret, item.ciphertext
            )
        if learned:
            state = state.with_secrets(learned)
            self._remember(state)
        return state

    def _close_run(self, envelope: pb.Envelope) -> pb.Closed:
        request = read_body(envelope, pb.Close)
        state = self._state(envelope.run_id)
        self._witness(request.heads)
        self._burn_reserved(state)
        if not state.closed:
            forgotten = RunState(
                plan=state.plan,
                manifest=state.manifest,
                population=state.population,
                keys=RunKeys.generate(),
                closed=True,
            )
            self._remember(forgotten)
        return pb.Closed(head=self._head(envelope.run_id))

    def _burn_reserved(self, state: RunState) -> None:
        run_id = state.manifest.run_id
        for key in self._ledger.account(state.population).unsettled:
            if key.run_id == run_id:
                self._ledger.burn(
                    state.population, run_id=run_id, round_number=key.round_number, attempt=key.attempt
                )

    def _settle(self, state: RunState, answer: pb.Masked) -> None:
        self._ledger.settle(
            state.population,
            run_id=state.manifest.run_id,
            round_number=answer.round,
            attempt=answer.attempt,
            release=digest_bytes("release", answer.vector),
        )

    def _pair_secret(
        self, state: RunState, peer: str, keys: RunPublicKeys, kem_secret: bytes, ciphertext: bytes
    ) -> bytes:
        transcript = pair_transcript(
            manifest_digest=state.manifest.digest,
            first=(self._home.name, state.keys.public),
            second=(peer, keys),
            ciphertext=ciphertext,
        )
        return pair_secret(own=state.keys, peer=keys, kem_secret=kem_secret, transcript=transcript)

    def _witness(self, heads: Sequence[pb.Head]) -> None:
        """Keep what others' ledgers were said to end with; refuse to run behind what was said of this one."""
        trust = self._home.trust()
        for message in heads:
            head = head_from_message(message)
            head.verify(trust.site_key(head.site))
            if head.site != self._home.name:
                self._witnesses.record(head)
            else:
                self._ledger.confirm(head)

    def _head(self, run_id: str) -> pb.Head:
        return head_message(self._ledger.signed_head(run_id))

    def _state(self, run_id: str) -> RunState:
        if run_id not in self._states:
            self._states[run_id] = load_state(self._home, run_id)
        return self._states[run_id]

    def _remember(self, state: RunState) -> None:
        save_state(self._home, state)
        self._states[state.manifest.run_id] = state

    def _batch(self, state: RunState) -> PatientBatch:
        """The run's records, normalised by the plan's public constants; read once and kept while the agent is open."""
        run_id = state.manifest.run_id
        if run_id not in self._batches:
            batch = load_dataset(self._home, state.population, classes=len(state.plan.task.classes))
            if batch.patient_count:
                batch = replace(batch, features=normalise(state.plan.normalisation, batch.features))
            self._batches[run_id] = batch
        return self._batches[run_id]

    def _engine(self, state: RunState) -> ClippedSumEngine:
        run_id = state.manifest.run_id
        if run_id not in self._engines:
            engine, reason = choose_engine(state.plan.model, len(state.plan.task.classes))
            self._log("engine", run_id, reason=reason)
            self._engines[run_id] = engine
        return self._engines[run_id]

    def _refusal(self, error: Exception, run_id: str) -> pb.Refused:
        name = type(error).__name__
        if self._journal is not None:
            self._journal.write("refused", site=self._home.name, run=run_id, error=name)
        public = name if isinstance(error, FederationError) and name in NAMES_THAT_TRAVEL else UNAVAILABLE
        return pb.Refused(name=public, head=self._head(run_id))

    def _log(self, kind: str, run_id: str, **fields: str) -> None:
        if self._journal is not None:
            self._journal.write(kind, site=self._home.name, run=run_id, **fields)


def _ciphertext_bytes(manifest: Manifest, sender: str, recipient: str, ciphertext: bytes) -> bytes:
    return length_prefixed(manifest.digest.encode(), sender.encode(), recipient.encode(), ciphertext)


