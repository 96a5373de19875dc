"""What a site spent and what is left, population by population: the document of `fedward site budget`."""

import math
from collections.abc import Mapping
from typing import Any

from common.plan import TrainingPlan, evaluation_run
from common.privacy.account import MOST_FITTING, AttemptState, PopulationAccount
from common.privacy.accountant import epsilon
from common.privacy.admission import FilterCost
from common.privacy.budget import RELATION, View
from common.privacy.entries import AttemptKey
from common.privacy.events import EventKind, MechanismEvent
from common.privacy.parallel import IF_DISJOINT, site_spending
from common.report.plan_forecast import forecast_plan
from common.report.site_ledger import SiteLedger

BUDGET_VERSION = 1
# Beyond so many more answers the epsilon after them is not worked out: sampled ones would take minutes.
_MOST_FORECAST = 10**7


def budget_document(
    ledger: SiteLedger, *, rounds: int, plan: TrainingPlan | None = None, sites: int | None = None
) -> dict[str, Any]:
    """The JSON document of `fedward site budget`; FORMATS.md describes it.

    Args:
        rounds: How many more answers like the last one are forecast.
        plan: Also forecast this plan.
        sites: Size of the cohort for `plan`; by default that of the last answer.

    Raises:
        ValueError: If rounds or sites is out of range. ConfigurationError: As `forecast_plan`.
    """
    if not 1 <= rounds <= MOST_FITTING:
        raise ValueError(f"rounds to forecast lie between 1 and {MOST_FITTING}, not {rounds}")
    return {
        "version": BUDGET_VERSION,
        "site": ledger.site,
        "entries": ledger.head.seq,
        "head": ledger.head.digest,
        "key": ledger.key.text,
        "populations": [
            _population(name, account, rounds=rounds, plan=plan, sites=sites)
            for name, account in ledger.populations.items()
        ],
        "site_as_a_whole": _as_a_whole(ledger.populations),
    }


def _population(
    name: str, account: PopulationAccount, *, rounds: int, plan: TrainingPlan | None, sites: int | None
) -> dict[str, Any]:
    budget = account.budget
    return {
        "name": name,
        "delta": budget.delta,
        "unit": budget.unit.value,
        "relation": RELATION,
        "views": {view.value: _view(account, view) for view in View},
        "answers": {"charged": account.reserves, **{state.value: _state(account, state) for state in AttemptState}},
        "filter": {"kind": account.terms.admission.kind.value, "order": account.terms.admission.order},
        "forecast": _forecast(account, rounds),
        "plan": None if plan is None else forecast_plan(account, plan, sites=sites),
    }


def _view(account: PopulationAccount, view: View) -> dict[str, float | None]:
    """Epsilons of one view; `left` is what a plan may still cost by itself, and does not add up with `spent`."""
    admission, budget = account.terms.admission, account.budget
    most = admission.limit(budget, view)
    rest = max(0.0, most - account.cost.of(view))
    left = admission.reached_epsilon(FilterCost(trusted=rest, alone=rest), budget.delta, view)
    return {
        "limit": budget.limit(view),
        "spent": _finite(epsilon(account.events, delta=budget.delta, view=view)),
        "spent_by_filter": _finite(admission.reached_epsilon(account.cost, budget.delta, view)),
        "left": min(left, budget.limit(view)),
        "room_used": account.cost.of(view) / most if most > 0 else None,
    }


def _state(account: PopulationAccount, state: AttemptState) -> dict[str, Any]:
    """How many answers came this far, and what part of the filter's room they take under each view."""
    events = [charge.event for charge in account.charges.values() if charge.state is state]
    cost = sum(map(account.terms.admission.cost, events), FilterCost())
    limits = {view: account.terms.admission.limit(account.budget, view) for view in View}
    room = {view.value: cost.of(view) / most if most > 0 else None for view, most in limits.items()}
    return {"answers": len(events), "room_used": room}


def _forecast(account: PopulationAccount, rounds: int) -> dict[str, Any] | None:
    """More rounds like the last one that trained (or the last answer, if none did), with evaluations as often as its
    run had them; None if nothing was charged yet."""
    if not account.charges:
        return None
    key, event = _last(account)
    evaluation, every = _evaluations(account, key.run_id)
    fits = account.fitting(event, also=evaluation, every=every)
    return {
        "run": key.run_id,
        "round": key.round_number,
        "attempt": key.attempt,
        "event": event.to_json(),
        "evaluation": None if evaluation is None else {"every": every, "event": evaluation.to_json()},
        "fits": fits,
        "then": _after(account, event, fits, evaluation, every),
        "rounds": rounds,
        "rounds_fit": rounds <= fits,
        "after_rounds": _after(account, event, rounds, evaluation, every),
    }


def _evaluations(account: PopulationAccount, run_id: str) -> tuple[MechanismEvent | None, int]:
    """A run's last charged evaluation, and after how many rounds one came; None, 1 if none was charged so far."""
    found = [(key, charge) for key, charge in account.charges.items() if key.run_id == evaluation_run(run_id)]
    if not found:
        return None, 1
    return found[-1][1].event, min(key.round_number for key, _ in found)


def _last(account: PopulationAccount) -> tuple[AttemptKey, MechanismEvent]:
    charged = [(key, charge.event) for key, charge in account.charges.items()]
    trained = [one for one in charged if one[1].kind is EventKind.GAUSSIAN_SUM]
    return (trained or charged)[-1]


def _after(
    account: PopulationAccount, event: MechanismEvent, more: int, evaluation: MechanismEvent | None, every: int
) -> dict[str, float | None] | None:
    """Both epsilons after `more` such events and their evaluations; None where that is too many to work out."""
    if more * event.steps > _MOST_FORECAST:
        return None
    evaluations = [evaluation] * -(-more // every) if evaluation is not None else []
    events = (*account.events, *[event] * more, *evaluations)
    return {view.value: _finite(epsilon(events, delta=account.budget.delta, view=view)) for view in View}


def _as_a_whole(populations: Mapping[str, PopulationAccount]) -> dict[str, Any] | None:
    if not populations:
        return None
    by_view = {view: site_spending(populations, view) for view in View}
    either = by_view[View.TRUSTED]
    return {
        "delta": either.delta,
        "unit": None if either.unit is None else either.unit.value,
        "relation": RELATION,
        "composed": {
            view.value: None if found.composed is None else _finite(found.composed) for view, found in by_view.items()
        },
        "largest": {view.value: _finite(found.largest) for view, found in by_view.items()},
        "largest_holds": IF_DISJOINT,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
