import io
import json
from pathlib import Path

import pytest

from client.agent import NAMES_THAT_TRAVEL, SiteAgent
from client.guard import attempt_event
from common import errors
from common import wire_pb2 as pb
from common.errors import ConfigurationError, LedgerCorrupt, TrustError
from common.journal import Journal
from common.wire import read_envelope
from tests.flows.federation import PASSPHRASE, RUN_ID, Federation

SITE = "north"


def test_an_agent_opens_from_its_directory_alone(federation: Federation) -> None:
    with federation.open_agent(SITE) as agent:
        assert (agent.home.name, agent.ledger.populations) == (SITE, ("ward",))


def test_two_agents_never_hold_one_ledger(federation: Federation) -> None:
    with federation.open_agent(SITE), pytest.raises(ConfigurationError, match="in use by another process"):
        federation.open_agent(SITE)


def test_a_closed_agent_gives_its_lock_back(federation: Federation) -> None:
    for _ in range(2):
        federation.open_agent(SITE).close()


def test_an_agent_that_could_not_open_holds_no_lock(federation: Federation) -> None:
    path = federation.homes[SITE].ledger_path
    content = path.read_bytes()
    path.write_bytes(content.replace(b"ward", b"word", 1))
    with pytest.raises(LedgerCorrupt):
        federation.open_agent(SITE)
    path.write_bytes(content)
    federation.open_agent(SITE).close()


def test_a_wrong_passphrase_opens_no_agent(federation: Federation) -> None:
    with pytest.raises(TrustError, match="passphrase"):
        SiteAgent.open(federation.homes[SITE].root, passphrase=b"another passphrase for tests")


def test_an_empty_directory_is_no_site(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no site lives here"):
        SiteAgent.open(tmp_path, passphrase=PASSPHRASE)


def test_every_reply_is_signed_for_the_coordinator_and_the_run(federation: Federation) -> None:
    with federation.open_agent(SITE) as agent:
        reply = read_envelope(agent.handle(federation.offer()))
    assert (reply.sender, reply.recipient, reply.run_id, reply.kind) == (SITE, "coordinator", RUN_ID, "joined")


def test_the_same_run_goes_on_in_another_process(federation: Federation) -> None:
    with federation.agents() as agents:
        ciphertexts = federation.shake_hands(agents)
    with federation.open_agent(SITE) as agent:
        reply = federation.opened(SITE, agent.handle(federation.round_request(SITE, ciphertexts=ciphertexts)))
    assert isinstance(reply, pb.Masked)


def test_an_answer_ends_with_the_ledger_as_it_is_after_it(federation: Federation) -> None:
    with federation.agents() as agents:
        ciphertexts = federation.shake_hands(agents)
    with federation.open_agent(SITE) as agent:
        reply = federation.opened(SITE, agent.handle(federation.round_request(SITE, ciphertexts=ciphertexts)))
        assert (reply.head.seq, reply.head.digest) == (agent.ledger.head.seq, agent.ledger.head.digest)
    assert reply.head.seq == 3


def test_closing_burns_what_was_reserved_and_never_put_on_disk(federation: Federation) -> None:
    with federation.agents() as agents:
        federation.shake_hands(agents)
    with federation.open_agent(SITE) as agent:
        event = attempt_event(federation.manifest, cohort_size=4)
        agent.ledger.reserve("ward", run_id=RUN_ID, round_number=1, attempt=1, event=event)
        agent.ledger.reserve("ward", run_id="another-run", round_number=1, attempt=1, event=event)
        reply = federation.opened(SITE, agent.handle(federation.envelope(pb.Close(), SITE)))
    assert isinstance(reply, pb.Closed)
    assert federation.charged(SITE) == {(1, 1): "burned"}
    with federation.ledger(SITE) as ledger:
        assert [key.run_id for key in ledger.account("ward").unsettled] == ["another-run"]


def test_a_run_may_be_closed_twice(federation: Federation) -> None:
    with federation.agents() as agents:
        federation.shake_hands(agents)
        replies = [federation.opened(SITE, agents[SITE](federation.envelope(pb.Close(), SITE))) for _ in range(2)]
    assert all(isinstance(reply, pb.Closed) for reply in replies)


def test_the_names_that_travel_are_those_that_do_not_depend_on_records() -> None:
    assert "DataRefused" not in NAMES_THAT_TRAVEL
    assert all(issubclass(getattr(errors, name), errors.FederationError) for name in NAMES_THAT_TRAVEL)


def test_what_the_reply_keeps_to_itself_stands_in_the_sites_own_log(federation: Federation) -> None:
    stream = io.StringIO()
    home = federation.homes[SITE]
    text = (home.root / "policy.toml").read_text().replace("minimum_patients = 1", "minimum_patients = 100")
    home.install_policy(text.encode())
    with federation.open_agent(SITE, journal=Journal(stream)) as agent:
        reply = federation.opened(SITE, agent.handle(federation.offer()))
    assert reply.name == "Unavailable"
    assert json.loads(stream.getvalue().splitlines()[-1])["error"] == "DataRefused"


def test_the_log_says_which_engine_trains_and_why(federation: Federation) -> None:
    stream = io.StringIO()
    with federation.agents() as agents:
        ciphertexts = federation.shake_hands(agents)
    with federation.open_agent(SITE, journal=Journal(stream)) as agent:
        agent.handle(federation.round_request(SITE, ciphertexts=ciphertexts))
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert "closed form" in next(event["reason"] for event in events if event["event"] == "engine")
