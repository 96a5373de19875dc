"""A coordinator that died goes on as if it had not: the same model, the same charges, the same bytes asked."""

import shutil
from pathlib import Path

import pytest

from common.errors import ConfigurationError, QuorumLost, TrustError
from common.report.audit import verify_paths
from server.checkpoints import is_resumable
from server.progress import read_progress
from tests.flows.dying_coordinator import (
    Told,
    digest_of_what_was_sent,
    once_at,
    once_everywhere,
    run_through_deaths,
)
from tests.flows.federation import Federation, Handle, is_round, make_federation, make_plan
from tests.flows.test_evaluation import charges, documents, evaluated_plan

PLANS = {
    "pooled": make_plan(rounds=2, spare_attempts=1),
    "local": make_plan(rounds=2, spare_attempts=1, mode="local"),
    "evaluated": evaluated_plan(rounds=2, spare_attempts=1),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Federation]:
    """Three sites under each plan."""
    root = tmp_path_factory.mktemp("resumed")
    return {name: make_federation(root / name, sites=3, plan=plan) for name, plan in PLANS.items()}


@pytest.fixture
def pooled(made: dict[str, Federation], tmp_path: Path) -> Federation:
    return made["pooled"].copy_to(tmp_path / "run")


def check_as_if_nothing_happened(federation: Federation, told: Told) -> None:
    """Each attempt once, of the same bytes, answered with the same bytes, charged once; and the model is their sum."""
    rounds = federation.manifest.rounds
    assert (told.result.rounds, told.result.attempts, told.result.left) == (rounds, rounds, {})
    assert told.result.model_digest == digest_of_what_was_sent(federation, told)
    assert all(len(sent) == 1 for sent in told.recording.requests.values())
    assert all(len(sent) == 1 for sent in told.recording.vectors.values())
    once = {(number, 1): "settled" for number in range(1, rounds + 1)}
    for name in federation.names:
        assert federation.charged(name) == once
        if federation.manifest.evaluated_rounds:
            assert charges(federation, name) == once
    assert verify_paths([federation.root]).words == "verified"
    assert not is_resumable(federation.root)


@pytest.mark.parametrize("kind", list(PLANS))
def test_a_coordinator_that_dies_at_every_boundary_and_every_reply_ends_as_if_it_had_not(
    made: dict[str, Federation], tmp_path: Path, kind: str
) -> None:
    federation = made[kind].copy_to(tmp_path / "run")
    with federation.agents() as agents:
        told = run_through_deaths(federation, agents, once_everywhere())
    expected = {"round", "keys", "offer", "close", *(["evaluate"] if kind == "evaluated" else [])}
    assert {moment[0] for moment in told.deaths} == expected
    assert len(told.deaths) == len(set(told.deaths)) > 40
    check_as_if_nothing_happened(federation, told)


@pytest.mark.parametrize(
    "moment",
    [
        ("offer", 1, "north", "arrives"),
        ("keys", 1, "before"),
        ("keys", 1, "north", "is taken"),
        ("keys", 1, "after"),
        ("round", 1, 1, "before"),
        ("round", 1, 1, "north", "arrives"),
        ("round", 2, 1, "south", "is taken"),
        ("round", 2, 1, "after"),
        ("close", 1, "north", "is taken"),
        ("close", 2, "after"),
    ],
    ids=str,
)
def test_one_death_changes_nothing(pooled: Federation, moment: tuple) -> None:
    with pooled.agents() as agents:
        told = run_through_deaths(pooled, agents, once_at(moment))
    assert told.deaths == [moment]
    check_as_if_nothing_happened(pooled, told)


def test_a_lost_evaluation_stays_lost_and_an_opened_one_is_the_same(made, tmp_path: Path) -> None:
    federation = made["evaluated"].copy_to(tmp_path / "run")
    with federation.agents() as agents:
        told = run_through_deaths(federation, agents, once_at(("evaluate", 1, 1, "after"), ("round", 2, 1, "after")))
    assert [one["round"] for one in documents(federation)["evaluations"]] == [1, 2]
    assert len(told.recording.requests["evaluate", 1, 1, "east"]) == 1
    assert charges(federation, "east") == {(1, 1): "settled", (2, 1): "settled"}


def test_the_agents_may_die_with_the_coordinator(pooled: Federation) -> None:
    def fresh(name: str) -> Handle:
        def answer(data: bytes) -> bytes:
            with pooled.open_agent(name) as agent:
                return agent.handle(data)

        return answer

    moments = once_at(("round", 1, 1, "east", "is taken"), ("round", 2, 1, "north", "is taken"))
    told = run_through_deaths(pooled, {name: fresh(name) for name in pooled.names}, moments)
    check_as_if_nothing_happened(pooled, told)


def test_a_run_that_is_over_is_not_run_again(pooled: Federation) -> None:
    with pooled.agents() as agents:
        pooled.train(agents)
        with pytest.raises(ConfigurationError, match="this run is over"):
            pooled.train(agents)
    assert pooled.charged("east") == {(1, 1): "settled", (2, 1): "settled"}


def die_at(federation: Federation, moment: tuple) -> None:
    """Leave a run behind whose coordinator died at that moment."""
    with federation.agents() as agents, pytest.raises(AssertionError, match="coordinators died"):
        run_through_deaths(federation, agents, once_at(moment), limit=1)


