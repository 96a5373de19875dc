"""Sites that are waited for, come late, come twice, or go."""

import pytest

from common import wire_pb2 as pb
from common.errors import QuorumLost
from common.report.audit import verify_paths
from server.progress import read_progress
from tests.flows.dying_coordinator import once_everywhere, run_through_deaths
from tests.flows.federation import POPULATION, Federation, Handle, is_round, lost_at, request_in, silent_at
from tests.flows.growing_grid import Clock, GrowingGrid, at_round, run_over


def without(handlers: dict[str, Handle], name: str) -> dict[str, Handle]:
    return {other: handle for other, handle in handlers.items() if other != name}


def unreachable(_: bytes) -> bytes:
    raise TimeoutError


@pytest.mark.parametrize("late", ["east", "north", "west"], ids=["first by name", "in the middle", "last by name"])
def test_a_site_that_comes_after_the_first_round_takes_part_from_the_second(federation: Federation, late: str) -> None:
    with federation.agents() as agents:
        grid = GrowingGrid(federation, without(agents, late))
        grid.happens = at_round(1, 1, lambda: grid.come(late, agents[late]))
        result = run_over(federation, grid)
    assert (result.rounds, result.attempts, result.left) == (3, 3, {})
    assert federation.charged(late) == {(2, 1): "settled", (3, 1): "settled"}
    assert all(len(federation.charged(name)) == 3 for name in federation.names if name != late)
    assert verify_paths([federation.root]).words == "verified"


def test_the_keys_of_those_that_were_there_are_not_exchanged_anew(federation: Federation) -> None:
    carried: list[tuple[str, str]] = []

    def note(name: str, data: bytes) -> None:
        come(name, data)
        body = request_in(data)
        if isinstance(body, pb.Round) and body.round == 2:
            carried.extend((item.sender, item.recipient) for item in body.ciphertexts)

    with federation.agents() as agents:
        grid = GrowingGrid(federation, without(agents, "north"))
        come = at_round(1, 1, lambda: grid.come("north", agents["north"]))
        grid.happens = note
        run_over(federation, grid)
    assert sorted(carried) == [("east", "north"), ("north", "south"), ("north", "west")]


def test_a_site_that_does_not_hear_of_a_late_one_waits_a_round_and_both_are_there_then(federation: Federation) -> None:
    """`north` misses the second key exchange, so that it shares no secret with `east`."""
    seen: list[str] = []

    def deaf_once(data: bytes) -> bytes:
        if isinstance(request_in(data), pb.Keys):
            seen.append("keys")
            if len(seen) == 2:
                raise TimeoutError
        return agents["north"](data)

    with federation.agents() as agents:
        grid = GrowingGrid(federation, {**without(agents, "east"), "north": deaf_once})
        grid.happens = at_round(1, 1, lambda: grid.come("east", agents["east"]))
        result = run_over(federation, grid)
    assert (result.rounds, result.attempts, result.left) == (3, 3, {})
    assert federation.charged("north") == {(1, 1): "settled", (3, 1): "settled"}
    assert federation.charged("east") == {(2, 1): "settled", (3, 1): "settled"}


def test_a_late_site_that_answers_no_keys_keeps_nobody_from_training(federation: Federation) -> None:
    def deaf(data: bytes) -> bytes:
        if isinstance(request_in(data), pb.Keys):
            raise TimeoutError
        return agents["east"](data)

    with federation.agents() as agents:
        grid = GrowingGrid(federation, without(agents, "east"))
        grid.happens = at_round(1, 1, lambda: grid.come("east", deaf))
        result = run_over(federation, grid)
    assert (result.rounds, result.attempts, result.left) == (3, 3, {"east": "NoReply"})
    assert federation.charged("east") == {}


def test_a_late_site_and_a_coordinator_that_dies_everywhere(federation: Federation) -> None:
    awake: list[bool] = []

    def late(data: bytes) -> bytes:
        if not awake:
            raise TimeoutError
        return agents["east"](data)

    def waking(data: bytes) -> bytes:
        if is_round(data, (1, 1)):
            awake.append(True)
        return agents["west"](data)

    with federation.agents() as agents:
        told = run_through_deaths(federation, {**agents, "east": late, "west": waking}, once_everywhere())
    assert (told.result.rounds, told.result.attempts, told.result.left) == (3, 3, {})
    assert federation.charged("east") == {(2, 1): "settled", (3, 1): "settled"}
    assert all(len(sent) == 1 for sent in told.recording.vectors.values())
    assert verify_paths([federation.root]).words == "verified"


def test_a_site_that_is_there_a_moment_later_is_waited_for(federation: Federation) -> None:
    federation.prepare(setup_timeout_s=60)
    with federation.agents() as agents:
        grid = GrowingGrid(federation, without(agents, "south"))
        shown: list[dict[str, str]] = []

        def on_sleep(now_s: float) -> None:
            progress = read_progress(federation.root)
            if progress is not None and progress.stage == "join":
                shown.append(progress.waiting_for)
            if now_s >= 7.0 and 3 not in grid.get_node_ids():
                grid.come("south", agents["south"])

        clock = Clock(on_sleep)
        result = run_over(federation, grid, clock)
    assert (result.rounds, result.left) == (3, {})
    assert 7.0 <= clock.now_s <= 8.0
    assert shown and all(waiting == {"south": "NoAnswerYet"} for waiting in shown)
    assert len(federation.charged("south")) == 3


