"""What a site makes of requests that are repeated, changed, forged or broken."""

from pathlib import Path

import numpy as np
import pytest

from common import wire_pb2 as pb
from common.crypto.keys import SigningKey
from common.privacy.witness import WitnessBook
from common.wire import ANY_SITE, head_message
from tests.flows.federation import Federation, Handle, is_round, make_federation, make_plan

SITE = "south"


@pytest.fixture(scope="module")
def made_joined(tmp_path_factory: pytest.TempPathFactory) -> tuple[Federation, list[pb.Ciphertext]]:
    """A federation whose sites joined and exchanged keys."""
    federation = make_federation(tmp_path_factory.mktemp("joined") / "run")
    with federation.agents() as agents:
        return federation, federation.shake_hands(agents)


@pytest.fixture
def joined(made_joined, tmp_path: Path) -> tuple[Federation, list[pb.Ciphertext]]:
    federation, ciphertexts = made_joined
    return federation.copy_to(tmp_path / "run"), ciphertexts


def refusal(federation: Federation, reply: bytes) -> str:
    """The name in a refusal; fails if the reply is anything else."""
    body = federation.opened(SITE, reply)
    assert isinstance(body, pb.Refused)
    return str(body.name)


def test_a_repeated_request_gets_the_same_bytes_and_is_charged_once(joined) -> None:
    federation, ciphertexts = joined
    request = federation.round_request(SITE, ciphertexts=ciphertexts)
    with federation.open_agent(SITE) as agent:
        assert agent.handle(request) == agent.handle(request)
    assert federation.charged(SITE) == {(1, 1): "settled"}


def test_a_repeated_request_gets_the_same_bytes_after_a_restart(joined) -> None:
    federation, ciphertexts = joined
    request = federation.round_request(SITE, ciphertexts=ciphertexts)
    replies = []
    for _ in range(2):
        with federation.open_agent(SITE) as agent:
            replies.append(agent.handle(request))
    assert replies[0] == replies[1]


def test_the_same_attempt_with_another_model_is_refused(joined) -> None:
    federation, ciphertexts = joined
    other = federation.zero_model + np.float32(0.1)
    with federation.open_agent(SITE) as agent:
        agent.handle(federation.round_request(SITE, ciphertexts=ciphertexts))
        assert refusal(federation, agent.handle(federation.round_request(SITE, parameters=other))) == "TrustError"
    assert federation.charged(SITE) == {(1, 1): "settled"}


def test_the_same_attempt_with_another_cohort_is_refused(joined) -> None:
    federation, ciphertexts = joined
    with federation.open_agent(SITE) as agent:
        agent.handle(federation.round_request(SITE, ciphertexts=ciphertexts))
        reply = agent.handle(federation.round_request(SITE, cohort=federation.names[1:]))
        assert refusal(federation, reply) == "TrustError"


@pytest.mark.parametrize("older", [(1, 1), (1, 2), (2, 1)])
def test_what_lies_before_the_last_answer_is_refused(joined, older: tuple[int, int]) -> None:
    federation, ciphertexts = joined
    with federation.open_agent(SITE) as agent:
        agent.handle(federation.round_request(SITE, 2, 2, ciphertexts=ciphertexts))
        assert refusal(federation, agent.handle(federation.round_request(SITE, *older))) == "TrustError"
    assert federation.charged(SITE) == {(2, 2): "settled"}


@pytest.mark.parametrize("outside", [(0, 1), (4, 1), (1, 0), (1, 4)])
def test_a_round_or_an_attempt_outside_the_plan_is_refused(joined, outside: tuple[int, int]) -> None:
    federation, ciphertexts = joined
    with federation.open_agent(SITE) as agent:
        reply = agent.handle(federation.round_request(SITE, *outside, ciphertexts=ciphertexts))
    assert refusal(federation, reply) == "PolicyRefused"
    assert federation.charged(SITE) == {}


@pytest.mark.parametrize(
    ("cohort", "name"),
    [
        (["east", "south"], "PolicyRefused"),
        (["east", "north", "west"], "TrustError"),
        (["east", "east", "north", "south"], "TrustError"),
        (["south", "north", "east"], "TrustError"),
        (["east", "north", "south", "stranger"], "TrustError"),
    ],
    ids=["below the minimum", "without the site itself", "a site twice", "not sorted", "with a stranger"],
)
def test_a_cohort_that_was_not_agreed_to_is_refused(joined, cohort: list[str], name: str) -> None:
    federation, ciphertexts = joined
    with federation.open_agent(SITE) as agent:
        reply = agent.handle(federation.round_request(SITE, cohort=cohort, ciphertexts=ciphertexts))
    assert refusal(federation, reply) == name
    assert federation.charged(SITE) == {}


