"""A site's rules are read anew for every answer: what a person decides in the middle of a run counts at once."""

import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from client.agent import SiteAgent
from client.home import SiteHome
from common import wire_pb2 as pb
from common.plan import TrainingPlan
from common.privacy.budget import View
from tests.flows.federation import PASSPHRASE, POPULATION, Federation, Handle, is_round, make_federation, make_plan

SITE = "north"
NOON = datetime.fromisoformat("2026-03-02T12:00:00+01:00")
MIDNIGHT = datetime.fromisoformat("2026-03-02T00:00:00+01:00")


@pytest.fixture(scope="module")
def made_joined(tmp_path_factory: pytest.TempPathFactory) -> tuple[Federation, list[pb.Ciphertext]]:
    """A federation whose sites joined and exchanged keys. Not to be changed."""
    federation = make_federation(tmp_path_factory.mktemp("joined") / "run")
    with federation.agents() as agents:
        return federation, federation.shake_hands(agents)


@pytest.fixture
def joined(
    made_joined: tuple[Federation, list[pb.Ciphertext]], tmp_path: Path
) -> tuple[Federation, list[pb.Ciphertext]]:
    made, ciphertexts = made_joined
    return made.copy_to(tmp_path / "run"), ciphertexts


def install(home: SiteHome, **rules: str) -> None:
    """Sign the policy with some rules changed, or added before its tables."""
    lines = (home.root / "policy.toml").read_text().splitlines()
    kept = [line for line in lines if line.split(" = ")[0] not in rules]
    home.install_policy("\n".join([*(f"{name} = {value}" for name, value in rules.items()), *kept]).encode())


def grant(home: SiteHome, epsilon: float) -> None:
    """Sign the policy with another epsilon in its budget."""
    text = (home.root / "policy.toml").read_text()
    home.install_policy(re.sub(r"(?m)^epsilon = .*$", f"epsilon = {epsilon!r}", text).encode())


def ask(joined: tuple[Federation, list[pb.Ciphertext]], agent: SiteAgent, round_number: int, attempt: int = 1) -> Any:
    federation, ciphertexts = joined
    request = federation.round_request(SITE, round_number, attempt, ciphertexts=ciphertexts)
    return federation.opened(SITE, agent.handle(request))


# Each of these is a rule that forbids the run of the fixture.


def forbid_mode(federation: Federation) -> None:
    install(federation.homes[SITE], modes='["local"]')


def forbid_task(federation: Federation) -> None:
    install(federation.homes[SITE], tasks='["image-classification"]')


def forbid_backbone(federation: Federation) -> None:
    install(federation.homes[SITE], backbones='["squeezenet1_1"]')


def forbid_dropouts(federation: Federation) -> None:
    install(federation.homes[SITE], dropout_modes="[]")


def want_larger_cohorts(federation: Federation) -> None:
    install(federation.homes[SITE], minimum_cohort="4")


def want_more_colluding(federation: Federation) -> None:
    install(federation.homes[SITE], colluding_at_least="2")


def want_smaller_delta(federation: Federation) -> None:
    install(federation.homes[SITE], maximum_delta="1e-6")


def want_other_hours(federation: Federation) -> None:
    install(federation.homes[SITE], hours='["20:00-06:00"]')


def want_more_patients(federation: Federation) -> None:
    install(federation.homes[SITE], minimum_patients="1000")


def grant_nothing(federation: Federation) -> None:
    home = federation.homes[SITE]
    home.install_policy((home.root / "policy.toml").read_bytes().split(b"[budget")[0])


def lower_the_budget(federation: Federation) -> None:
    grant(federation.homes[SITE], 0.01)


def hold_the_budget_at_another_delta(federation: Federation) -> None:
    home = federation.homes[SITE]
    text = (home.root / "policy.toml").read_text()
    head, tail = text.split("\ndelta = ")
    home.install_policy(f"{head}\ndelta = 1e-6\n{tail.split(chr(10), 1)[1]}".encode())


def edit_without_signing(federation: Federation) -> None:
    path = federation.homes[SITE].root / "policy.toml"
    path.write_text(path.read_text() + "# a note\n")


