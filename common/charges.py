"""What a run does to a population, as the ledger counts it: each event, how often at most, and what all of it costs."""

from common.plan import Manifest
from common.privacy.account import PopulationAccount
from common.privacy.admission import FilterCost
from common.privacy.events import EventKind, MechanismEvent, TrustMode


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


def evaluation_event(manifest: Manifest, *, cohort_size: int) -> MechanismEvent:
    """What one evaluation with a cohort of this size does to a population; raises ValueError if there is none."""
    if manifest.evaluation_noise_multiplier is None or manifest.evaluation_sensitivity is None:
        raise ValueError("the manifest has no evaluation")
    return MechanismEvent(
        kind=EventKind.SCORE_HISTOGRAM,
        mode=TrustMode(manifest.mode),
        noise_multiplier=manifest.evaluation_noise_multiplier,
        sensitivity=manifest.evaluation_sensitivity,
        cohort_size=cohort_size,
        colluding=manifest.colluding,
        sampling_rate=1.0,
        steps=1,
        manifest_digest=manifest.digest,
    )


def planned_events(manifest: Manifest) -> list[tuple[MechanismEvent, int]]:
    """Everything that a run may charge to a site at most: each event, over the whole roster, and how often."""
    sites = len(manifest.roster)
    planned = [(attempt_event(manifest, cohort_size=sites), manifest.rounds + manifest.spare_attempts)]
    if manifest.evaluation_attempts:
        planned.append((evaluation_event(manifest, cohort_size=sites), manifest.evaluation_attempts))
    return planned


def planned_cost(account: PopulationAccount, manifest: Manifest) -> FilterCost:
    """What a run may charge at most, in the unit of the population's filter."""
    total = FilterCost()
    for event, times in planned_events(manifest):
        one = account.terms.admission.cost(event)
        total += FilterCost(trusted=times * one.trusted, alone=times * one.alone)
    return total
