"""A site's process is killed between any two steps of reserve → compute → outbox → settle → send, then restarted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from client.attempt import read_attempt
from client.data.registry import load_dataset
from client.guard import permit_attempt
from client.handshake import learn_secrets
from client.runstate import load_state, save_local_update
from client.training.engine import choose_engine
from client.update import compute_update
from common import wire_pb2 as pb
from common.canonical import digest_bytes
from common.privacy.entries import AttemptKey
from tests.flows.crashing_site import DIED, STEPS
from tests.flows.federation import CLASSES, POPULATION, Federation, is_round, make_federation, request_in

SITE = "south"
REPOSITORY = Path(__file__).parents[2]


def run_until_death(roots: dict[str, Path], request: bytes) -> None:
    """For each step let a process of its own answer a request, which kills it."""
    finished = subprocess.run(
        [sys.executable, "-m", "tests.flows.crashing_site", *(f"{step}={root}" for step, root in roots.items())],
        input=request,
        capture_output=True,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert finished.returncode == 0, finished.stderr.decode()
    assert json.loads(finished.stdout) == [DIED] * len(roots), finished.stderr.decode()


def answer(federation: Federation, request: bytes) -> pb.Masked | pb.Refused:
    """What a freshly started agent says."""
    with federation.open_agent(SITE) as agent:
        return federation.opened(SITE, agent.handle(request))


@pytest.fixture(scope="module")
def made_crashed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Federation, bytes, bytes]]:
    """For each step: a federation whose site died there, the request it died of, and the one for the next attempt."""
    root = tmp_path_factory.mktemp("crashed")
    whole = make_federation(root / "whole" / "run", sites=3)
    with whole.agents() as agents:
        ciphertexts = whole.shake_hands(agents)
    first, second = (whole.round_request(SITE, 1, attempt, ciphertexts=ciphertexts) for attempt in (1, 2))
    copies = {step: whole.copy_to(root / step.replace(" ", "-") / "run") for step in STEPS}
    run_until_death({step: copy.homes[SITE].root for step, copy in copies.items()}, first)
    return {step: (copy, first, second) for step, copy in copies.items()}


@pytest.fixture
def crashed(request: pytest.FixtureRequest, made_crashed, tmp_path: Path) -> tuple[Federation, bytes, bytes]:
    federation, first, second = made_crashed[request.param]
    return federation.copy_to(tmp_path / "run"), first, second


def at(*steps: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("crashed", steps, indirect=True)


@at("before reserve")
def test_before_the_reservation_nothing_is_charged_and_the_request_is_answered_later(crashed) -> None:
    federation, request, _ = crashed
    assert federation.charged(SITE) == {}
    assert isinstance(answer(federation, request), pb.Masked)
    assert federation.charged(SITE) == {(1, 1): "settled"}


@at("after reserve")
def test_after_the_reservation_the_charge_stays_and_the_attempt_is_lost(crashed) -> None:
    federation, request, _ = crashed
    assert federation.charged(SITE) == {(1, 1): "reserved"}
    assert answer(federation, request).name == "AttemptLost"
    assert federation.charged(SITE) == {(1, 1): "burned"}


@at("after reserve")
def test_a_lost_attempt_is_not_computed_a_second_time_however_often_it_is_asked_for(crashed) -> None:
    federation, request, _ = crashed
    assert {answer(federation, request).name for _ in range(3)} == {"AttemptLost"}
    assert federation.charged(SITE) == {(1, 1): "burned"}


@at("after reserve")
def test_after_a_lost_attempt_the_next_one_is_answered_and_charged(crashed) -> None:
    federation, _, following = crashed
    assert isinstance(answer(federation, following), pb.Masked)
    assert federation.charged(SITE) == {(1, 1): "reserved", (1, 2): "settled"}


@at("before settle", "after settle")
def test_once_the_bytes_are_on_disk_they_are_sent_as_they_are(crashed) -> None:
    federation, request, _ = crashed
    stored = pb.Masked.FromString((federation.homes[SITE].run_path("demo-1") / "outbox.bin").read_bytes())
    first, again = answer(federation, request), answer(federation, request)
    assert first.vector == again.vector == stored.vector


@at("before settle", "after settle")
def test_bytes_that_are_sent_after_a_crash_are_charged_once(crashed) -> None:
    federation, request, _ = crashed
    answer(federation, request)
    answer(federation, request)
    assert federation.charged(SITE) == {(1, 1): "settled"}


@at("before settle", "after settle")
def test_the_ledger_holds_the_digest_of_what_left(crashed) -> None:
    federation, request, _ = crashed
    left = answer(federation, request)
    with federation.ledger(SITE) as ledger:
        charged = ledger.account(POPULATION).attempt(AttemptKey(run_id="demo-1", round_number=1, attempt=1))
    assert charged is not None
    assert charged.release == digest_bytes("release", left.vector)


@at(*STEPS)
def test_wherever_it_died_no_more_answers_leave_than_are_charged(crashed) -> None:
    federation, first, second = crashed
    replies = [answer(federation, request) for request in (first, first, second, second, first)]
    left = {reply.context for reply in replies if isinstance(reply, pb.Masked)}
    charges = federation.charged(SITE)
    assert len(left) <= len(charges) <= 2
    assert len(left) == list(charges.values()).count("settled")


@at(*STEPS)
def test_wherever_it_died_the_ledger_verifies_and_the_agent_starts(crashed) -> None:
    federation, _, _ = crashed
    with federation.open_agent(SITE) as agent:
        assert agent.ledger.head.seq >= 1


def test_a_local_update_that_was_kept_before_the_crash_is_masked_settled_and_charged_once(
    local_federation: Federation,
) -> None:
    federation = local_federation
    with federation.agents() as agents:
        ciphertexts = federation.shake_hands(agents)
    first, second = (federation.round_request(SITE, 1, attempt, ciphertexts=ciphertexts) for attempt in (1, 2))
    keep_update_and_die(federation, first)
    assert federation.charged(SITE) == {(1, 1): "reserved"}
    assert isinstance(answer(federation, second), pb.Masked)
    assert federation.charged(SITE) == {(1, 1): "settled"}


def keep_update_and_die(federation: Federation, request: bytes) -> None:
    """The steps of a local attempt by hand, up to the moment when the update is kept and nothing is in the outbox."""
    home = federation.homes[SITE]
    state = learn_secrets(home, load_state(home, "demo-1"), request_in(request).ciphertexts)
    attempt = read_attempt(home, state, request_in(request))
    with federation.ledger(SITE) as ledger:
        permit = permit_attempt(
            ledger,
            site=SITE,
            plan=state.plan,
            manifest=state.manifest,
            population=POPULATION,
            cohort=attempt.cohort,
            round_number=attempt.round_number,
            attempt=attempt.attempt,
        )
    engine, _ = choose_engine(state.plan.model, len(CLASSES))
    batch = load_dataset(home, POPULATION, classes=len(CLASSES))
    update = compute_update(permit, engine=engine, batch=batch, parameters=attempt.parameters)
    save_local_update(home, "demo-1", attempt.round_number, update.units)


def test_a_run_goes_on_though_a_site_dies_in_the_middle_of_a_round(federation: Federation) -> None:
    def dying_in_round_two(data: bytes) -> bytes:
        if is_round(data, (2, 1)):
            run_until_death({"after reserve": federation.homes[SITE].root}, data)
            raise ConnectionError
        with federation.open_agent(SITE) as agent:
            return agent.handle(data)

    with federation.agents_of("east", "north", "west") as agents:
        result = federation.train({**agents, SITE: dying_in_round_two})
    assert (result.rounds, result.attempts, result.left) == (3, 4, {})
    assert federation.charged(SITE) == {(1, 1): "settled", (2, 1): "burned", (3, 1): "settled"}
