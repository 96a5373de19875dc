"""A person's yes or no to a plan: yes only to what policy, budget and data would let through."""

from collections.abc import Mapping

from client.data.registry import check_data
from client.home import SiteHome
from client.offer_checks import budget_limit, check_manifest, check_roster, check_spending
from client.plan_review import Subject
from common.errors import ConfigurationError, FederationError, PolicyRefused
from common.policy import check_policy
from common.privacy.account import PopulationAccount


def approve_plan(
    home: SiteHome,
    accounts: Mapping[str, PopulationAccount],
    subject: Subject,
    *,
    population: str | None,
    runs: int = 1,
) -> str:
    """Approve a plan for the one population that it fits, and return that population.

    What the site would refuse when the plan asks is refused here, with the numbers, but for the hour: approved at
    noon, a plan may run at night.

    Args:
        accounts: The populations that are open in the ledger.
        population: Whose budget may be spent; None if only one fits.
        runs: How many more runs of the plan may begin; each is charged by itself.

    Raises:
        TrustError: If the roster is not the pinned one. PolicyRefused: If a rule does not allow the plan.
        PrivacyBudgetExhausted: If it does not fit into what is left. DataRefused: If the records are of another kind.
        ConfigurationError: If it has to be said which population.
    """
    plan, manifest = subject.plan, subject.manifest
    check_roster(home.trust(), manifest, site=home.name)
    check_policy(home.policy(), plan, manifest)
    check_manifest(plan, manifest)
    chosen = _only_fitting(home, accounts, subject) if population is None else population
    _check_population(home, accounts, subject, chosen)
    home.approve(plan.digest, population=chosen, runs=runs)
    return chosen


def _only_fitting(home: SiteHome, accounts: Mapping[str, PopulationAccount], subject: Subject) -> str:
    if not accounts:
        raise PolicyRefused(
            f"{home.name}: no data is registered, so no budget can be spent", hint="fedward site dataset add"
        )
    refused: dict[str, FederationError] = {}
    for name in accounts:
        try:
            _check_population(home, accounts, subject, name)
        except FederationError as error:
            refused[name] = error
    fitting = sorted(accounts.keys() - refused.keys())
    if len(fitting) > 1:
        raise ConfigurationError(
            f"the plan fits {len(fitting)} populations: {', '.join(fitting)}", hint="say which with --population NAME"
        )
    if fitting:
        return fitting[0]
    if len(refused) == 1:
        raise next(iter(refused.values()))
    told = "; ".join(f"{name}: {error.fact}" for name, error in refused.items())
    raise PolicyRefused(f"{home.name}: the plan fits none of {len(refused)} populations. {told}")


def _check_population(
    home: SiteHome, accounts: Mapping[str, PopulationAccount], subject: Subject, population: str
) -> None:
    policy, plan = home.policy(), subject.plan
    budget_limit(policy, population, site=home.name)
    account = accounts.get(population)
    if account is None:
        raise PolicyRefused(
            f"{home.name}: no data is registered for population {population!r}",
            hint=f"there are: {', '.join(sorted(accounts)) or 'none'}",
        )
    check_spending(policy, plan, subject.manifest, site=home.name, population=population, account=account)
    check_data(home, plan, population, minimum_patients=policy.minimum_patients)
