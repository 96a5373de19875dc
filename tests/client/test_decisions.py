"""An approval is for so many runs: each counts once, from its first answer, and may go on as long as it likes."""

from dataclasses import replace
from typing import Any

import pytest

from client.decisions import Approval, Decisions, read_decisions
from client.guard import check_offer
from common import wire_pb2 as pb
from common.errors import FederationError, PlanNotApproved
from common.plan import Manifest
from common.signed import write_signed
from tests.flows.federation import POPULATION, RUN_ID, Federation, make_plan

SITE = "north"


@pytest.fixture
def federation(federation: Federation) -> Federation:
    """Sites that approved one run of a plan which their budget would pay for twice."""
    return federation.under(make_plan(epsilon=1.0))


def another_run(federation: Federation, run_id: str) -> Federation:
    """The same plan at the same sites in another run, on which nobody decided."""
    return replace(federation, manifest=Manifest.model_validate({**federation.manifest.to_json(), "run_id": run_id}))


def offered(federation: Federation) -> Any:
    with federation.open_agent(SITE) as agent:
        return federation.opened(SITE, agent.handle(federation.offer()))


def answer_first_round(federation: Federation) -> None:
    with federation.agents() as agents:
        ciphertexts = federation.shake_hands(agents)
        request = federation.round_request(SITE, ciphertexts=ciphertexts)
        assert isinstance(federation.opened(SITE, agents[SITE](request)), pb.Masked)


def approval(federation: Federation) -> Approval:
    return federation.homes[SITE].decisions().approved[federation.plan.digest]


def test_an_approval_is_for_one_run_unless_it_says_more(federation: Federation) -> None:
    answer_first_round(federation)
    assert offered(another_run(federation, "demo-2")).name == "PlanNotApproved"
    assert federation.charged(SITE) == {(1, 1): "settled"}


def test_the_refusal_of_one_run_more_names_both_runs_and_their_number(federation: Federation) -> None:
    answer_first_round(federation)
    second = another_run(federation, "demo-2")
    with (
        federation.ledger(SITE) as ledger,
        pytest.raises(PlanNotApproved, match=f"approved for 1 run and 1 began: {RUN_ID}; demo-2 would be") as error,
    ):
        check_offer(federation.homes[SITE], ledger, second.plan, second.manifest)
    assert "plans approve" in error.value.hint


def test_an_approval_for_two_runs_lets_two_begin(federation: Federation) -> None:
    federation.homes[SITE].approve(federation.plan.digest, population=POPULATION, runs=2)
    answer_first_round(federation)
    assert approval(federation) == Approval(population=POPULATION, runs_left=1, begun=(RUN_ID,))
    assert isinstance(offered(another_run(federation, "demo-2")), pb.Joined)


def test_a_run_that_came_to_nothing_takes_no_approval_away(federation: Federation) -> None:
    assert isinstance(offered(federation), pb.Joined)
    assert isinstance(offered(another_run(federation, "demo-2")), pb.Joined)
    assert approval(federation) == Approval(population=POPULATION, runs_left=1)


def test_of_two_runs_that_joined_on_one_approval_only_the_first_to_be_asked_computes(federation: Federation) -> None:
    second = another_run(federation, "demo-2")
    with federation.agents() as agents:
        first_keys, second_keys = federation.shake_hands(agents), second.shake_hands(agents)
        first = agents[SITE](federation.round_request(SITE, ciphertexts=first_keys))
        late = agents[SITE](second.round_request(SITE, ciphertexts=second_keys))
    assert isinstance(federation.opened(SITE, first), pb.Masked)
    assert second.opened(SITE, late).name == "PlanNotApproved"
    assert second.charged(SITE) == {}


def test_a_run_that_began_goes_on_and_is_asked_again_after_its_approval_is_used_up(federation: Federation) -> None:
    with federation.agents() as agents:
        ciphertexts = federation.shake_hands(agents)
        requests = [federation.round_request(SITE, number, ciphertexts=ciphertexts) for number in (1, 1, 2)]
        replies = [federation.opened(SITE, agents[SITE](request)) for request in requests]
    assert approval(federation).runs_left == 0
    assert [type(reply) for reply in replies] == [pb.Masked] * 3
    assert isinstance(offered(federation), pb.Joined)


def test_approving_again_lets_one_more_run_begin_and_the_one_before_go_on(federation: Federation) -> None:
    answer_first_round(federation)
    federation.homes[SITE].approve(federation.plan.digest, population=POPULATION)
    assert approval(federation) == Approval(population=POPULATION, runs_left=1, begun=(RUN_ID,))
    assert isinstance(offered(another_run(federation, "demo-2")), pb.Joined)


def test_a_run_counts_once_and_a_run_that_is_not_covered_is_not_counted(federation: Federation) -> None:
    home, digest = federation.homes[SITE], federation.plan.digest
    home.begin_run(digest, run_id="a")
    home.begin_run(digest, run_id="a")
    with pytest.raises(PlanNotApproved, match="not approved for run b"):
        home.begin_run(digest, run_id="b")
    assert approval(federation) == Approval(population=POPULATION, runs_left=0, begun=("a",))


@pytest.mark.parametrize(("version", "rejected"), [(1, {}), (2, {"rejected": {"sha256:cc": "2026-03-02T12:00:00Z"}})])
def test_approvals_of_earlier_versions_hold_for_every_run_until_they_are_rejected(
    federation: Federation, version: int, rejected: dict[str, Any]
) -> None:
    home, digest = federation.homes[SITE], federation.plan.digest
    old = {"version": version, "plans": {digest: POPULATION}, **rejected}
    write_signed(home.root / "approvals.json", "approvals", old, home.identity)
    always = Approval(population=POPULATION, runs_left=None)
    assert home.decisions() == Decisions(approved={digest: always}, **rejected)
    answer_first_round(federation)
    assert approval(federation) == Approval(population=POPULATION, runs_left=None, begun=(RUN_ID,))
    assert isinstance(offered(another_run(federation, "demo-2")), pb.Joined)
    home.reject(digest, time="2026-03-02T12:00:00Z")
    assert offered(another_run(federation, "demo-3")).name == "PlanNotApproved"


def test_decisions_of_an_unknown_version_decide_nothing(federation: Federation) -> None:
    home = federation.homes[SITE]
    write_signed(home.root / "approvals.json", "approvals", {"version": 4, "plans": {}}, home.identity)
    with pytest.raises(FederationError, match="version 4 is unknown"):
        read_decisions(home.root, home.identity.public_key)
    assert isinstance(offered(federation), pb.Refused)
