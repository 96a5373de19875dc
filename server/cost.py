"""What a run costs a site at most, and what it moves over the network: for people, before and after it."""

import math
from typing import Any, Final

from common.charges import attempt_event, evaluation_event
from common.plan import Manifest, TrainingPlan
from common.privacy.accountant import epsilon
from common.privacy.budget import RELATION, View

BYTES_PER_PARAMETER: Final = 4


def run_cost(plan: TrainingPlan, manifest: Manifest, *, attempts: int, evaluations: int) -> dict[str, Any]:
    """The privacy loss of so many attempts and evaluations over the whole roster, at the plan's delta.

    A site that was not in every attempt spent less; its own ledger knows. The whole roster is the worst case for
    `epsilon_alone`: the more sites there are, the less noise each adds.
    """
    sites = len(manifest.roster)
    events = [attempt_event(manifest, cohort_size=sites)] * attempts
    if evaluations:
        events += [evaluation_event(manifest, cohort_size=sites)] * evaluations
    delta = plan.privacy.delta
    return {
        "epsilon": _finite(epsilon(events, delta=delta, view=View.TRUSTED)),
        "epsilon_alone": _finite(epsilon(events, delta=delta, view=View.ALONE)),
        "delta": delta,
        "unit": plan.privacy.unit,
        "relation": RELATION,
    }


def round_bytes(manifest: Manifest) -> dict[str, int]:
    """Bytes that one attempt over the whole roster moves, envelopes not counted: model down, masked vectors up."""
    each = BYTES_PER_PARAMETER * manifest.dimension
    return {"site_down": each, "site_up": each, "all": 2 * each * len(manifest.roster)}


def cost_text(cost: dict[str, Any], *, colluding: int) -> str:
    """The loss in words: each epsilon with its delta, unit and relation."""
    cheats = "1 site cheats" if colluding == 1 else f"{colluding} sites cheat"
    relation = {"add_remove_one": "add or remove one"}.get(cost["relation"], cost["relation"])
    return (
        f"epsilon {_shown(cost['epsilon'])} while at most {cheats}"
        f", {_shown(cost['epsilon_alone'])} if all others do"
        f" (delta {cost['delta']:g}, per {cost['unit']}, {relation})"
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _shown(value: float | None) -> str:
    """Two digits, never less than the truth."""
    return "unbounded" if value is None else f"{math.ceil(100 * value) / 100:.2f}"