def reject_the_plan(federation: Federation) -> None:
    federation.homes[SITE].reject(federation.plan.digest, time="2026-03-02T12:00:00Z")


def lose_the_approval(federation: Federation) -> None:
    (federation.homes[SITE].root / "approvals.json").unlink()


def approve_for_others(federation: Federation) -> None:
    federation.homes[SITE].approve(federation.plan.digest, population="clinic")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (forbid_mode, "PolicyRefused"),
        (forbid_task, "PolicyRefused"),
        (forbid_backbone, "PolicyRefused"),
        (forbid_dropouts, "PolicyRefused"),
        (want_larger_cohorts, "PolicyRefused"),
        (want_more_colluding, "PolicyRefused"),
        (want_smaller_delta, "PolicyRefused"),
        (want_other_hours, "PolicyRefused"),
        (grant_nothing, "PolicyRefused"),
        (hold_the_budget_at_another_delta, "PolicyRefused"),
        (lower_the_budget, "PrivacyBudgetExhausted"),
        (edit_without_signing, "TrustError"),
        (reject_the_plan, "PlanNotApproved"),
        (lose_the_approval, "PlanNotApproved"),
        (approve_for_others, "PlanNotApproved"),
        (want_more_patients, "Unavailable"),
    ],
)
def test_what_is_decided_in_the_middle_of_a_run_stops_the_next_answer_and_charges_nothing(
    joined: tuple[Federation, list[pb.Ciphertext]], change: Callable[[Federation], None], name: str
) -> None:
    federation, _ = joined
    with SiteAgent.open(federation.homes[SITE].root, passphrase=PASSPHRASE, clock=lambda: NOON) as agent:
        assert isinstance(ask(joined, agent, 1), pb.Masked)
        change(federation)
        refused = ask(joined, agent, 2)
        again = ask(joined, agent, 1)
    assert isinstance(refused, pb.Refused) and refused.name == name
    assert isinstance(again, pb.Refused), "an answer that was charged before must not leave either"
    assert federation.charged(SITE) == {(1, 1): "settled"}


def test_a_policy_that_is_signed_again_lets_the_run_go_on(joined: tuple[Federation, list[pb.Ciphertext]]) -> None:
    federation, _ = joined
    home = federation.homes[SITE]
    with federation.open_agent(SITE) as agent:
        edit_without_signing(federation)
        assert ask(joined, agent, 1).name == "TrustError"
        home.install_policy((home.root / "policy.toml").read_bytes())
        assert isinstance(ask(joined, agent, 1), pb.Masked)
    assert federation.charged(SITE) == {(1, 1): "settled"}


def test_within_its_hours_a_site_answers_and_outside_it_waits(joined: tuple[Federation, list[pb.Ciphertext]]) -> None:
    federation, _ = joined
    now = [MIDNIGHT]
    want_other_hours(federation)
    with SiteAgent.open(federation.homes[SITE].root, passphrase=PASSPHRASE, clock=lambda: now[0]) as agent:
        assert isinstance(ask(joined, agent, 1), pb.Masked)
        now[0] = NOON
        assert ask(joined, agent, 2).name == "PolicyRefused"
        now[0] = MIDNIGHT
        assert isinstance(ask(joined, agent, 2), pb.Masked)
    assert federation.charged(SITE) == {(1, 1): "settled", (2, 1): "settled"}


def test_outside_its_hours_a_site_does_not_join(federation: Federation) -> None:
    want_other_hours(federation)
    home = federation.homes[SITE]
    with SiteAgent.open(home.root, passphrase=PASSPHRASE, clock=lambda: NOON) as agent:
        assert federation.opened(SITE, agent.handle(federation.offer())).name == "PolicyRefused"
    assert not home.run_path("demo-1").exists()
    with SiteAgent.open(home.root, passphrase=PASSPHRASE, clock=lambda: MIDNIGHT) as agent:
        assert isinstance(federation.opened(SITE, agent.handle(federation.offer())), pb.Joined)


