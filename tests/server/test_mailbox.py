"""The coordinator's post office against sites that answer as they should not."""

import io
import json
from collections.abc import Callable, Iterator, Mapping

import pytest

from common import wire_pb2 as pb
from common.canonical import canonical_json
from common.crypto.keys import SigningKey
from common.errors import SecureSumAborted
from common.journal import Journal
from common.privacy.entries import LedgerHead
from common.privacy.witness import SignedHead, WitnessBook
from common.wire import COORDINATOR, head_message, write_envelope
from server.addresses import Addresses
from server.mailbox import Mailbox
from server.rundir import load_run
from tests.flows.federation import PASSPHRASE, Federation, Handle

DIGEST = "sha256:" + "ab" * 32


class Room:
    """An exchange whose nodes are functions: the smallest thing that a mailbox can post through."""

    def __init__(self, nodes: Mapping[int, Handle]) -> None:
        self.nodes = dict(nodes)

    def node_ids(self) -> list[int]:
        return sorted(self.nodes)

    def exchange(
        self,
        requests: Mapping[int, bytes],
        *,
        timeout_s: float,
        on_reply: Callable[[int, bytes | None], None] | None = None,
    ) -> dict[int, bytes | None]:
        replies: dict[int, bytes | None] = {}
        for node, body in requests.items():
            try:
                replies[node] = self.nodes[node](body)
            except TimeoutError:
                replies[node] = None
            if on_reply is not None:
                on_reply(node, replies[node])
        return replies


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def room(federation: Federation) -> Iterator[Room]:
    """Every site's agent, each behind a node of its own."""
    with federation.agents() as agents:
        yield Room({number: agents[name] for number, name in enumerate(federation.names, start=1)})


@pytest.fixture
def mailbox(federation: Federation, room: Room, log: io.StringIO) -> Mailbox:
    return Mailbox(load_run(federation.root, passphrase=PASSPHRASE), room, journal=Journal(log))


def invite(federation: Federation, mailbox: Mailbox) -> None:
    plan, manifest = federation.plan.to_json(), federation.manifest.to_json()
    mailbox.invite(pb.Offer(plan=canonical_json(plan), manifest=canonical_json(manifest)), timeout_s=1.0)


def ask_to_close(mailbox: Mailbox, *, accept: Callable[[str, pb.Closed], None] = lambda _site, _body: None) -> None:
    mailbox.ask(mailbox.reachable, lambda _: pb.Close(), pb.Closed, timeout_s=1.0, accept=accept)


def closed(
    federation: Federation, site: str, *, seq: int = 1, digest: str = DIGEST, run_id: str = "demo-1"
) -> pb.Closed:
    head = LedgerHead(seq=seq, digest=digest)
    key = federation.homes[site].identity
    return pb.Closed(head=head_message(SignedHead.sign(key, site=site, head=head, run_id=run_id)))


def signed(federation: Federation, site: str, body: pb.Closed | pb.Refused, **place: str) -> bytes:
    where = {"run_id": "demo-1", "sender": site, "recipient": COORDINATOR, **place}
    return write_envelope(body, key=federation.homes[site].identity, **where)


def test_who_a_node_is_its_signature_says(federation: Federation, mailbox: Mailbox) -> None:
    invite(federation, mailbox)
    assert mailbox.reachable == federation.names
    assert sorted(mailbox.joined) == federation.names


def test_a_site_that_says_the_same_no_again_and_again_gets_one_line_of_the_log(
    federation: Federation, mailbox: Mailbox, room: Room, log: io.StringIO
) -> None:
    agree = room.nodes[1]
    head = federation.opened("east", agree(federation.offer())).head

    def refuse(name: str) -> Handle:
        return lambda _: signed(federation, "east", pb.Refused(name=name, head=head))

    def errors() -> list[str]:
        lines = map(json.loads, log.getvalue().splitlines())
        return [line["error"] for line in lines if line.get("site") == "east"]

    for name in ["PlanNotApproved"] * 3 + ["Unavailable", "PlanNotApproved"]:
        room.nodes[1] = refuse(name)
        invite(federation, mailbox)
        mailbox.addresses = Addresses()
    assert errors() == ["PlanNotApproved", "Unavailable", "PlanNotApproved"]
    room.nodes[1] = agree
    invite(federation, mailbox)
    assert "east" in mailbox.reachable
    room.nodes[1] = refuse("PlanNotApproved")
    ask_to_close(mailbox)
    assert errors()[3:] == ["PlanNotApproved"]


def test_a_node_that_signs_for_nobody_of_the_roster_is_passed_over(
    federation: Federation, mailbox: Mailbox, room: Room
) -> None:
    room.nodes[5] = lambda _: write_envelope(
        pb.Joined(), key=SigningKey.generate(), run_id="demo-1", sender="stranger", recipient=COORDINATOR
    )
    room.nodes[6] = lambda _: b"nonsense"
    invite(federation, mailbox)
    assert mailbox.reachable == federation.names


def test_a_node_cannot_pass_for_a_site_whose_key_it_lacks(federation: Federation, mailbox: Mailbox, room: Room) -> None:
    room.nodes[1] = lambda _: write_envelope(
        pb.Joined(), key=SigningKey.generate(), run_id="demo-1", sender="east", recipient=COORDINATOR
    )
    invite(federation, mailbox)
    assert mailbox.reachable == ["north", "south", "west"]


def test_a_node_that_answers_with_another_sites_agreement_does_not_speak_for_it(
    federation: Federation, mailbox: Mailbox, room: Room
) -> None:
    """Every site receives the others' agreements when keys are exchanged; with one it could divert their requests."""
    invite(federation, mailbox)
    stolen, thief = mailbox.joined["east"], mailbox.addresses.node_of("west")
    del room.nodes[mailbox.addresses.node_of("east")]
    mailbox.addresses.lose("west")
    room.nodes[thief] = lambda _: stolen
    invite(federation, mailbox)
    assert mailbox.addresses.node_of("east") == 1


