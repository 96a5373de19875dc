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
from common.errors import LedgerCorrupt, PolicyRefused, TrustError
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
    if not (1 <= request.round <= manifest.rounds and 1 <= request.attempt <= 1 + manifest.spare_attempts):
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
        LedgerCorrupt: If it was answered and the ledger does not know.
        PolicyRefused: If it was begun and lost, or the plan's attempts are used up.
        PrivacyBudgetExhausted: If the budget would be passed; nothing is computed then.
    """
    outbox = Outbox(home, state.manifest.run_id)
    stored = _stored_answer(ledger, state, outbox, attempt)
    if stored is not None:
        return stored
    update = _kept_update(home, ledger, state, attempt)
    if update is None:
        _refuse_lost(ledger, state, attempt)
        update = _charged_update(home, ledger, state, attempt, engine=engine, batch=batch)
    secrets = {peer: state.pair_secrets[peer] for peer in attempt.cohort if peer != home.name}
    vector = mask_update(update, site=home.name, pair_secrets=secrets, context=attempt.context)
    answer = pb.Masked(
        round=attempt.round_number,
        attempt=attempt.attempt,
        context=attempt.label,
        vector=vector_to_bytes(vector),
    )
    outbox.write(answer)
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
    stored = outbox.read()
    if stored is None or asked > (stored.round, stored.attempt):
        return None
    if asked < (stored.round, stored.attempt):
        raise TrustError(f"round {asked[0]} attempt {asked[1]} lies before the last one answered")
    if stored.context != attempt.label:
        raise TrustError(f"round {asked[0]} attempt {asked[1]} was answered under another context")
    charged = ledger.account(state.population).attempt(_key(state, *asked))
    if charged is None and state.manifest.mode == "pooled":
        raise LedgerCorrupt(
            f"round {asked[0]} attempt {asked[1]} was answered and never charged",
            hint="an old copy of the ledger was restored",
        )
    if charged is not None and charged.state is AttemptState.BURNED:
        raise PolicyRefused(f"round {asked[0]} attempt {asked[1]} was burned; its answer never leaves")
    _settle(ledger, state, stored)
    return stored


def _kept_update(home: SiteHome, ledger: BudgetLedger, state: RunState, attempt: Attempt) -> LocalUpdate | None:
    """In local mode the update that this round already has, unless its charge was burned."""
    if state.manifest.mode != "local":
        return None
    account, round_number = ledger.account(state.population), attempt.round_number
    tries = range(1, 2 + state.manifest.spare_attempts)
    charges = [charge for number in tries if (charge := account.attempt(_key(state, round_number, number)))]
    if all(charge.state is AttemptState.BURNED for charge in charges):
        return None
    units = load_local_update(home, state.manifest.run_id, round_number)
    return None if units is None else LocalUpdate(units=units)


def _refuse_lost(ledger: BudgetLedger, state: RunState, attempt: Attempt) -> None:
    """A charged attempt without bytes on disk was interrupted; it is never computed a second time."""
    key = _key(state, attempt.round_number, attempt.attempt)
    if ledger.account(state.population).attempt(key) is not None:
        burn_reserved(ledger, state)
        raise PolicyRefused(f"round {key.round_number} attempt {key.attempt} was begun and lost; it stays charged")


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
    """Settle what these bytes are the release of; in local mode that may be an earlier attempt of the round."""
    any_attempt = state.manifest.mode == "local"
    for key in ledger.account(state.population).unsettled:
        if key == _key(state, answer.round, answer.attempt if not any_attempt else key.attempt):
            ledger.settle(
                state.population,
                run_id=key.run_id,
                round_number=key.round_number,
                attempt=key.attempt,
                release=digest_bytes("release", answer.vector),
            )


def _key(state: RunState, round_number: int, attempt: int) -> AttemptKey:
    return AttemptKey(run_id=state.manifest.run_id, round_number=round_number, attempt=attempt)
