import math

import pytest

from common.crypto.keys import SigningKey
from common.errors import ConfigurationError
from common.plan import Manifest, RosterEntry, TrainingPlan
from common.privacy.accountant import epsilon
from common.privacy.budget import View
from common.privacy.events import MechanismEvent, TrustMode
from common.runplan import build_manifest, calibrate_plan
from tests.flows.federation import make_plan


def roster(count: int) -> list[RosterEntry]:
    return [
        RosterEntry(name=f"site-{n}", identity_key=SigningKey.generate().public_key.text, nominal_patients=16)
        for n in range(count)
    ]


def build(plan: TrainingPlan, *, sites: int = 4, run_id: str = "run-1", noise_multiplier: float = 5.0) -> Manifest:
    return build_manifest(
        plan, run_id=run_id, roster=roster(sites), coordinator_key="", noise_multiplier=noise_multiplier
    )


@pytest.mark.parametrize("mode", ["pooled", "local"])
def test_the_noise_keeps_the_plans_epsilon_to_its_last_spare_attempt_and_wastes_little(mode: str) -> None:
    plan = make_plan(mode=mode)
    event = MechanismEvent(
        mode=TrustMode(mode),
        noise_multiplier=calibrate_plan(plan),
        sensitivity=1000.0,
        cohort_size=4,
        colluding=1,
        sampling_rate=1.0,
        steps=1,
        manifest_digest="sha256:" + "0" * 64,
    )
    reached = epsilon([event] * plan.attempts, delta=plan.privacy.delta, view=View.TRUSTED)
    assert 0.97 * plan.privacy.epsilon < reached <= plan.privacy.epsilon


def test_spare_attempts_cost_noise() -> None:
    assert calibrate_plan(make_plan(spare_attempts=5)) > calibrate_plan(make_plan(spare_attempts=0))


def test_a_manifest_follows_from_its_plan() -> None:
    plan = make_plan()
    manifest = build(plan)
    assert manifest.plan_digest == plan.digest
    assert (manifest.rounds, manifest.spare_attempts, manifest.steps) == (3, 2, 1)
    assert (manifest.minimum_cohort, manifest.colluding, manifest.dimension) == (3, 1, 10)


def test_the_sensitivity_is_the_clipping_norm_and_the_rounding_on_the_grid() -> None:
    plan = make_plan(clipping_norm=0.5)
    manifest = build(plan)
    assert manifest.sensitivity == manifest.scale * 0.5 + math.sqrt(10)


def test_the_order_in_which_sites_enrolled_does_not_matter() -> None:
    sites = roster(4)
    built = [
        build_manifest(make_plan(), run_id="run-1", roster=order, coordinator_key="", noise_multiplier=5.0)
        for order in (sites, sites[::-1])
    ]
    assert built[0].digest == built[1].digest


def test_a_sum_of_all_sites_and_their_noise_stays_below_half_the_ring() -> None:
    manifest = build(make_plan(), sites=40)
    noise = manifest.noise_multiplier * manifest.sensitivity * math.sqrt(40 / 2)
    assert 40 * manifest.clamp + 12 * noise < 2**31


def test_too_few_sites_are_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigurationError, match="2 sites are fewer than the minimum cohort of 3"):
        build(make_plan(), sites=2)


def test_a_plan_without_a_grid_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no integer grid fits this plan"):
        build(make_plan(clipping_norm=1e-6))


def test_a_run_without_a_proper_name_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="run_id"):
        build(make_plan(), run_id="My Run")


def test_a_noise_share_that_would_be_lost_in_rounding_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="one noise share has a std of"):
        build(make_plan(nominal_patients=90_000), sites=9_000, noise_multiplier=0.5)
