"""One (round, attempt) at a site: reserve → compute → masked bytes on disk → settle → the answer.

A crash leaves a reservation without bytes (it stays charged and is burned at the next request) or the bytes (they are
settled and sent again as they are). Nothing is ever computed twice under one context.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.guard import permit_attempt
from client.home import SiteHome
from client.protect import mask_update
from client.runstate import Outbox, RunState, load_local_update, save_local_update
from client.training.batch import PatientBatch
from client.training.engine import ClippedSumEngine
from client.update import LocalUpdate, compute_update
from common import wire_pb2 as pb
from common.canonical import DIGEST_PREFIX, digest_bytes
from common.crypto.masking import mask_context
from common.errors import PolicyRefused, TrustError
from common.parameters import parameters_digest, parameters_from_bytes, vector_to_bytes
from common.privacy.account import AttemptState
from common.privacy.entries import AttemptKey
from common.privacy.ledger import BudgetLedger


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A request that was checked and may be answered.

    Attributes:
        cohort: Sorted names, this site among them.
        parameters: The global model, shape (d,).
        context: What the masks are bound to, 32 bytes.
    """

    round_number: int
    attempt: int
    cohort: list[str]
    parameters: NDArray[np.float32]
    context: bytes

    @property
    def label(self) -> str:
        """The context as it travels."""
        return DIGEST_PREFIX + self.context.hex()


def read_attempt(home: SiteHome, state: RunState, request: pb.Round) -> Attempt:
    """Check a request against the manifest.

    Raises:
        TrustError: If cohort or model are malformed. PolicyRefused: If it lies outside what was agreed.
    """
    manifest, cohort = state.manifest, list(request.cohort)
    if state.closed:
        raise PolicyRefused(f"run {manifest.run_id!r} is closed")
    if cohort != sorted(set(cohort)) or home.name not in cohort:
        raise TrustError("a cohort is sorted, names each site once, and this site among them")
    unknown = set(cohort) - {home.name} - set(state.pair_secrets)
    if unknown:
        raise TrustError(f"{len(unknown)} sites of the cohort share no secret with this one")
    if len(cohort) < manifest.minimum_cohort:
        raise PolicyRefused(f"a cohort of {len(cohort)} is below the minimum of {manifest.minimum_cohort}")
    if not 1 <= request.round <= manifest.rounds or request.attempt < 1:
        raise PolicyRefused(f"round {request.round} attempt {request.attempt} is outside the plan")
    parameters = parameters_from_bytes(request.parameters, dimension=manifest.dimension)
    context = mask_context(
        manifest_digest=manifest.digest,
        kind="train",
        round_number=request.round,
        attempt=request.attempt,
        cohort=cohort,
        model_digest=parameters_digest(parameters),
    )
    return Attempt(
        round_number=request.round,
        attempt=request.attempt,
        cohort=cohort,
        parameters=parameters,
        context=context,
    )


def answer_attempt(
    home: SiteHome,
    ledger: BudgetLedger,
    state: RunState,
    attempt: Attempt,
    *,
    engine: ClippedSumEngine,
    batch: PatientBatch,
) -> pb.Masked:
    """The masked update for one attempt, its head not yet filled in.

    The same attempt asked for again gets the same bytes. In local mode a further attempt of a round masks the update
    that the round already has, and is not charged again.

    Raises:
        TrustError: If the attempt lies before the last one, or was answered under another context.
        PolicyRefused: If it was begun and lost, or the plan's attempts are used up.
        PrivacyBudgetExhausted: If the budget would be passed; nothing is computed then.
    """
    outbox = Outbox(home, state.manifest.run_id)
    stored = _stored_answer(ledger, state, outbox, attempt)
    if stored is not None:
        return stored
    kept = _kept_update(home, state, attempt)
    update = kept or _charged_update(home, ledger, state, attempt, engine=engine, batch=batch)
    secrets = {peer: state.pair_secrets[peer] for peer in attempt.cohort if peer != home.name}
    vector = mask_update(update, site=home.name, pair_secrets=secrets, context=attempt.context)
    answer = pb.Masked(
        round=attempt.round_number,
        attempt=attempt.attempt,
        context=attempt.label,
        vector=vector_to_bytes(vector),
    )
    outbox.write(answer)
    if kept is None:
        _settle(ledger, state, answer)
    return answer


def burn_reserved(ledger: BudgetLedger, state: RunState) -> None:
    """Record that what a run reserved and never put on disk will not leave; it stays charged."""
    run_id = state.manifest.run_id
    for key in ledger.account(state.population).unsettled:
        if key.run_id == run_id:
            ledger.burn(state.population, run_id=run_id, round_number=key.round_number, attempt=key.attempt)


def _stored_answer(ledger: BudgetLedger, state: RunState, outbox: Outbox, attempt: Attempt) -> pb.Masked | None:
    asked = (attempt.round_number, attempt.attempt)
    key = AttemptKey(run_id=state.manifest.run_id, round_number=asked[0], attempt=asked[1])
    charged = ledger.account(state.population).attempt(key)
    stored = outbox.read()
    if stored is not None and (stored.round, stored.attempt) == asked:
        if stored.context != attempt.label:
            raise TrustError(f"round {asked[0]} attempt {asked[1]} was answered under another context")
        if charged is not None and charged.state is AttemptState.RESERVED:
            _settle(ledger, state, stored)
        return stored
    if stored is not None and asked < (stored.round, stored.attempt):
        raise TrustError(f"round {asked[0]} attempt {asked[1]} lies before the last one answered")
    if charged is not None:
        burn_reserved(ledger, state)
        raise PolicyRefused(f"round {asked[0]} attempt {asked[1]} was begun and lost; it stays charged")
    return None


def _kept_update(home: SiteHome, state: RunState, attempt: Attempt) -> LocalUpdate | None:
    if state.manifest.mode != "local":
        return None
    units = load_local_update(home, state.manifest.run_id, attempt.round_number)
    return None if units is None else LocalUpdate(units=units)


def _charged_update(
    home: SiteHome,
    ledger: BudgetLedger,
    state: RunState,
    attempt: Attempt,
    *,
    engine: ClippedSumEngine,
    batch: PatientBatch,
) -> LocalUpdate:
    permit = permit_attempt(
        ledger,
        site=home.name,
        plan=state.plan,
        manifest=state.manifest,
        population=state.population,
        cohort=attempt.cohort,
        round_number=attempt.round_number,
        attempt=attempt.attempt,
    )
    update = compute_update(permit, engine=engine, batch=batch, parameters=attempt.parameters)
    if state.manifest.mode == "local":
        save_local_update(home, state.manifest.run_id, attempt.round_number, update.units)
    return update


def _settle(ledger: BudgetLedger, state: RunState, answer: pb.Masked) -> None:
    ledger.settle(
        state.population,
        run_id=state.manifest.run_id,
        round_number=answer.round,
        attempt=answer.attempt,
        release=digest_bytes("release", answer.vector),
    )
