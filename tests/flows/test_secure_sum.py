import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chi2, norm

from client.guard import attempt_event, grid_of
from common import wire_pb2 as pb
from common.crypto.ring import dequantise, from_ring
from common.parameters import vector_from_bytes
from tests.flows.federation import (
    Federation,
    clipped_units,
    is_round,
    make_federation,
    make_plan,
    request_in,
    silent_at,
    unmasked_units,
)

LEVEL = 1e-6


def noise_is_of_size(noise: NDArray[np.int64], *, variance: float) -> bool:
    """Whether a sum of squares fits independent Gaussians of this variance, two-sided at level 1e-6."""
    total = float(np.square(noise.astype(np.float64)).sum()) / variance
    return min(chi2.cdf(total, noise.size), chi2.sf(total, noise.size)) > LEVEL / 2


def share_variance(federation: Federation, cohort_size: int) -> float:
    """Square of one site's noise in grid units, zΔ/√h with h = |S| - c."""
    manifest = federation.manifest
    std = manifest.noise_multiplier * manifest.sensitivity / math.sqrt(cohort_size - manifest.colluding)
    return std**2


@pytest.fixture(scope="module")
def made_wide(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """A model of 130 parameters, so that the size of noise can be told."""
    return make_federation(tmp_path_factory.mktemp("wide") / "run", plan=make_plan(features=64))


@pytest.fixture
def wide(made_wide: Federation, tmp_path: Path) -> Federation:
    return made_wide.copy_to(tmp_path / "run")


@pytest.fixture
def answers(wide: Federation) -> dict[str, pb.Masked]:
    """Every site's answer to the first attempt of the first round."""
    return ask_all(wide)[1, 1]


def ask_all(federation: Federation) -> dict[tuple[int, int], dict[str, pb.Masked]]:
    """Answers to attempt 1 by all sites and to attempt 2 by all but the first."""
    found: dict[tuple[int, int], dict[str, pb.Masked]] = {}
    with federation.agents() as agents:
        ciphertexts = federation.shake_hands(agents)
        for attempt, cohort in ((1, federation.names), (2, federation.names[1:])):
            for name in cohort:
                request = federation.round_request(name, 1, attempt, cohort=cohort, ciphertexts=ciphertexts)
                answer = federation.opened(name, agents[name](request))
                found.setdefault((1, attempt), {})[name] = answer
    return found


def ring_sum(federation: Federation, answers: dict[str, pb.Masked]) -> NDArray[np.int64]:
    size = federation.manifest.dimension
    vectors = [vector_from_bytes(answer.vector, dimension=size) for answer in answers.values()]
    return from_ring(np.sum(vectors, axis=0, dtype=np.uint32))


def test_the_opened_sum_is_the_true_clipped_sums_and_the_promised_noise(
    wide: Federation, answers: dict[str, pb.Masked]
) -> None:
    truth = np.sum([clipped_units(wide, name) for name in wide.names], axis=0)
    noise = ring_sum(wide, answers) - truth
    assert np.abs(truth).max() > 1000
    assert noise_is_of_size(noise, variance=len(wide.names) * share_variance(wide, len(wide.names)))


def test_the_noise_without_one_site_still_keeps_the_promise(wide: Federation, answers: dict[str, pb.Masked]) -> None:
    """What a site that knows its own noise and update still faces: z times the sensitivity, no less."""
    others = wide.names[1:]
    seen = sum(unmasked_units(wide, name, answers[name], wide.names) - clipped_units(wide, name) for name in others)
    promised = wide.manifest.noise_multiplier * wide.manifest.sensitivity
    assert noise_is_of_size(np.asarray(seen), variance=promised**2)


def test_without_its_masks_an_answer_is_the_clipped_sum_and_one_share_of_noise(
    wide: Federation, answers: dict[str, pb.Masked]
) -> None:
    for name in wide.names:
        noise = unmasked_units(wide, name, answers[name], wide.names) - clipped_units(wide, name)
        assert noise_is_of_size(noise, variance=share_variance(wide, 4))


def test_with_its_masks_an_answer_is_spread_over_the_whole_ring(
    wide: Federation, answers: dict[str, pb.Masked]
) -> None:
    size = wide.manifest.dimension
    for answer in answers.values():
        middle = vector_from_bytes(answer.vector, dimension=size).astype(np.float64).mean() / 2**32
        assert abs(middle - 0.5) < norm.isf(LEVEL / 2) / math.sqrt(12 * size)


def test_a_sum_without_one_site_shows_nothing_of_the_others(wide: Federation, answers: dict[str, pb.Masked]) -> None:
    present = {name: answers[name] for name in wide.names[1:]}
    truth = np.sum([clipped_units(wide, name) for name in present], axis=0)
    assert np.abs(ring_sum(wide, present) - truth).max() > 2**28


def test_a_retry_runs_under_another_context(wide: Federation) -> None:
    found = ask_all(wide)
    assert len({answer.context for answer in found[1, 1].values()}) == 1
    assert len({answer.context for answer in found[1, 2].values()}) == 1
    assert found[1, 1]["west"].context != found[1, 2]["west"].context


def test_a_retry_draws_fresh_noise_of_the_smaller_cohorts_size(wide: Federation) -> None:
    found = ask_all(wide)
    cohort = wide.names[1:]
    for name in cohort:
        first = unmasked_units(wide, name, found[1, 1][name], wide.names)
        second = unmasked_units(wide, name, found[1, 2][name], cohort)
        assert noise_is_of_size(second - first, variance=share_variance(wide, 4) + share_variance(wide, 3))


def test_a_retry_is_charged_for_its_own_cohort(wide: Federation) -> None:
    ask_all(wide)
    expected = (attempt_event(wide.manifest, cohort_size=4), attempt_event(wide.manifest, cohort_size=3))
    with wide.ledger("north") as ledger:
        assert ledger.events("ward") == expected
    with wide.ledger("east") as ledger:
        assert ledger.events("ward") == expected[:1]


def test_the_model_moves_by_the_opened_sum_and_nothing_else(wide: Federation) -> None:
    sent: dict[int, list[NDArray[np.uint32]]] = {}
    size = wide.manifest.dimension

    def note(way: str, node: int, body: bytes) -> None:
        if way == "reply" and b"masked" in body[:200]:
            answer = wide.opened(wide.names[node - 1], body)
            sent.setdefault(answer.round, []).append(vector_from_bytes(answer.vector, dimension=size))

    with wide.agents() as agents:
        wide.train(agents, tap=note)
    total = dequantise(from_ring(np.sum(sent[1], axis=0, dtype=np.uint32)), grid_of(wide.plan, wide.manifest))
    nominal = sum(entry.nominal_patients for entry in wide.manifest.roster)
    moved = np.frombuffer((wide.root / "models" / "round-0001.f32").read_bytes(), dtype="<f4")
    np.testing.assert_allclose(moved, -total / nominal, rtol=1e-6)


def test_every_attempt_of_a_round_is_asked_at_the_same_model(wide: Federation) -> None:
    models: list[bytes] = []

    def note(way: str, node: int, body: bytes) -> None:
        if way == "request" and is_round(body, (2, 1), (2, 2)):
            models.append(request_in(body).parameters)

    with wide.agents() as agents:
        wide.train({**agents, "east": silent_at(agents["east"], (2, 1))}, tap=note)
    assert len(models) == 7
    assert len(set(models)) == 1
