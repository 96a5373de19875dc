"""From a plan to a manifest: the numbers of a run, worked out the same way by the coordinator and by every site."""

from collections.abc import Iterable

from common.crypto.ring import SMALLEST_SHARE_STD, choose_grid
from common.errors import ConfigurationError
from common.model import dimension
from common.plan import Manifest, RosterEntry, TrainingPlan
from common.privacy.calibrate import noise_multiplier_for
from common.privacy.noise import MOST_COORDINATES
from common.settings import parse_settings


def calibrate_plan(plan: TrainingPlan) -> float:
    """The least noise multiplier z that keeps the plan's epsilon over rounds and spare attempts together."""
    return noise_multiplier_for(
        epsilon=plan.privacy.epsilon,
        delta=plan.privacy.delta,
        steps=plan.attempts * plan.training.local_steps,
        sampling_rate=plan.training.sampling_rate,
    )


def build_manifest(
    plan: TrainingPlan,
    *,
    run_id: str,
    roster: Iterable[RosterEntry],
    coordinator_key: str,
    noise_multiplier: float,
) -> Manifest:
    """The manifest that follows from a plan, a roster and a noise multiplier.

    Raises:
        ConfigurationError: If the sites are too few for the plan, the model is too large, no integer grid fits, or a
            name is malformed.
    """
    entries = tuple(sorted(roster, key=lambda entry: entry.name))
    secure = plan.secure_sum
    if len(entries) < secure.minimum_cohort:
        raise ConfigurationError(
            f"{len(entries)} sites are fewer than the minimum cohort of {secure.minimum_cohort}",
            hint="a secure sum over fewer than 3 sites shows one site's update to another",
        )
    size = dimension(plan.model, len(plan.task.classes))
    if size > MOST_COORDINATES:
        raise ConfigurationError(
            f"the model has {size} trained parameters, noise is drawn for at most {MOST_COORDINATES}",
            hint="train a smaller head",
        )
    try:
        grid = choose_grid(
            dimension=size,
            clipping_norm=plan.privacy.clipping_norm,
            sites=len(entries),
            nominal_patients=plan.privacy.nominal_patients,
            noise_multiplier=noise_multiplier,
            noise_shares=secure.minimum_cohort - secure.colluding,
        )
    except ValueError as error:
        raise ConfigurationError(f"no integer grid fits this plan: {error}") from error
    smallest_share = grid.share_std(noise_multiplier=noise_multiplier, noise_shares=len(entries) - secure.colluding)
    if plan.training.mode == "pooled" and smallest_share < SMALLEST_SHARE_STD:
        raise ConfigurationError(
            f"with {len(entries)} sites one noise share has a std of {smallest_share:.3g} grid units, the least is "
            f"{SMALLEST_SHARE_STD:g}",
            hint="fewer sites, or a smaller epsilon",
        )
    return parse_settings(
        {
            "run_id": run_id,
            "roster": entries,
            "coordinator_key": coordinator_key,
            "plan_digest": plan.digest,
            "mode": plan.training.mode,
            "dropouts": secure.dropouts,
            "minimum_cohort": secure.minimum_cohort,
            "colluding": secure.colluding,
            "noise_multiplier": noise_multiplier,
            "sensitivity": grid.sensitivity,
            "sampling_rate": plan.training.sampling_rate,
            "steps": plan.training.local_steps,
            "nominal_patients": plan.privacy.nominal_patients,
            "dimension": size,
            "scale": grid.scale,
            "clamp": grid.clamp,
            "rounds": plan.training.rounds,
            "spare_attempts": plan.training.spare_attempts,
            "evaluation": plan.evaluation,
        },
        Manifest,
        source="the manifest of this plan",
    )