def test_a_lowered_budget_is_spent_to_its_end_and_not_further(
    joined: tuple[Federation, list[pb.Ciphertext]],
) -> None:
    """Two of the plan's five attempts fit into the budget that is left; the third would pass it."""
    federation, _ = joined
    with federation.open_agent(SITE) as agent:
        assert isinstance(ask(joined, agent, 1), pb.Masked)
        account = agent.ledger.account(POPULATION)
        admission, cost = account.terms.admission, account.cost
        after_two = admission.reached_epsilon(cost + cost, account.budget.delta, View.TRUSTED)
        grant(federation.homes[SITE], after_two + 0.001)
        assert isinstance(ask(joined, agent, 2), pb.Masked)
        assert ask(joined, agent, 3).name == "PrivacyBudgetExhausted"
    assert federation.charged(SITE) == {(1, 1): "settled", (2, 1): "settled"}


def test_a_run_that_the_policy_approved_by_itself_ends_when_it_no_longer_does(federation: Federation) -> None:
    home = federation.homes[SITE]
    lose_the_approval(federation)
    install(home, auto_approve="true")
    with federation.agents() as agents:
        ciphertexts = federation.shake_hands(agents)
        request = federation.round_request(SITE, 1, ciphertexts=ciphertexts)
        assert isinstance(federation.opened(SITE, agents[SITE](request)), pb.Masked)
        install(home, auto_approve="false")
        reply = federation.opened(SITE, agents[SITE](federation.round_request(SITE, 2)))
    assert reply.name == "PlanNotApproved"


def evaluated(plan: TrainingPlan) -> TrainingPlan:
    document = plan.to_json()
    document["evaluation"] = {"bins": 4, "epsilon": 0.5, "every": 1, "held_out": 0.3}
    return TrainingPlan.model_validate(document)


def test_an_evaluation_is_held_to_the_rules_of_the_day_too(tmp_path: Path) -> None:
    federation = make_federation(tmp_path / "run", plan=evaluated(make_plan(rounds=1, spare_attempts=0)))
    with federation.agents() as agents:
        ciphertexts = federation.shake_hands(agents)
        want_larger_cohorts(federation)
        body = pb.Evaluate(
            round=1,
            attempt=1,
            cohort=federation.names,
            parameters=federation.zero_model.tobytes(),
            ciphertexts=[item for item in ciphertexts if item.recipient == SITE],
        )
        reply = federation.opened(SITE, agents[SITE](federation.envelope(body, SITE)))
        with_leave = federation.opened("east", agents["east"](_for(federation, body, ciphertexts, "east")))
    assert reply.name == "PolicyRefused"
    assert isinstance(with_leave, pb.Histogram)


def _for(federation: Federation, body: pb.Evaluate, ciphertexts: list[pb.Ciphertext], site: str) -> bytes:
    changed = pb.Evaluate()
    changed.CopyFrom(body)
    del changed.ciphertexts[:]
    changed.ciphertexts.extend(item for item in ciphertexts if item.recipient == site)
    return federation.envelope(changed, site)


def test_when_one_site_takes_its_leave_back_the_others_finish_the_run(federation: Federation) -> None:
    def changed_before(handle: Handle) -> Handle:
        def answer(data: bytes) -> bytes:
            if is_round(data, (2, 1)):
                reject_the_plan(federation)
            return handle(data)

        return answer

    with federation.agents() as agents:
        result = federation.train({**agents, SITE: changed_before(agents[SITE])})
    assert (result.rounds, result.left) == (3, {SITE: "PlanNotApproved"})
    assert federation.charged(SITE) == {(1, 1): "settled"}


def test_a_local_update_that_is_kept_is_not_masked_again_once_the_plan_is_rejected(
    local_federation: Federation,
) -> None:
    federation = local_federation
    with federation.agents() as agents:
        ciphertexts = federation.shake_hands(agents)
        first = federation.round_request(SITE, 1, 1, ciphertexts=ciphertexts)
        assert isinstance(federation.opened(SITE, agents[SITE](first)), pb.Masked)
        reject_the_plan(federation)
        second = federation.round_request(SITE, 1, 2)
        assert federation.opened(SITE, agents[SITE](second)).name == "PlanNotApproved"
