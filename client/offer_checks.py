"""Whether an offered run may be computed here: its roster, its numbers, and whether a population can pay for it."""

from dataclasses import replace

from common.charges import planned_cost, planned_events
from common.errors import PolicyRefused, PrivacyBudgetExhausted, TrustError
from common.plan import Manifest, TrainingPlan
from common.policy import BudgetLimit, SitePolicy
from common.privacy.account import PopulationAccount
from common.privacy.accountant import epsilon
from common.privacy.budget import PrivacyBudget, View
from common.runplan import build_manifest
from common.trust import TrustFile


def check_roster(trust: TrustFile, manifest: Manifest, *, site: str) -> None:
    """Return only if coordinator and roster are the pinned ones and this site is among them; else TrustError."""
    if manifest.coordinator_key != trust.coordinator:
        raise TrustError(f"{site}: the manifest names a coordinator that is not the pinned one")
    for entry in manifest.roster:
        if trust.site_key(entry.name).text != entry.identity_key:
            raise TrustError(f"{site}: the manifest names another key for {entry.name!r} than the pinned one")
    if site not in manifest.names:
        raise TrustError(f"{site}: this site is not in the manifest's roster")


def check_manifest(plan: TrainingPlan, manifest: Manifest) -> None:
    """A site works the manifest out from the plan itself and compares, rather than believe its numbers.

    Raises:
        PolicyRefused: If they differ. PrivacyBudgetExhausted: If the noise does not keep the plan's epsilon.
    """
    expected = build_manifest(
        plan,
        run_id=manifest.run_id,
        roster=manifest.roster,
        coordinator_key=manifest.coordinator_key,
        noise_multiplier=manifest.noise_multiplier,
        evaluation_noise_multiplier=manifest.evaluation_noise_multiplier,
    )
    if expected != manifest:
        own, given = expected.to_json(), manifest.to_json()
        wrong = sorted(key for key in own.keys() | given.keys() if own.get(key) != given.get(key))
        raise PolicyRefused(f"the manifest does not follow from the plan: {', '.join(wrong)} differ")
    promises = (("", "attempts", plan.privacy.epsilon), ("evaluation ", "evaluations", plan.evaluation.epsilon))
    for (event, times), (which, what, limit) in zip(planned_events(manifest), promises, strict=False):
        promised = epsilon([event] * times, delta=plan.privacy.delta, view=View.TRUSTED)
        if promised > limit:
            raise PrivacyBudgetExhausted(
                f"the manifest's {which}noise multiplier {event.noise_multiplier:.4g} gives epsilon {promised:.3f} "
                f"over all {what}, the plan promises {limit:g}"
            )


def check_spending(
    policy: SitePolicy,
    plan: TrainingPlan,
    manifest: Manifest,
    *,
    site: str,
    population: str,
    account: PopulationAccount,
) -> None:
    """Return only if a population may pay for a plan as a whole, evaluations and spare attempts included.

    Args:
        account: What the population was charged.

    Raises:
        PolicyRefused: If it has no budget, or is held at another delta or unit.
        PrivacyBudgetExhausted: If the plan does not fit into what is left.
    """
    limit = fitting_limit(policy, plan, site=site, population=population, account=account)
    cost = planned_cost(account, manifest)
    # The ledger keeps the budget that a population was opened with; a policy that was lowered since binds too.
    for budget in (account.budget, in_force(account.budget, limit)):
        account.terms.admission.check(account.cost, cost, budget)


def fitting_limit(
    policy: SitePolicy, plan: TrainingPlan, *, site: str, population: str, account: PopulationAccount
) -> BudgetLimit:
    """The policy's limit for a population, if plans of this delta and unit may be charged to it; else PolicyRefused."""
    limit = budget_limit(policy, population, site=site)
    if plan.privacy.delta != limit.delta:
        raise PolicyRefused(
            f"{site}: the plan is calibrated at delta = {plan.privacy.delta:g}, the budget is held at {limit.delta:g}"
        )
    unit = account.budget.unit
    if plan.privacy.unit != unit.value:
        raise PolicyRefused(
            f"{site}: the plan protects each {plan.privacy.unit}, the budget of {population!r} is held per "
            f"{unit.value}",
            hint="a population keeps the unit that it was opened with; ask for a plan of that unit",
        )
    return limit


def in_force(budget: PrivacyBudget, limit: BudgetLimit) -> PrivacyBudget:
    """The smaller of what a population was opened with and what the policy allows today."""
    return replace(
        budget,
        epsilon=min(limit.epsilon, budget.epsilon),
        epsilon_alone=min(limit.epsilon_alone, budget.epsilon_alone),
        delta=min(limit.delta, budget.delta),
    )


def budget_limit(policy: SitePolicy, population: str, *, site: str) -> BudgetLimit:
    """What the policy lets a population spend; raises PolicyRefused if that is nothing."""
    limit = policy.budget.get(population)
    if limit is None:
        raise PolicyRefused(
            f"{site}: the policy has no budget for population {population!r}",
            hint=f"to give it one, add [budget.{population}] to policy.toml and sign it",
        )
    return limit
