"""One (round, attempt) at a site, of training or evaluation: reserve → compute → masked on disk → settle → the answer.

A crash leaves a reservation without bytes (it stays charged and is burned at the next request) or the bytes (they are
settled and sent again as they are). Nothing is ever computed twice under one context.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.evaluation import compute_histogram
from client.guard import Permit, permit_attempt
from client.home import SiteHome
from client.protect import mask_update
from client.runstate import Outbox, RunState, load_local_update, save_local_update
from client.training.batch import PatientBatch
from client.training.engine import ClippedSumEngine
from client.update import LocalUpdate, compute_update
from common import wire_pb2 as pb
from common.canonical import DIGEST_PREFIX, digest_bytes
from common.crypto.masking import mask_context
from common.errors import AttemptLost, LedgerCorrupt, PolicyRefused, TrustError
from common.parameters import parameters_digest, parameters_from_bytes, vector_to_bytes
from common.privacy.account import AttemptState, ChargedAttempt
from common.privacy.entries import AttemptKey
from common.privacy.events import EventKind
from common.privacy.ledger import BudgetLedger


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A request that was checked and may be answered.

    Attributes:
        kind: What it will be in the ledger: training, or an evaluation's histogram.
        cohort: Sorted names, this site among them.
        parameters: The global model, shape (d,).
        context: What the masks are bound to, 32 bytes.
    """

    kind: EventKind
    round_number: int
    attempt: int
    cohort: list[str]
    parameters: NDArray[np.float32]
    context: bytes

    @property
    def label(self) -> str:
        """The context as it travels."""
        return DIGEST_PREFIX + self.context.hex()

    @property
    def is_evaluation(self) -> bool:
        """Whether the held-out patients are counted, and nobody is trained on."""
        return self.kind is EventKind.SCORE_HISTOGRAM


