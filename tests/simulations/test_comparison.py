"""The comparison rows are really trained, each by its own rule."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from client.training.batch import group_by_patient
from client.training.engine import choose_engine
from common.privacy.accountant import repeated_epsilon
from common.privacy.calibrate import noise_multiplier_for
from simulations.comparison import (
    Parameters,
    Peers,
    best_single_site_dp,
    federated_local_dp,
    federated_nonprivate,
    pooled_dp,
    pooled_dp_poisson,
    pooled_dp_recipe,
    pooled_nonprivate,
)
from simulations.features import PreparedData, prepare_data
from simulations.partition import partition_rows
from simulations.scenario import Scenario
from tests.simulations.small import changed, silent


def make_peers(scenario: Scenario, prepared: PreparedData, *, seed: int = 0) -> Peers:
    plan, source = prepared.plan_of(scenario), prepared.source
    parts = partition_rows(
        source.labels[prepared.split.private],
        weights=scenario.sites.weights,
        label_skew=scenario.sites.label_skew,
        seed=seed,
    )
    batches = [
        group_by_patient(prepared.of_rows(rows), source.labels[rows], source.patients[rows], classes=2)
        for rows in (prepared.split.private[part] for part in parts)
    ]
    rows = prepared.split.private
    return Peers(
        plan=plan,
        comparison=scenario.comparison,
        sites=batches,
        nominal=[batch.patient_count for batch in batches],
        pooled=group_by_patient(prepared.of_rows(rows), source.labels[rows], source.patients[rows], classes=2),
        public=prepared.public,
        engine=choose_engine(plan.model, 2)[0],
        seed=seed,
    )


@pytest.fixture(scope="module")
def prepared() -> PreparedData:
    return prepare_data(changed("breast"), data=None, weights=None, device="cpu", report=silent)


@pytest.fixture(scope="module")
def peers(prepared: PreparedData) -> Peers:
    return make_peers(changed("breast"), prepared)


def accuracy(peers: Peers, parameters: Parameters) -> float:
    found = peers.test_metrics(parameters).accuracy
    assert found is not None
    return found


ROWS: dict[str, tuple[Callable[[Peers], Parameters], float]] = {
    "pooled, not private": (pooled_nonprivate, 0.97),
    "federated, not private": (federated_nonprivate, 0.97),
    "the recipe in one place": (pooled_dp_recipe, 0.94),
    "Poisson-sampled": (pooled_dp_poisson, 0.93),
    "every site its own noise": (federated_local_dp, 0.92),
    "best single site": (lambda peers: best_single_site_dp(peers)[0], 0.87),
}


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_a_model_that_learned(peers: Peers, row: str) -> None:
    train, least = ROWS[row]
    assert accuracy(peers, train(peers)) >= least


@pytest.mark.parametrize("row", ["pooled, not private", "federated, not private"])
def test_a_row_without_privacy_is_the_same_every_time(peers: Peers, row: str) -> None:
    train, _ = ROWS[row]
    assert np.array_equal(train(peers), train(peers))


@pytest.mark.parametrize("row", ["the recipe in one place", "Poisson-sampled", "every site its own noise"])
def test_a_private_row_draws_new_noise_every_time(peers: Peers, row: str) -> None:
    train, _ = ROWS[row]
    first, second = train(peers), train(peers)
    assert (first != second).all()


def test_one_full_step_at_every_site_is_one_step_on_the_pool(prepared: PreparedData) -> None:
    scenario = changed(
        "breast",
        comparison__nonprivate_rounds=1,
        comparison__nonprivate_local_steps=1,
        comparison__nonprivate_learning_rate=0.5,
        comparison__nonprivate_local_learning_rate=0.5,
    )
    peers = make_peers(scenario, prepared)
    assert np.allclose(federated_nonprivate(peers), pooled_nonprivate(peers), atol=1e-7)


def test_the_pooled_peer_is_one_of_the_two_and_says_which(peers: Peers) -> None:
    parameters, which = pooled_dp(peers)
    assert which.startswith(("the federation's own recipe", "Poisson-sampled DP-SGD"))
    assert accuracy(peers, parameters) >= 0.93


def test_the_single_site_is_chosen_without_the_test_rows(prepared: PreparedData) -> None:
    peers = make_peers(changed("breast", plan__privacy__epsilon=900.0), prepared)
    wrong = replace(peers, public=replace(peers.public, test_labels=1 - peers.public.test_labels))
    chosen = {best_single_site_dp(each)[1] for each in (peers, wrong)}
    assert len(chosen) == 1


@pytest.mark.parametrize("epsilon", [1.0, 3.0, 8.0])
def test_the_sampled_peer_spends_what_the_federation_may(epsilon: float) -> None:
    recipe = changed("breast").comparison.poisson_for(epsilon)
    spent = {"steps": recipe.steps, "sampling_rate": recipe.sampling_rate, "delta": 1e-5}
    noise_multiplier = noise_multiplier_for(epsilon=epsilon, **spent)
    assert 0.99 * epsilon <= repeated_epsilon(noise_multiplier=noise_multiplier, **spent) <= epsilon


def test_a_local_plan_is_compared_by_its_own_local_training(prepared: PreparedData) -> None:
    scenario = changed(
        "breast",
        plan__training__mode="local",
        plan__training__sampling_rate=0.5,
        plan__training__local_steps=3,
        plan__training__local_learning_rate=0.5,
        plan__training__rounds=20,
    )
    peers = make_peers(scenario, prepared)
    for train in (federated_local_dp, pooled_dp_recipe):
        assert accuracy(peers, train(peers)) >= 0.85