def test_an_administrator_may_approve_while_the_coordinator_waits(federation: Federation) -> None:
    federation.prepare(setup_timeout_s=60)
    home = federation.homes["south"]
    (home.root / "approvals.json").unlink()
    shown: list[dict[str, str]] = []

    def on_sleep(now_s: float) -> None:
        progress = read_progress(federation.root)
        if progress is not None and progress.stage == "join":
            shown.append(progress.waiting_for)
        if now_s > 20.0:
            home.approve(federation.plan.digest, population=POPULATION)

    with federation.agents() as agents:
        grid, clock = GrowingGrid(federation, agents), Clock(on_sleep)
        result = run_over(federation, grid, clock)
    assert (result.rounds, result.left) == (3, {})
    assert 20.0 < clock.now_s < 26.0
    assert shown and all(waiting == {"south": "PlanNotApproved"} for waiting in shown)
    assert grid.kinds("north").count("offer") == 1


def test_who_refuses_for_good_is_not_waited_for(federation: Federation) -> None:
    federation.prepare(setup_timeout_s=60)
    home = federation.homes["south"]
    home.install_policy((home.root / "policy.toml").read_bytes().replace(b"minimum_cohort = 3", b"minimum_cohort = 4"))
    with federation.agents() as agents:
        grid, clock = GrowingGrid(federation, agents), Clock()
        result = run_over(federation, grid, clock)
    assert (result.rounds, result.left) == (3, {"south": "PolicyRefused"})
    assert clock.now_s < 1.0
    assert grid.kinds("south") == ["offer"]


def test_the_wait_ends_and_those_that_came_begin(federation: Federation) -> None:
    federation.prepare(setup_timeout_s=60)
    with federation.agents() as agents:
        clock = Clock()
        result = run_over(federation, GrowingGrid(federation, without(agents, "south")), clock)
    assert (result.rounds, result.left) == (3, {"south": "NotConnected"})
    assert clock.now_s == pytest.approx(60.0, abs=1.0)


def test_nobody_there_is_no_run_and_everybody_is_named(federation: Federation) -> None:
    with pytest.raises(QuorumLost, match=r"0 of 4 sites .* \(east: NotConnected, north: .*, south: .*, west: "):
        run_over(federation, GrowingGrid(federation, {}))
    assert not (federation.root / "model").exists()


def test_a_plan_that_is_approved_during_the_training_lets_its_site_in(federation: Federation) -> None:
    home, clock = federation.homes["south"], Clock()
    (home.root / "approvals.json").unlink()

    def approve() -> None:
        home.approve(federation.plan.digest, population=POPULATION)
        clock.now_s += 31.0

    with federation.agents() as agents:
        grid = GrowingGrid(federation, agents)
        grid.happens = at_round(2, 1, approve)
        result = run_over(federation, grid, clock)
    assert (result.rounds, result.left) == (3, {})
    assert federation.charged("south") == {(3, 1): "settled"}


def test_a_node_that_never_answers_is_asked_ever_more_rarely(federation: Federation) -> None:
    clock = Clock()
    with federation.agents() as agents:
        grid = GrowingGrid(federation, {**agents, "south": unreachable})
        grid.happens = lambda name, data: setattr(clock, "now_s", clock.now_s + 10.0) if is_round(data) else None
        result = run_over(federation, grid, clock)
    assert (result.rounds, result.left) == (3, {"south": "NotConnected"})
    offers = grid.kinds("south").count("offer")
    in_set_up = 3  # at the start, and after 0.2 and 0.3 more of the half second
    assert in_set_up < offers <= in_set_up + 1


def test_a_site_that_went_silent_twice_delays_no_round_and_is_let_in_when_its_node_is_back(
    federation: Federation,
) -> None:
    with federation.agents() as agents:
        lost = silent_at(agents["east"], (1, 1), (2, 1))
        grid = GrowingGrid(federation, {**agents, "east": lost})

        def reborn() -> None:
            grid.go(grid.numbers["east"])
            grid.come("east", agents["east"], number=9)

        grid.happens = at_round(2, 2, reborn)
        result = run_over(federation, grid)
    assert (result.rounds, result.attempts, result.left) == (3, 5, {})
    assert federation.charged("east") == {(3, 1): "settled"}


def test_a_second_node_of_one_site_is_not_asked(federation: Federation) -> None:
    with federation.agents() as agents:
        grid = GrowingGrid(federation, agents)
        grid.come("east", agents["east"], number=9)
        result = run_over(federation, grid)
    assert (result.rounds, result.attempts, result.left) == (3, 3, {})
    assert grid.kinds("9") == ["offer"]
    assert len(federation.charged("east")) == 3


def test_an_answer_that_is_lost_on_its_way_is_fetched_again_without_a_second_charge(federation: Federation) -> None:
    """What the exchange does within the deadline of one attempt; here the site's first answer never arrives."""
    lost: list[bytes] = []

    def once(data: bytes) -> bytes:
        if is_round(data, (2, 1)) and not lost:
            lost.append(data)
            return lost_at(agents["east"], (2, 1))(data)
        return agents["east"](data)

    with federation.agents() as agents:
        grid = GrowingGrid(federation, {**agents, "east": once})
        result = run_over(federation, grid, resend_after_s=20.0)
    assert (result.rounds, result.attempts, result.left) == (3, 3, {})
    assert federation.charged("east") == {(1, 1): "settled", (2, 1): "settled", (3, 1): "settled"}
    assert grid.kinds("east").count("round") == 4
