import json
from pathlib import Path

import numpy as np
import pytest

from client.agent import SiteAgent
from client.guard import attempt_event
from common.errors import QuorumLost
from server.release import read_release
from tests.flows.federation import (
    POPULATION,
    Federation,
    Handle,
    is_round,
    lost_at,
    make_federation,
    make_plan,
    silent_at,
    spend_everything,
)


@pytest.fixture(scope="module")
def made_trio(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return make_federation(tmp_path_factory.mktemp("trio") / "run", sites=3)


@pytest.fixture
def trio(made_trio: Federation, tmp_path: Path) -> Federation:
    """Three sites, the least that a sum may hold: whoever leaves ends the run."""
    return made_trio.copy_to(tmp_path / "run")


def spending_elsewhere(agent: SiteAgent, federation: Federation, *, before_round: int) -> Handle:
    """A site whose budget goes to other runs before one of the rounds."""

    def answer(data: bytes) -> bytes:
        if is_round(data, (before_round, 1)):
            spend_everything(agent.ledger, attempt_event(federation.manifest, cohort_size=len(federation.names)))
        return agent.handle(data)

    return answer


def test_a_silent_site_is_left_out_of_the_rest_of_the_round_and_asked_again_in_the_next(federation: Federation) -> None:
    with federation.agents() as agents:
        result = federation.train({**agents, "east": silent_at(agents["east"], (1, 1))})
    assert (result.rounds, result.attempts, result.left) == (3, 4, {})
    assert federation.charged("east") == {(2, 1): "settled", (3, 1): "settled"}


def test_those_that_answered_a_sum_that_stayed_sealed_are_charged_for_both_attempts(federation: Federation) -> None:
    with federation.agents() as agents:
        federation.train({**agents, "east": silent_at(agents["east"], (1, 1))})
    for name in ("north", "south", "west"):
        assert set(federation.charged(name)) == {(1, 1), (1, 2), (2, 1), (3, 1)}
        assert set(federation.charged(name).values()) == {"settled"}


def test_a_site_whose_answer_is_lost_on_the_way_is_charged_for_it(federation: Federation) -> None:
    with federation.agents() as agents:
        result = federation.train({**agents, "east": lost_at(agents["east"], (1, 1))})
    assert result.rounds == 3
    assert federation.charged("east") == {(1, 1): "settled", (2, 1): "settled", (3, 1): "settled"}


def test_a_site_that_is_silent_in_two_rounds_is_not_waited_for_again(federation: Federation) -> None:
    with federation.agents() as agents:
        result = federation.train({**agents, "east": silent_at(agents["east"], (1, 1), (2, 1), (3, 1))})
    assert (result.rounds, result.attempts, result.left) == (3, 5, {"east": "NoReply"})


def test_a_site_that_never_connects_is_done_without(federation: Federation) -> None:
    with federation.agents() as agents:
        result = federation.train({name: agents[name] for name in ("north", "south", "west")})
    assert (result.rounds, result.left) == (3, {"east": "NotConnected"})
    assert federation.charged("east") == {}


def test_a_site_that_refuses_the_offer_is_done_without(federation: Federation) -> None:
    (federation.homes["east"].root / "approvals.json").unlink()
    with federation.agents() as agents:
        result = federation.train(agents)
    assert (result.rounds, result.left) == (3, {"east": "PlanNotApproved"})


def test_a_site_whose_budget_is_too_small_refuses_and_the_others_train(tmp_path: Path) -> None:
    federation = make_federation(tmp_path / "run", epsilon_limits={"east": 2.0})
    with federation.agents() as agents:
        result = federation.train(agents)
    assert (result.rounds, result.left) == (3, {"east": "PrivacyBudgetExhausted"})
    assert federation.charged("east") == {}


def test_a_site_whose_budget_is_spent_in_the_middle_of_a_run_refuses_and_the_others_go_on(
    federation: Federation,
) -> None:
    with federation.agents_of("north", "south", "west") as agents, federation.open_agent("east") as east:
        result = federation.train({**agents, "east": spending_elsewhere(east, federation, before_round=2)})
    assert (result.rounds, result.attempts, result.left) == (3, 4, {"east": "PrivacyBudgetExhausted"})
    for name in ("north", "south", "west"):
        assert "reserved" not in federation.charged(name).values()


def test_without_a_cohort_the_run_ends_saying_who_left_and_why(trio: Federation) -> None:
    with trio.agents() as agents:
        other = trio.copy_to(trio.root / "spare")
        with (
            other.open_agent("south") as south,
            pytest.raises(
                QuorumLost, match=r"2 of 3 sites.*minimum cohort is 3.*south: PrivacyBudgetExhausted"
            ) as lost,
        ):
            trio.train({**agents, "south": spending_elsewhere(south, trio, before_round=3)})
    assert lost.value.exit_code == 8
    assert lost.value.hint


def test_when_a_run_ends_early_the_others_ledgers_settle_and_the_model_so_far_is_kept(trio: Federation) -> None:
    with trio.agents_of("east", "north") as agents, trio.open_agent("south") as south, pytest.raises(QuorumLost):
        trio.train({**agents, "south": spending_elsewhere(south, trio, before_round=3)})
    for name in ("east", "north"):
        assert set(trio.charged(name).values()) == {"settled"}
    released = read_release(trio.root / "model", plan=trio.plan, key=trio.coordinator.public_key.text)
    kept = np.frombuffer((trio.root / "models" / "round-0002.f32").read_bytes(), dtype="<f4")
    np.testing.assert_array_equal(released, kept)
    assert json.loads((trio.root / "result.json").read_bytes())["rounds"] == 2


def test_a_silent_site_is_named_when_nobody_can_take_its_place(trio: Federation) -> None:
    with trio.agents() as agents, pytest.raises(QuorumLost, match="north: NoReply"):
        trio.train({**agents, "north": silent_at(agents["north"], (1, 1), (1, 2))})


def dying_in(agent: SiteAgent, federation: Federation, attempt: tuple[int, int]) -> Handle:
    """A site that is killed after an attempt was charged, and is back when it is asked for it once more."""

    def answer(data: bytes) -> bytes:
        if is_round(data, attempt):
            event = attempt_event(federation.manifest, cohort_size=len(federation.names))
            key = {"run_id": federation.manifest.run_id, "round_number": attempt[0], "attempt": attempt[1]}
            agent.ledger.reserve(POPULATION, event=event, **key)
        return agent.handle(data)

    return answer


def test_a_site_that_lost_an_attempt_takes_part_in_the_next_though_nobody_can_take_its_place(trio: Federation) -> None:
    others = [name for name in trio.names if name != "north"]
    with trio.agents_of(*others) as agents, trio.open_agent("north") as north:
        result = trio.train({**agents, "north": dying_in(north, trio, (2, 1))})
    assert (result.rounds, result.attempts, result.left) == (3, 4, {})
    assert trio.charged("north") == {(1, 1): "settled", (2, 1): "burned", (2, 2): "settled", (3, 1): "settled"}


def test_one_silence_ends_no_run_though_nobody_can_take_the_sites_place(trio: Federation) -> None:
    with trio.agents() as agents:
        result = trio.train({**agents, "north": silent_at(agents["north"], (1, 1))})
    assert (result.rounds, result.attempts, result.left) == (3, 4, {})


def test_a_run_that_cannot_begin_releases_no_model_and_charges_nobody(trio: Federation) -> None:
    (trio.homes["east"].root / "approvals.json").unlink()
    with trio.agents() as agents, pytest.raises(QuorumLost, match="east: PlanNotApproved"):
        trio.train(agents)
    assert not (trio.root / "model").exists()
    assert [trio.charged(name) for name in trio.names] == [{}, {}, {}]


def test_used_up_spare_attempts_end_the_run_with_the_model_so_far(federation: Federation) -> None:
    short = federation.under(make_plan(rounds=3, spare_attempts=1))
    with short.agents() as agents, pytest.raises(QuorumLost, match="2 of 3 rounds were completed with 4 of 4 attempts"):
        short.train({**agents, "east": silent_at(agents["east"], (1, 1), (2, 1))})
    assert json.loads((short.root / "result.json").read_bytes())["rounds"] == 2
    assert read_release(short.root / "model", plan=short.plan, key=short.coordinator.public_key.text).shape == (10,)


def test_a_lost_attempt_without_a_spare_one_costs_a_round_of_ten_and_the_run_is_complete(
    federation: Federation,
) -> None:
    plain = federation.under(make_plan(rounds=10, spare_attempts=0))
    with plain.agents() as agents:
        result = plain.train({**agents, "east": silent_at(agents["east"], (4, 1))})
    assert (result.rounds, result.attempts) == (9, 10)
    assert all(len(plain.charged(name)) <= plain.plan.attempts for name in plain.names)


def test_an_attempt_lost_in_the_last_round_ends_a_run_that_is_complete(federation: Federation) -> None:
    plain = federation.under(make_plan(rounds=10, spare_attempts=0))
    with plain.agents() as agents:
        result = plain.train({**agents, "east": silent_at(agents["east"], (10, 1))})
    assert (result.rounds, result.attempts) == (9, 10)


def test_two_of_ten_rounds_lost_are_too_many(federation: Federation) -> None:
    plain = federation.under(make_plan(rounds=10, spare_attempts=0))
    silent_twice = {"east": (4, 1), "west": (6, 1)}
    with plain.agents() as agents, pytest.raises(QuorumLost, match="8 of 10 rounds were completed with 10 of 10"):
        plain.train({**agents, **{name: silent_at(agents[name], place) for name, place in silent_twice.items()}})


def test_no_site_is_charged_for_more_attempts_than_the_plan_has(federation: Federation) -> None:
    short = federation.under(make_plan(rounds=3, spare_attempts=1))
    with short.agents() as agents, pytest.raises(QuorumLost):
        short.train({**agents, "east": silent_at(agents["east"], (1, 1), (2, 1))})
    assert all(len(short.charged(name)) <= short.plan.attempts for name in short.names)