def test_a_run_that_did_not_end_says_how_far_it_is_without_a_passphrase(pooled: Federation) -> None:
    assert read_progress(pooled.root) is None
    die_at(pooled, ("round", 2, 1, "before"))
    progress = read_progress(pooled.root)
    assert progress is not None
    assert (progress.stage, progress.rounds, progress.of, progress.attempts) == ("train", 1, 2, 2)
    assert (list(progress.present), progress.left, progress.waiting_for) == (pooled.names, {}, {})
    assert is_resumable(pooled.root)


def files_of_the_checkpoint(federation: Federation) -> list[Path]:
    return sorted((federation.root / "checkpoint").iterdir())


@pytest.mark.parametrize("fault", ["flip", "cut", "empty", "append"])
def test_a_changed_checkpoint_is_refused_and_nothing_is_asked(pooled: Federation, fault: str) -> None:
    die_at(pooled, ("round", 2, 1, "before"))
    for path in files_of_the_checkpoint(pooled):
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(
            {
                "flip": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
                "cut": content[:-1],
                "empty": b"",
                "append": content + b"\0",
            }[fault]
        )
        with pooled.agents() as agents, pytest.raises(TrustError):
            pooled.train(agents)
        path.write_bytes(content)
    assert pooled.charged("east") == {(1, 1): "settled"}


@pytest.mark.parametrize("gone", ["index", "state", "all"])
def test_a_checkpoint_that_is_gone_is_missed_and_the_run_not_started_over(pooled: Federation, gone: str) -> None:
    die_at(pooled, ("round", 2, 1, "before"))
    for path in files_of_the_checkpoint(pooled):
        if gone == "all" or path.name.startswith(gone):
            path.unlink()
    with pooled.agents() as agents, pytest.raises(ConfigurationError):
        pooled.train(agents)
    assert pooled.charged("east") == {(1, 1): "settled"}


def test_the_checkpoint_of_another_run_is_refused(made: dict[str, Federation], tmp_path: Path) -> None:
    one, other = made["pooled"].copy_to(tmp_path / "one"), made["local"].copy_to(tmp_path / "other")
    for federation in (one, other):
        die_at(federation, ("round", 1, 1, "before"))
    for name in ("checkpoint", "storage.key"):  # even under its own key
        target = one.root / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        source = other.root / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    with one.agents() as agents, pytest.raises(TrustError):
        one.train(agents)


def test_of_one_run_there_is_one_coordinator(pooled: Federation) -> None:
    with pooled.agents() as agents:

        def interrupted(data: bytes) -> bytes:
            if is_round(data, (2, 1)):
                with pytest.raises(ConfigurationError, match=r"run\.lock"):
                    pooled.train(agents)
            return agents["east"](data)

        assert pooled.train({**agents, "east": interrupted}).rounds == 2


def test_a_resumed_run_without_its_sites_stays_open_and_is_resumed_when_they_are_back(pooled: Federation) -> None:
    die_at(pooled, ("round", 2, 1, "north", "is taken"))

    def dead(_: bytes) -> bytes:
        raise TimeoutError

    with pooled.agents() as agents:
        with pytest.raises(QuorumLost, match=r"2 of 3 sites are left.*south: NotConnected") as lost:
            pooled.train({**agents, "south": dead})
        assert "resume the run again" in lost.value.hint
        assert is_resumable(pooled.root)
        assert pooled.train(agents).left == {}
    for name in pooled.names:
        assert pooled.charged(name) == {(1, 1): "settled", (2, 1): "settled"}


def test_a_site_that_left_in_silence_is_back_at_a_resume(federation: Federation) -> None:
    def dead(_: bytes) -> bytes:
        raise TimeoutError

    with federation.agents() as agents:
        with pytest.raises(AssertionError, match="coordinators died"):
            run_through_deaths(federation, {**agents, "east": dead}, once_at(("round", 2, 1, "before")), limit=1)
        progress = read_progress(federation.root)
        assert progress is not None and progress.left == {"east": "NotConnected"}
        result = federation.train(agents)
    assert (result.rounds, result.attempts, result.left) == (3, 3, {})
    assert federation.charged("east") == {(3, 1): "settled"}
    assert federation.charged("north") == {(1, 1): "settled", (2, 1): "settled", (3, 1): "settled"}


def test_a_site_that_left_for_a_reason_does_not_come_back(federation: Federation) -> None:

    def lying(data: bytes) -> bytes:
        reply = agents["east"](data)
        return agents["north"](data) if is_round(data, (1, 1)) else reply

    with federation.agents() as agents:
        with pytest.raises(AssertionError, match="coordinators died"):
            run_through_deaths(federation, {**agents, "east": lying}, once_at(("round", 2, 1, "before")), limit=1)
        result = federation.train(agents)
    assert (result.rounds, result.left) == (3, {"east": "TrustError"})


def test_an_attempt_whose_cohort_is_not_complete_after_a_restart_is_given_up(federation: Federation) -> None:
    def dead(_: bytes) -> bytes:
        raise TimeoutError

    with federation.agents() as agents:
        with pytest.raises(AssertionError, match="coordinators died"):
            run_through_deaths(federation, agents, once_at(("round", 2, 1, "north", "is taken")), limit=1)
        result = federation.train({**agents, "east": dead})
    assert (result.rounds, result.attempts, result.left) == (3, 4, {"east": "NotConnected"})
    assert federation.charged("south") == {(1, 1): "settled", (2, 2): "settled", (3, 1): "settled"}
