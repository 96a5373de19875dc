"""A site's policy in words, beside what its ledger holds the populations to."""

from collections.abc import Iterator, Mapping

from common.policy import BudgetLimit, SitePolicy
from common.privacy.account import PopulationAccount
from common.terminal import one_line


def policy_text(policy: SitePolicy, accounts: Mapping[str, PopulationAccount], *, site: str) -> str:
    """What the policy allows, a rule a line.

    Args:
        accounts: The populations that are open in the ledger.
    """
    lines = [f"policy of {one_line(site)}, signed and in force"]
    rows = [
        ("patients", f"at least {policy.minimum_patients}, else the site stays out without saying why"),
        ("cohort", f"at least {policy.minimum_cohort} sites in a sum"),
        ("cheating sites", f"a plan allows for at least {policy.colluding_at_least}"),
        ("delta", f"at most {policy.maximum_delta:g}"),
        ("trust modes", _names(policy.modes)),
        ("backbones", _names(policy.backbones)),
        ("tasks", _names(policy.tasks)),
        ("dropout modes", _names(policy.dropout_modes)),
        ("hours", f"{_names(policy.hours)}, this machine's local time" if policy.hours else "always"),
        ("approval", _approval(policy)),
    ]
    width = max(len(name) for name, _ in rows)
    lines += [f"  {name.ljust(width)}  {text}" for name, text in rows]
    lines += ["", *_budgets(policy, accounts)]
    return "\n".join(lines)


def _names(values: tuple[str, ...]) -> str:
    return ", ".join(map(one_line, values)) or "none: every plan is refused"


def _approval(policy: SitePolicy) -> str:
    if not policy.auto_approve:
        return "by a person, plan by plan"
    limits = [
        f"{name} {limit:g}"
        for name, limit in (
            ("epsilon", policy.auto_approve_up_to_epsilon),
            ("epsilon alone", policy.auto_approve_up_to_epsilon_alone),
        )
        if limit is not None
    ]
    bound = f"that costs at most {' and '.join(limits)} by itself" if limits else "that fits into the budget"
    return f"NOBODY READS IT: every plan {bound} is approved, while there is one population"


def _budgets(policy: SitePolicy, accounts: Mapping[str, PopulationAccount]) -> Iterator[str]:
    if not policy.budget:
        yield "budgets: none, so nothing is spent; add [budget.POPULATION] to policy.toml"
    for name, limit in policy.budget.items():
        yield f"budget of {one_line(name)}: {_limit(limit)}"
        yield f"  {_held(limit, accounts.get(name))}"
    for name in accounts.keys() - policy.budget.keys():
        yield f"population {one_line(name)}: open in the ledger, without a budget here, so every plan for it is refused"


def _limit(limit: BudgetLimit) -> str:
    return (
        f"epsilon {limit.epsilon:g}, {limit.epsilon_alone:g} alone, at delta {limit.delta:g}, per {limit.unit}, "
        "add/remove-one"
    )


def _held(limit: BudgetLimit, account: PopulationAccount | None) -> str:
    if account is None:
        return "no data is registered for it yet"
    held = account.budget
    same = (held.epsilon, held.epsilon_alone, held.delta) == (limit.epsilon, limit.epsilon_alone, limit.delta)
    if same:
        return "the ledger holds the same"
    return (
        f"the ledger was opened with epsilon {held.epsilon:g}, {held.epsilon_alone:g} alone, at delta {held.delta:g}; "
        "of each pair the smaller counts"
    )