def read_attempt(home: SiteHome, state: RunState, request: pb.Round | pb.Evaluate) -> Attempt:
    """Check a request against the manifest.

    Raises:
        TrustError: If cohort or model are malformed. PolicyRefused: If it lies outside what was agreed.
    """
    manifest, cohort = state.manifest, list(request.cohort)
    if state.closed:
        raise PolicyRefused(f"run {manifest.run_id!r} is closed")
    if cohort != sorted(set(cohort)) or home.name not in cohort:
        raise TrustError("a cohort is sorted, names each site once, and this site among them")
    left = set(cohort).intersection(manifest.names) - home.trust().sites.keys()
    if left:
        raise PolicyRefused(f"{len(left)} sites of the cohort are not in the consortium that is pinned now")
    unknown = set(cohort) - {home.name} - set(state.pair_secrets)
    if unknown:
        raise TrustError(f"{len(unknown)} sites of the cohort share no secret with this one")
    if len(cohort) < manifest.minimum_cohort:
        raise PolicyRefused(f"a cohort of {len(cohort)} is below the minimum of {manifest.minimum_cohort}")
    evaluation = isinstance(request, pb.Evaluate)
    rounds = manifest.evaluated_rounds if evaluation else range(1, 1 + manifest.rounds)
    if request.round not in rounds or not 1 <= request.attempt <= 1 + manifest.spare_attempts:
        what = "evaluation after round" if evaluation else "round"
        raise PolicyRefused(f"{what} {request.round} attempt {request.attempt} is outside the plan")
    parameters = parameters_from_bytes(request.parameters, dimension=manifest.dimension)
    context = mask_context(
        manifest_digest=manifest.digest,
        kind="evaluate" if evaluation else "train",
        round_number=request.round,
        attempt=request.attempt,
        cohort=cohort,
        model_digest=parameters_digest(parameters),
    )
    return Attempt(
        kind=EventKind.SCORE_HISTOGRAM if evaluation else EventKind.GAUSSIAN_SUM,
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
        AttemptLost: If it was begun and lost. PolicyRefused: If the plan's attempts are used up.
        PrivacyBudgetExhausted: If the budget would be passed; nothing is computed then.
    """

    def train(permit: Permit) -> LocalUpdate:
        return compute_update(permit, engine=engine, batch=batch, parameters=attempt.parameters)

    return _answer(home, ledger, state, attempt, train)


def answer_evaluation(
    home: SiteHome, ledger: BudgetLedger, state: RunState, attempt: Attempt, *, batch: PatientBatch
) -> pb.Histogram:
    """The masked histogram for one evaluation, its head not yet filled in; asked for again, the same bytes.

    In local mode too every attempt has fresh noise and is charged.

    Args:
        batch: The held-out patients, normalised.

    Raises:
        FederationError: As `answer_attempt`.
    """

    def count(permit: Permit) -> LocalUpdate:
        return compute_histogram(permit, batch=batch, parameters=attempt.parameters)

    answer = _answer(home, ledger, state, attempt, count)
    return pb.Histogram(round=answer.round, attempt=answer.attempt, context=answer.context, vector=answer.vector)


def burn_reserved(ledger: BudgetLedger, state: RunState) -> None:
    """Record that what a run reserved and never put on disk will not leave; it stays charged."""
    for run_id in (state.manifest.run_id, state.manifest.evaluation_run):
        _burn(ledger, state, run_id)


def _answer(
    home: SiteHome,
    ledger: BudgetLedger,
    state: RunState,
    attempt: Attempt,
    compute: Callable[[Permit], LocalUpdate],
) -> pb.Masked:
    outbox = Outbox(home, state.manifest.run_id, evaluation=attempt.is_evaluation)
    stored = _stored_answer(ledger, state, outbox, attempt)
    if stored is not None:
        return stored
    update = _kept_update(home, ledger, state, attempt)
    if update is None:
        _refuse_lost(ledger, state, attempt)
        update = _charged_update(home, ledger, state, attempt, compute)
    secrets = {peer: state.pair_secrets[peer] for peer in attempt.cohort if peer != home.name}
    vector = mask_update(update, site=home.name, pair_secrets=secrets, context=attempt.context)
    answer = pb.Masked(
        round=attempt.round_number,
        attempt=attempt.attempt,
        context=attempt.label,
        vector=vector_to_bytes(vector),
    )
    outbox.write(answer)
    _settle(ledger, state, attempt, answer)
    return answer


def _burn(ledger: BudgetLedger, state: RunState, run_id: str) -> None:
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
    charged = ledger.account(state.population).attempt(_key(state, attempt))
    if charged is None and not _charges_of_round(ledger, state, attempt):
        raise LedgerCorrupt(
            f"round {asked[0]} attempt {asked[1]} was answered and never charged",
            hint="an old copy of the ledger was restored",
        )
    if charged is not None and charged.release not in (None, digest_bytes("release", stored.vector)):
        raise LedgerCorrupt(
            f"round {asked[0]} attempt {asked[1]} was settled with other bytes than those that wait",
            hint="the run's files were changed or an old copy of them was restored",
        )
    if charged is not None and charged.state is AttemptState.BURNED:
        raise PolicyRefused(f"round {asked[0]} attempt {asked[1]} was burned; its answer never leaves")
    _settle(ledger, state, attempt, stored)
    return stored


def _is_kept(state: RunState, attempt: Attempt) -> bool:
    """Whether one charge serves every attempt of the round: local training, whose update is kept and masked anew."""
    return state.manifest.mode == "local" and not attempt.is_evaluation


def _charges_of_round(ledger: BudgetLedger, state: RunState, attempt: Attempt) -> list[ChargedAttempt]:
    """In local training what any attempt of the round was charged for, else nothing."""
    if not _is_kept(state, attempt):
        return []
    account, tries = ledger.account(state.population), range(1, 2 + state.manifest.spare_attempts)
    return [charge for number in tries if (charge := account.attempt(_key(state, attempt, number)))]


def _kept_update(home: SiteHome, ledger: BudgetLedger, state: RunState, attempt: Attempt) -> LocalUpdate | None:
    """In local mode the update that this round already has, unless its charge was burned."""
    if not _is_kept(state, attempt):
        return None
    if all(charge.state is AttemptState.BURNED for charge in _charges_of_round(ledger, state, attempt)):
        return None
    units = load_local_update(home, state.manifest.run_id, attempt.round_number)
    return None if units is None else LocalUpdate(units=units)


def _refuse_lost(ledger: BudgetLedger, state: RunState, attempt: Attempt) -> None:
    """A charged attempt without bytes on disk was interrupted; it is never computed a second time."""
    key = _key(state, attempt)
    if ledger.account(state.population).attempt(key) is not None:
        _burn(ledger, state, key.run_id)
        raise AttemptLost(f"round {key.round_number} attempt {key.attempt} was begun and lost; it stays charged")


def _charged_update(
    home: SiteHome,
    ledger: BudgetLedger,
    state: RunState,
    attempt: Attempt,
    compute: Callable[[Permit], LocalUpdate],
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
        kind=attempt.kind,
        limit=home.policy().budget.get(state.population),
    )
    update = compute(permit)
    if _is_kept(state, attempt):
        save_local_update(home, state.manifest.run_id, attempt.round_number, update.units)
    return update


def _settle(ledger: BudgetLedger, state: RunState, attempt: Attempt, answer: pb.Masked) -> None:
    """Settle what these bytes are the release of; in local training that may be an earlier attempt of the round."""
    any_attempt = _is_kept(state, attempt)
    for key in ledger.account(state.population).unsettled:
        if key == _key(state, attempt, key.attempt if any_attempt else attempt.attempt):
            ledger.settle(
                state.population,
                run_id=key.run_id,
                round_number=key.round_number,
                attempt=key.attempt,
                release=digest_bytes("release", answer.vector),
            )


def _key(state: RunState, attempt: Attempt, number: int | None = None) -> AttemptKey:
    """What the ledger calls an attempt, or the attempt of that number in its round."""
    manifest = state.manifest
    return AttemptKey(
        run_id=manifest.evaluation_run if attempt.is_evaluation else manifest.run_id,
        round_number=attempt.round_number,
        attempt=attempt.attempt if number is None else number,
    )