@pytest.mark.parametrize("size", [9, 11])
def test_a_model_of_another_size_is_refused(joined, size: int) -> None:
    federation, ciphertexts = joined
    model = np.zeros(size, dtype=np.float32)
    with federation.open_agent(SITE) as agent:
        reply = agent.handle(federation.round_request(SITE, parameters=model, ciphertexts=ciphertexts))
    assert refusal(federation, reply) == "TrustError"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_that_is_not_finite_is_refused_and_costs_nothing(joined, value: float) -> None:
    federation, ciphertexts = joined
    model = np.full(10, value, dtype=np.float32)
    with federation.open_agent(SITE) as agent:
        reply = agent.handle(federation.round_request(SITE, parameters=model, ciphertexts=ciphertexts))
    assert refusal(federation, reply) == "TrustError"
    assert federation.charged(SITE) == {}


def test_a_ciphertext_that_its_sender_did_not_sign_is_refused(joined) -> None:
    federation, ciphertexts = joined
    forged = []
    for item in ciphertexts:
        copy = pb.Ciphertext()
        copy.CopyFrom(item)
        copy.ciphertext = bytes(len(item.ciphertext))
        forged.append(copy)
    with federation.open_agent(SITE) as agent:
        reply = agent.handle(federation.round_request(SITE, ciphertexts=forged))
    assert refusal(federation, reply) == "TrustError"


def test_a_closed_run_answers_no_round_and_knows_no_secret(joined) -> None:
    federation, ciphertexts = joined
    with federation.open_agent(SITE) as agent:
        agent.handle(federation.envelope(pb.Close(), SITE))
        reply = agent.handle(federation.round_request(SITE, ciphertexts=ciphertexts))
    assert isinstance(federation.opened(SITE, reply), pb.Refused)
    assert federation.charged(SITE) == {}


