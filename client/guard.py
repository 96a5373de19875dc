"""May this be computed here? The plan against policy, approval and budget; only this module makes a Permit."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from client.decisions import Approval
from client.home import SiteHome
from client.offer_checks import budget_limit, check_manifest, check_roster, check_spending, fitting_limit, in_force
from common.charges import attempt_event, evaluation_event, planned_cost
from common.crypto.ring import Grid
from common.errors import (
    PlanNotApproved,
    PolicyRefused,
)
from common.plan import Manifest, TrainingPlan
from common.policy import BudgetLimit, SitePolicy, check_hours, check_policy
from common.privacy.account import PopulationAccount
from common.privacy.admission import FilterCost
from common.privacy.budget import View
from common.privacy.events import EventKind, MechanismEvent
from common.privacy.ledger import BudgetLedger
from common.runplan import evaluation_grid, training_grid

_GUARD_SEAL: Final = object()
MOST_NAMED: Final = 3
_REVIEW: Final = "review it with fedward site plans show, then plans approve or plans reject"


@dataclass(frozen=True, slots=True, kw_only=True)
class Permit:
    """Leave to touch the data once: made by `permit_attempt` after the budget is reserved on disk.

    Attributes:
        run_id: As the ledger names it; an evaluation's is `Manifest.evaluation_run`.
        grid: Of what the permit is for.
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
            raise PolicyRefused("only the guard grants a permit to touch the data")


def check_offer(home: SiteHome, ledger: BudgetLedger, plan: TrainingPlan, manifest: Manifest) -> str:
    """Everything that can be refused before data is touched; returns the population the plan may spend.

    Raises:
        TrustError: If the roster is not the pinned one or the manifest does not belong to the plan.
        PolicyRefused: If the policy does not allow the plan. PlanNotApproved: If nobody approved it.
        PrivacyBudgetExhausted: If the whole plan, evaluations and spare attempts included, does not fit into what is
            left.
    """
    check_roster(home.trust(), manifest, site=home.name)
    policy = home.policy()
    check_policy(policy, plan, manifest)
    approval = _approval(home, plan, manifest)
    population = approval.population if approval else _auto_approved_population(home, policy, ledger, plan, manifest)
    check_manifest(plan, manifest)  # after approval: accounting for a plan that nobody read can take minutes
    budget_limit(policy, population, site=home.name)
    if population not in ledger.populations:
        raise PolicyRefused(
            f"{home.name}: no data is registered for population {population!r}",
            hint="fedward site dataset add registers it",
        )
    account = ledger.account(population)
    check_spending(policy, plan, manifest, site=home.name, population=population, account=account)
    if approval is None:
        _check_auto_approved(policy, account, manifest, site=home.name)
    return population


def check_attempt(
    home: SiteHome, ledger: BudgetLedger, plan: TrainingPlan, manifest: Manifest, population: str, *, now: datetime
) -> BudgetLimit:
    """Whether a run that was joined may still compute, by the rules that are in force now; charges nothing.

    A run counts against its plan's approval from the first attempt that may be computed, not from the offer: one that
    came to nothing takes no approval away.

    Returns:
        What the policy lets the population spend today.

    Raises:
        TrustError: If the policy was edited and not signed.
        PolicyRefused: If the policy no longer allows the plan, or not at this hour. PlanNotApproved: If the plan's
            approval was taken back since, or other runs took it.
        PrivacyBudgetExhausted: If the policy's budget was lowered below what is spent.
    """
    policy = home.policy()
    check_policy(policy, plan, manifest)
    if plan.digest in home.decisions().rejected:
        raise _rejected(home, plan)
    approval = _approval(home, plan, manifest)
    approved = approval is not None and approval.population == population
    if not approved and not policy.auto_approve:
        raise _not_approved(home, plan, manifest)
    account = ledger.account(population)
    limit = fitting_limit(policy, plan, site=home.name, population=population, account=account)
    check_hours(policy, now)
    account.terms.admission.check(account.cost, FilterCost(), in_force(account.budget, limit))
    if approved:
        home.begin_run(plan.digest, run_id=manifest.run_id)
    return limit


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
    kind: EventKind = EventKind.GAUSSIAN_SUM,
    limit: BudgetLimit | None = None,
) -> Permit:
    """Reserve the budget for one attempt, on disk, and grant leave to compute it.

    Args:
        kind: What the attempt is: training, or an evaluation's histogram.
        limit: What the policy in force lets the population spend, where that is less than the ledger's budget.

    Raises:
        PolicyRefused: If the plan's attempts are used up. PrivacyBudgetExhausted: If a limit would be passed;
            nothing is written then.
    """
    evaluation = kind is EventKind.SCORE_HISTOGRAM
    run_id = manifest.evaluation_run if evaluation else manifest.run_id
    allowed = manifest.evaluation_attempts if evaluation else manifest.rounds + manifest.spare_attempts
    used = ledger.account(population).charged_in(run_id)
    if used >= allowed:
        raise PolicyRefused(
            f"the plan allows {allowed} {'evaluations' if evaluation else 'attempts'} and {used} are used"
        )
    event = (evaluation_event if evaluation else attempt_event)(manifest, cohort_size=len(cohort))
    grid = (evaluation_grid if evaluation else grid_of)(plan, manifest)
    if limit is not None:
        account = ledger.account(population)
        admission = account.terms.admission
        admission.check(account.cost, admission.cost(event), in_force(account.budget, limit))
    ledger.reserve(population, run_id=run_id, round_number=round_number, attempt=attempt, event=event)
    return Permit(
        site=site,
        run_id=run_id,
        round_number=round_number,
        attempt=attempt,
        population=population,
        plan=plan,
        manifest=manifest,
        grid=grid,
        event=event,
        noise_std=event.noise_multiplier_alone * event.sensitivity,
        seal=_GUARD_SEAL,
    )


