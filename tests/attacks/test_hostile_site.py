"""One hostile site may leave the run; it may neither end it nor drive an honest site out."""

from collections.abc import Callable, Mapping

import pytest

from common import wire_pb2 as pb
from common.crypto.keys import SigningKey
from common.errors import FederationError
from common.privacy.entries import LedgerHead
from common.privacy.witness import SignedHead
from common.wire import COORDINATOR, head_message, read_body, read_envelope, write_envelope
from tests.flows.federation import Federation, Handle

HOSTILE = "west"  # sorts last: the others encapsulate to it
Change = Callable[[pb.Joined], None]


def changed_joined(federation: Federation, honest: Handle, change: Change) -> Handle:
    """A site that answers as its agent does, but for what it says when it joins."""
    key: SigningKey = federation.homes[HOSTILE].identity
    joined: list[pb.Joined] = []

    def handle(request: bytes) -> bytes:
        reply = honest(request)
        envelope = read_envelope(reply)
        if read_envelope(request).kind == "keys":
            body: pb.Joined | pb.Encapsulated = pb.Encapsulated(head=joined[0].head)
        elif envelope.kind == "joined":
            body = read_body(envelope, pb.Joined)
            change(body)
            joined.append(body)
        else:
            return reply
        return write_envelope(body, key=key, run_id=envelope.run_id, sender=HOSTILE, recipient=COORDINATOR)

    return handle


def left_after(federation: Federation, handlers: Mapping[str, Handle]) -> set[str]:
    try:
        return set(federation.train(handlers).left)
    except FederationError:
        return {"the run itself"}


def no_x25519(body: pb.Joined) -> None:
    body.x25519 = b""


def small_order_x25519(body: pb.Joined) -> None:
    body.x25519 = bytes(32)


def impossible_mlkem(body: pb.Joined) -> None:
    body.mlkem = b"\xff" * 1184


@pytest.mark.parametrize("change", [no_x25519, small_order_x25519, impossible_mlkem])
def test_run_keys_that_nobody_can_use_drive_only_their_owner_out(federation: Federation, change: Change) -> None:
    with federation.agents() as handlers:
        hostile = {**handlers, HOSTILE: changed_joined(federation, handlers[HOSTILE], change)}
        assert left_after(federation, hostile) <= {HOSTILE}


@pytest.mark.parametrize("seq", [2**53, 2**63, 2**64 - 1])
def test_a_head_with_a_number_that_no_json_holds_does_not_end_the_run(federation: Federation, seq: int) -> None:
    def change(body: pb.Joined) -> None:
        body.head.seq = seq

    with federation.agents() as handlers:
        hostile = {**handlers, HOSTILE: changed_joined(federation, handlers[HOSTILE], change)}
        assert left_after(federation, hostile) <= {HOSTILE}


def test_a_head_without_a_run_bricks_nobody(federation: Federation) -> None:
    home = federation.homes[HOSTILE]
    head = SignedHead.sign(home.identity, site=HOSTILE, head=LedgerHead(seq=1, digest="sha256:" + "1" * 64), run_id="")

    def change(body: pb.Joined) -> None:
        body.head.CopyFrom(head_message(head))

    with federation.agents() as handlers:
        hostile = {**handlers, HOSTILE: changed_joined(federation, handlers[HOSTILE], change)}
        left_after(federation, hostile)
    with federation.agents() as handlers:
        assert handlers


def test_a_site_that_forked_its_ledger_in_an_earlier_run_drives_no_witness_out(federation: Federation) -> None:
    """The others hold a head of it; it now shows the coordinator another head of the same number."""
    home = federation.homes[HOSTILE]
    old = SignedHead.sign(home.identity, site=HOSTILE, head=LedgerHead(seq=1, digest="sha256:" + "1" * 64), run_id="o")
    with federation.agents() as handlers:
        offer = federation.offer(heads=[head_message(old)])
        for name in federation.names:
            if name != HOSTILE:
                assert isinstance(federation.opened(name, handlers[name](offer)), pb.Joined)
        assert left_after(federation, handlers) <= {HOSTILE}
