import numpy as np
import pytest

from common import wire_pb2 as pb
from tests.flows.federation import Federation, lost_at, unmasked_units

SITE = "south"


def test_four_sites_train_with_their_own_full_noise(local_federation: Federation) -> None:
    with local_federation.agents() as agents:
        result = local_federation.train(agents)
    assert (result.rounds, result.left) == (2, {})
    for name in local_federation.names:
        assert local_federation.charged(name) == {(1, 1): "settled", (2, 1): "settled"}


def test_a_retry_is_not_charged_again(local_federation: Federation) -> None:
    with local_federation.agents() as agents:
        result = local_federation.train({**agents, "east": lost_at(agents["east"], (1, 1))})
    assert (result.rounds, result.attempts) == (2, 3)
    for name in local_federation.names:
        assert local_federation.charged(name) == {(1, 1): "settled", (2, 1): "settled"}


@pytest.fixture
def answers(local_federation: Federation) -> dict[int, pb.Masked]:
    """One site's answers to a first attempt over four sites and a second over three; its agent restarts between."""
    federation, cohort = local_federation, local_federation.names[1:]
    with federation.agents() as agents:
        ciphertexts = federation.shake_hands(agents)
    found = {}
    for attempt, names in ((1, federation.names), (2, cohort)):
        request = federation.round_request(SITE, 1, attempt, cohort=names, ciphertexts=ciphertexts)
        with federation.open_agent(SITE) as agent:
            found[attempt] = federation.opened(SITE, agent.handle(request))
    return found


def test_a_retry_masks_the_very_same_update_anew(local_federation: Federation, answers: dict[int, pb.Masked]) -> None:
    first = unmasked_units(local_federation, SITE, answers[1], local_federation.names)
    second = unmasked_units(local_federation, SITE, answers[2], local_federation.names[1:])
    np.testing.assert_array_equal(first, second)
    assert answers[1].vector != answers[2].vector


def test_the_ledger_holds_one_release_for_both_attempts(
    local_federation: Federation, answers: dict[int, pb.Masked]
) -> None:
    assert isinstance(answers[2], pb.Masked)
    assert local_federation.charged(SITE) == {(1, 1): "settled"}


def test_the_next_round_is_computed_and_charged_anew(
    local_federation: Federation, answers: dict[int, pb.Masked]
) -> None:
    with local_federation.open_agent(SITE) as agent:
        reply = agent.handle(local_federation.round_request(SITE, 2, 1))
    answer = local_federation.opened(SITE, reply)
    first = unmasked_units(local_federation, SITE, answers[1], local_federation.names)
    assert not np.array_equal(unmasked_units(local_federation, SITE, answer, local_federation.names), first)
    assert local_federation.charged(SITE) == {(1, 1): "settled", (2, 1): "settled"}