def test_a_second_node_of_a_site_is_passed_over_while_the_first_is_connected(
    federation: Federation, mailbox: Mailbox, room: Room
) -> None:
    room.nodes[9] = room.nodes[1]
    invite(federation, mailbox)
    assert mailbox.addresses.node_of("east") == 1
    del room.nodes[1]
    invite(federation, mailbox)
    assert mailbox.addresses.node_of("east") == 9


def test_a_site_that_is_there_with_other_run_keys_is_not_taken_for_itself(
    federation: Federation, mailbox: Mailbox, room: Room
) -> None:
    invite(federation, mailbox)
    first = mailbox.joined["east"]
    federation.homes["east"].run_path("demo-1").joinpath("state.sealed").unlink()
    del room.nodes[1]
    with federation.copy_to(federation.root.parent / "twin").open_agent("east") as twin:
        room.nodes[9] = twin.handle
        invite(federation, mailbox)
    assert (mailbox.joined["east"], mailbox.addresses.node_of("east")) == (first, 1)


def test_after_a_restart_a_node_still_speaks_for_its_own_site_alone(
    federation: Federation, mailbox: Mailbox, room: Room
) -> None:
    invite(federation, mailbox)
    again = Mailbox(load_run(federation.root, passphrase=PASSPHRASE), room, journal=None)
    again.addresses.restore(mailbox.addresses.to_json())
    again.restore(joined=mailbox.joined, heads=(), exchanges=1)
    assert again.reachable == []
    stolen = mailbox.joined["east"]
    room.nodes[4] = lambda _: stolen
    invite(federation, again)
    assert again.reachable == ["east", "north", "south"]
    assert again.addresses.node_of("east") == 1


def test_a_verified_answer_is_handed_over_with_its_sites_name(federation: Federation, mailbox: Mailbox) -> None:
    invite(federation, mailbox)
    heard: list[str] = []
    ask_to_close(mailbox, accept=lambda site, _: heard.append(site))
    assert sorted(heard) == federation.names
    assert mailbox.exchanges == 2


def bad_answers(federation: Federation) -> dict[str, bytes]:
    other_run = signed(federation, "east", closed(federation, "east"), run_id="demo-2")
    return {
        "in another site's name": signed(federation, "north", closed(federation, "north")),
        "for another run": other_run,
        "for another recipient": signed(federation, "east", closed(federation, "east"), recipient="north"),
        "with another site's head": signed(federation, "east", closed(federation, "north")),
        "without a head": signed(federation, "east", pb.Closed()),
        "of another kind": write_envelope(
            pb.Encapsulated(),
            key=federation.homes["east"].identity,
            run_id="demo-1",
            sender="east",
            recipient=COORDINATOR,
        ),
        "no envelope": b"nonsense",
        "empty": b"",
    }


def test_an_answer_that_does_not_verify_is_noted_and_the_others_are_heard(
    federation: Federation, mailbox: Mailbox, room: Room
) -> None:
    invite(federation, mailbox)
    for fault, data in bad_answers(federation).items():
        heard: list[str] = []
        mailbox.refused.clear()
        room.nodes[1] = lambda _, data=data: data
        ask_to_close(mailbox, accept=lambda site, _, heard=heard: heard.append(site))
        assert sorted(heard) == ["north", "south", "west"], fault
        assert mailbox.refused == {"east": "TrustError"}, fault


def test_a_site_with_two_histories_is_noted_and_ends_nothing(
    federation: Federation, mailbox: Mailbox, room: Room
) -> None:
    invite(federation, mailbox)
    room.nodes[1] = lambda _: signed(federation, "east", closed(federation, "east", seq=1))
    ask_to_close(mailbox)
    assert set(mailbox.refused) == {"east"}


def test_what_the_caller_does_not_take_is_noted(federation: Federation, mailbox: Mailbox) -> None:
    def refuse_west(site: str, _: pb.Closed) -> None:
        if site == "west":
            raise SecureSumAborted("another attempt")

    invite(federation, mailbox)
    ask_to_close(mailbox, accept=refuse_west)
    assert mailbox.refused == {"west": "SecureSumAborted"}


def test_silence_is_not_a_refusal(federation: Federation, mailbox: Mailbox, room: Room) -> None:
    def silent(_: bytes) -> bytes:
        raise TimeoutError

    invite(federation, mailbox)
    room.nodes[1] = silent
    ask_to_close(mailbox)
    assert mailbox.refused == {}


@pytest.mark.parametrize("name", ["a text with \x1b[31m colours", "x" * 5000, "two\nlines", ""])
def test_a_refusal_is_noted_by_a_name_or_not_at_all(
    federation: Federation, mailbox: Mailbox, room: Room, log: io.StringIO, name: str
) -> None:
    invite(federation, mailbox)
    refusal = pb.Refused(name=name, head=closed(federation, "east", seq=3).head)
    room.nodes[1] = lambda _: signed(federation, "east", refusal)
    ask_to_close(mailbox)
    assert mailbox.refused == {"east": "Unnamed"}
    assert [json.loads(line)["error"] for line in log.getvalue().splitlines()] == ["Unnamed"]


def test_every_head_that_comes_is_written_down(federation: Federation, mailbox: Mailbox) -> None:
    invite(federation, mailbox)
    book = WitnessBook(federation.root / "witnesses.jsonl", holder=COORDINATOR)
    assert list(book.sites) == federation.names
    assert [head.site for head in mailbox.heads()] == federation.names