def grid_of(plan: TrainingPlan, manifest: Manifest) -> Grid:
    """The integer grid of the training that plan and manifest name together."""
    return training_grid(plan, manifest)


def _approval(home: SiteHome, plan: TrainingPlan, manifest: Manifest) -> Approval | None:
    """The approval that lets this run spend, if there is one."""
    approval = home.decisions().approved.get(plan.digest)
    return approval if approval is not None and approval.covers(manifest.run_id) else None


def _auto_approved_population(
    home: SiteHome, policy: SitePolicy, ledger: BudgetLedger, plan: TrainingPlan, manifest: Manifest
) -> str:
    """The one population, if the policy may approve this plan by itself; what it costs is looked at later."""
    if plan.digest in home.decisions().rejected:
        raise _rejected(home, plan)
    populations = list(ledger.populations)
    limit = policy.auto_approve_up_to_epsilon
    promised = max(plan.privacy.epsilon, plan.evaluation.epsilon if plan.evaluation.every else 0.0)
    if policy.auto_approve and len(populations) == 1 and (limit is None or promised <= limit):
        return populations[0]
    raise _not_approved(home, plan, manifest)


def _check_auto_approved(policy: SitePolicy, account: PopulationAccount, manifest: Manifest, *, site: str) -> None:
    """Return only if the plan by itself costs no more than the policy approves by itself."""
    cost, admission = planned_cost(account, manifest), account.terms.admission
    limits = {View.TRUSTED: policy.auto_approve_up_to_epsilon, View.ALONE: policy.auto_approve_up_to_epsilon_alone}
    for view, limit in limits.items():
        reached = admission.reached_epsilon(cost, account.budget.delta, view)
        if limit is not None and reached > limit:
            raise PlanNotApproved(
                f"{site}: the plan costs {view.value} {reached:.3f}, the policy approves up to {limit:g} by itself",
                hint=_REVIEW,
            )


def _not_approved(home: SiteHome, plan: TrainingPlan, manifest: Manifest) -> PlanNotApproved:
    approval = home.decisions().approved.get(plan.digest)
    if approval is None or approval.covers(manifest.run_id):  # none, or for another population
        return PlanNotApproved(f"{home.name}: plan {plan.digest[:19]}… is not approved here", hint=_REVIEW)
    begun = len(approval.begun)
    return PlanNotApproved(
        f"{home.name}: plan {plan.digest[:19]}… was approved for {begun} run{'s' * (begun > 1)} and "
        f"{begun} began: {', '.join(approval.begun[-MOST_NAMED:])}; {manifest.run_id} would be one more",
        hint=_REVIEW,
    )


def _rejected(home: SiteHome, plan: TrainingPlan) -> PlanNotApproved:
    return PlanNotApproved(
        f"{home.name}: plan {plan.digest[:19]}… was rejected here", hint="fedward site plans approve takes that back"
    )