def forged_requests(federation: Federation) -> dict[str, bytes]:
    close = pb.Close()
    good = federation.envelope(close, SITE)
    return {
        "signed by a stranger": federation.envelope(close, SITE, key=SigningKey.generate()),
        "signed by another site": federation.envelope(close, SITE, key=federation.homes["east"].identity),
        "for another site": federation.envelope(close, "north"),
        "for any site": federation.envelope(close, ANY_SITE),
        "for a run nobody joined": federation.envelope(close, SITE, run_id="demo-2"),
        "for a run by the name of a path": federation.envelope(close, SITE, run_id="../../sites/south"),
        "of a kind that only sites send": federation.envelope(pb.Closed(), SITE),
        "with a changed last byte": good[:-1] + bytes([good[-1] ^ 1]),
        "cut in half": good[: len(good) // 2],
        "empty": b"",
        "random": bytes(range(256)) * 4,
        "larger than any message": bytes((512 << 20) + 1),
    }


def test_forged_and_broken_requests_get_a_name_and_the_agent_goes_on(joined) -> None:
    federation, ciphertexts = joined
    with federation.open_agent(SITE) as agent:
        names = {fault: refusal(federation, agent.handle(data)) for fault, data in forged_requests(federation).items()}
        after = agent.handle(federation.round_request(SITE, ciphertexts=ciphertexts))
    assert set(names.values()) == {"TrustError"}, names
    assert isinstance(federation.opened(SITE, after), pb.Masked)


def test_a_refusal_of_the_coordinators_request_carries_a_name_and_the_ledgers_end_and_nothing_else(joined) -> None:
    federation, ciphertexts = joined
    with federation.open_agent(SITE) as agent:
        body = federation.opened(SITE, agent.handle(federation.round_request(SITE, 9, 1, ciphertexts=ciphertexts)))
        end = agent.ledger.head
    assert (body.name, body.head.seq, body.head.digest) == ("PolicyRefused", end.seq, end.digest)
    assert [field.name for field in pb.Refused.DESCRIPTOR.fields] == ["name", "head"]


def test_a_failure_that_may_depend_on_the_records_crosses_as_unavailable(joined) -> None:
    federation, ciphertexts = joined
    (federation.homes[SITE].run_path("demo-1") / "outbox.bin").write_bytes(b"\xff" * 40)
    with federation.open_agent(SITE) as agent:
        reply = agent.handle(federation.round_request(SITE, ciphertexts=ciphertexts))
    assert refusal(federation, reply) == "Unavailable"


def test_an_agent_does_not_run_behind_a_head_that_was_witnessed(federation: Federation) -> None:
    home = federation.homes[SITE]
    old = {path: path.read_bytes() for path in (home.ledger_path, home.ledger_path.with_suffix(".head"))}
    with federation.agents() as agents:
        federation.train(agents)
    for path, content in old.items():
        path.write_bytes(content)
    held = WitnessBook(federation.homes["east"].witness_path, holder="east").latest(SITE)
    assert held is not None
    with federation.open_agent(SITE) as agent:
        reply = agent.handle(federation.offer(heads=[head_message(held)]))
    assert refusal(federation, reply) == "LedgerCorrupt"


@pytest.mark.parametrize("gone", ["east", "west"])
def test_a_site_that_pinned_the_consortium_without_another_goes_on_without_it(joined, gone: str) -> None:
    federation, ciphertexts = joined
    home, names = federation.homes[SITE], list(federation.names)
    rest = [name for name in names if name != gone]
    with federation.agents() as agents:
        heads = [federation.opened(name, agents[name](federation.offer())).head for name in names]
    home.install_trust(
        federation.trust.model_copy(update={"sites": {name: federation.trust.sites[name] for name in rest}})
    )
    with federation.open_agent(SITE) as agent:
        asked = {"ciphertexts": ciphertexts, "heads": heads}
        with_it = agent.handle(federation.round_request(SITE, 1, 1, **asked))
        without = agent.handle(federation.round_request(SITE, 1, 2, cohort=rest, **asked))
        closed = agent.handle(federation.envelope(pb.Close(heads=heads), SITE))
    assert refusal(federation, with_it) == "PolicyRefused"
    assert isinstance(federation.opened(SITE, without), pb.Masked)
    assert isinstance(federation.opened(SITE, closed), pb.Closed)


def test_a_site_put_back_between_two_runs_learns_it_from_its_peers(federation: Federation) -> None:
    """The coordinator of the second run tells nothing of the first; every peer's agreement carries what it holds."""
    files = (federation.homes[SITE].ledger_path, federation.homes[SITE].ledger_path.with_suffix(".head"))
    old = {path: path.read_bytes() for path in files}
    first = federation.under(make_plan(rounds=1, spare_attempts=0, epsilon=1.0))
    with first.agents() as agents:
        first.train(agents)
    for path, content in old.items():
        path.write_bytes(content)
    second = federation.under(make_plan(rounds=2, spare_attempts=0, epsilon=1.0), run_id="demo-2")
    with second.agents() as agents:
        result = second.train(agents)
    assert (result.rounds, result.left) == (2, {SITE: "LedgerCorrupt"})


def test_a_site_put_back_in_the_middle_of_a_run_refuses_and_the_others_go_on(federation: Federation) -> None:
    home = federation.homes[SITE]
    files = (home.ledger_path, home.ledger_path.with_suffix(".head"))
    old = {path: path.read_bytes() for path in files}

    def put_back(data: bytes) -> bytes:
        if is_round(data, (2, 1)):
            for path, content in old.items():
                path.write_bytes(content)
        with federation.open_agent(SITE) as agent:
            return agent.handle(data)

    with federation.agents_of("east", "north", "west") as agents:
        others: dict[str, Handle] = dict(agents)
        result = federation.train({**others, SITE: put_back})
    assert (result.rounds, result.left) == (3, {SITE: "LedgerCorrupt"})


def test_a_head_that_its_site_did_not_sign_is_refused(joined) -> None:
    federation, _ = joined
    with federation.open_agent("east") as agent:
        head = federation.opened("east", agent.handle(federation.offer())).head
    head.seq += 1
    with federation.open_agent(SITE) as agent:
        reply = agent.handle(federation.offer(heads=[head]))
    assert refusal(federation, reply) == "TrustError"
    assert WitnessBook(federation.homes[SITE].witness_path, holder=SITE).latest("east").seq < head.seq
