"""May this be computed here? The plan against policy, approval and budget; only this module makes a Permit."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from client.home import SiteHome
from common.crypto.ring import Grid
from common.errors import (
    PlanNotApproved,
    PolicyRefused,
    PrivacyBudgetExhausted,
    TrustError,
)
from common.plan import Manifest, TrainingPlan
from common.policy import BudgetLimit, SitePolicy, check_policy
from common.privacy.account import PopulationAccount
from common.privacy.accountant import epsilon
from common.privacy.admission import FilterCost
from common.privacy.budget import View
from common.privacy.events import MechanismEvent, TrustMode
from common.privacy.ledger import BudgetLedger
from common.runplan import build_manifest

_GUARD_SEAL: Final = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Permit:
    """Leave to touch the data once: made by `permit_attempt` after the budget is reserved on disk.

    Attributes:
        event: What will have been done to the population, as the ledger holds it.
        noise_std: Standard deviation of this site's noise, grid units.
    """

    site: str
    run_id: str
    round_number: int
    attempt: int
    population: str
    plan: TrainingPlan
    manifest: Manifest
    grid: Grid
    event: MechanismEvent
    noise_std: float
    seal: object

    def __post_init__(self) -> None:
        if self.seal is not _GUARD_SEAL:
            raise PolicyRefused("only the guard grants a permit to train")


def check_offer(home: SiteHome, ledger: BudgetLedger, plan: TrainingPlan, manifest: Manifest) -> str:
    """Everything that can be refused before data is touched; returns the population the plan may spend.

    Raises:
        TrustError: If the roster is not the pinned one or the manifest does not belong to the plan.
        PolicyRefused: If the policy does not allow the plan. PlanNotApproved: If nobody approved it.
        PrivacyBudgetExhausted: If the whole plan, spare attempts included, does not fit into what is left.
    """
    _check_roster(home, manifest)
    policy = home.policy()
    check_policy(policy, plan, manifest)
    population = _approved_population(home, policy, ledger, plan)
    _check_manifest(plan, manifest)  # after approval: accounting for a plan that nobody read can take minutes
    limit = policy.budget.get(population)
    if limit is None:
        raise PolicyRefused(f"{home.name}: the policy has no budget for population {population!r}")
    if population not in ledger.populations:
        raise PolicyRefused(f"{home.name}: no data is registered for population {population!r}")
    if plan.privacy.delta != limit.delta:
        raise PolicyRefused(
            f"{home.name}: the plan is calibrated at delta = {plan.privacy.delta:g}, "
            f"the budget is held at {limit.delta:g}"
        )
    worst = attempt_event(manifest, cohort_size=len(manifest.roster))
    attempts = manifest.rounds + manifest.spare_attempts
    ledger.account(population).check_affordable(worst, times=attempts)
    _check_policy_limit(ledger.account(population), limit, worst, times=attempts)
    return population


def permit_attempt(
    ledger: BudgetLedger,
    *,
    site: str,
    plan: TrainingPlan,
    manifest: Manifest,
    population: str,
    cohort: Sequence[str],
    round_number: int,
    attempt: int,
) -> Permit:
    """Reserve the budget for one attempt, on disk, and grant leave to compute it.

    Raises:
        PolicyRefused: If the plan's attempts are used up. PrivacyBudgetExhausted: If a limit would be passed;
            nothing is written then.
    """
    used = ledger.account(population).charged_in(manifest.run_id)
    allowed = manifest.rounds + manifest.spare_attempts
    if used >= allowed:
        raise PolicyRefused(f"the plan allows {allowed} attempts and {used} are used")
    event = attempt_event(manifest, cohort_size=len(cohort))
    ledger.reserve(population, run_id=manifest.run_id, round_number=round_number, attempt=attempt, event=event)
    return Permit(
        site=site,
        run_id=manifest.run_id,
        round_number=round_number,
        attempt=attempt,
        population=population,
        plan=plan,
        manifest=manifest,
        grid=grid_of(plan, manifest),
        event=event,
        noise_std=event.noise_multiplier_alone * event.sensitivity,
        seal=_GUARD_SEAL,
    )


def attempt_event(manifest: Manifest, *, cohort_size: int) -> MechanismEvent:
    """What one attempt with a cohort of this size does to a population."""
    return MechanismEvent(
        mode=TrustMode(manifest.mode),
        noise_multiplier=manifest.noise_multiplier,
        sensitivity=manifest.sensitivity,
        cohort_size=cohort_size,
        colluding=manifest.colluding,
        sampling_rate=manifest.sampling_rate,
        steps=manifest.steps,
        manifest_digest=manifest.digest,
    )


def grid_of(plan: TrainingPlan, manifest: Manifest) -> Grid:
    """The integer grid that plan and manifest name together."""
    return Grid(
        scale=manifest.scale,
        clamp=manifest.clamp,
        dimension=manifest.dimension,
        clipping_norm=plan.privacy.clipping_norm,
    )


def _check_roster(home: SiteHome, manifest: Manifest) -> None:
    trust = home.trust()
    if manifest.coordinator_key != trust.coordinator:
        raise TrustError(f"{home.name}: the manifest names a coordinator that is not the pinned one")
    for entry in manifest.roster:
        if trust.site_key(entry.name).text != entry.identity_key:
            raise TrustError(f"{home.name}: the manifest names another key for {entry.name!r} than the pinned one")
    if home.name not in manifest.names:
        raise TrustError(f"{home.name}: this site is not in the manifest's roster")


def _check_manifest(plan: TrainingPlan, manifest: Manifest) -> None:
    """A site works the manifest out from the plan itself and compares, rather than believe its numbers."""
    expected = build_manifest(
        plan,
        run_id=manifest.run_id,
        roster=manifest.roster,
        coordinator_key=manifest.coordinator_key,
        noise_multiplier=manifest.noise_multiplier,
    )
    if expected != manifest:
        own, given = expected.to_json(), manifest.to_json()
        wrong = sorted(key for key in own if own[key] != given[key])
        raise PolicyRefused(f"the manifest does not follow from the plan: {', '.join(wrong)} differ")
    event = attempt_event(manifest, cohort_size=len(manifest.roster))
    promised = epsilon(
        [event] * (manifest.rounds + manifest.spare_attempts), delta=plan.privacy.delta, view=View.TRUSTED
    )
    if promised > plan.privacy.epsilon:
        raise PrivacyBudgetExhausted(
            f"the manifest's noise multiplier {manifest.noise_multiplier:.4g} gives epsilon {promised:.3f} over all "
            f"attempts, the plan promises {plan.privacy.epsilon:g}"
        )


def _check_policy_limit(account: PopulationAccount, limit: BudgetLimit, event: MechanismEvent, *, times: int) -> None:
    """The ledger keeps the budget that a population was opened with; a policy that was lowered since binds too."""
    one, budget = account.terms.admission.cost(event), account.budget
    lowered = replace(
        budget,
        epsilon=min(limit.epsilon, budget.epsilon),
        epsilon_alone=min(limit.epsilon_alone, budget.epsilon_alone),
        delta=min(limit.delta, budget.delta),
    )
    extra = FilterCost(trusted=times * one.trusted, alone=times * one.alone)
    account.terms.admission.check(account.cost, extra, lowered)


def _approved_population(home: SiteHome, policy: SitePolicy, ledger: BudgetLedger, plan: TrainingPlan) -> str:
    approved = home.approvals().get(plan.digest)
    if approved is not None:
        return approved
    populations = list(ledger.populations)
    if policy.auto_approve and len(populations) == 1:
        return populations[0]
    raise PlanNotApproved(
        f"{home.name}: plan {plan.digest[:19]}… is not approved here", hint="review the plan and approve its digest"
    )
