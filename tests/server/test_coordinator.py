import json
from collections.abc import Callable

import numpy as np
import pytest

from common import wire_pb2 as pb
from common.errors import QuorumLost
from common.parameters import parameters_digest
from common.wire import COORDINATOR, read_envelope, write_envelope
from server.release import read_release
from tests.flows.federation import Federation, Handle

SITE = "east"


def changing(federation: Federation, handle: Handle, kind: str, change: Callable[..., None]) -> Handle:
    """A site that changes its own answers of one kind and signs what came of it."""

    def answer(data: bytes) -> bytes:
        reply = handle(data)
        if read_envelope(reply).kind != kind:
            return reply
        body = federation.opened(SITE, reply)
        change(body)
        key = federation.homes[SITE].identity
        return write_envelope(body, key=key, run_id="demo-1", sender=SITE, recipient=COORDINATOR)

    return answer


def train_with(federation: Federation, kind: str, change: Callable[..., None]) -> tuple[int, dict[str, str]]:
    with federation.agents() as agents:
        result = federation.train({**agents, SITE: changing(federation, agents[SITE], kind, change)})
    return result.rounds, result.left


def test_the_result_stands_in_a_file(federation: Federation) -> None:
    with federation.agents() as agents:
        result = federation.train(agents)
    written = json.loads((federation.root / "result.json").read_bytes())
    assert written["version"] == 1
    assert (written["rounds"], written["attempts"], written["left"]) == (3, 3, {})
    assert written["model_digest"] == result.model_digest


def test_the_sites_are_asked_twice_to_set_up_once_a_round_and_twice_to_close(federation: Federation) -> None:
    with federation.agents() as agents:
        assert federation.train(agents).exchanges == 2 + 3 + 2


def test_a_site_sends_four_bytes_a_parameter(federation: Federation) -> None:
    with federation.agents() as agents:
        assert federation.train(agents).bytes_up == 4 * 10


def test_the_released_model_is_the_last_rounds(federation: Federation) -> None:
    with federation.agents() as agents:
        result = federation.train(agents)
    released = read_release(federation.root / "model", plan=federation.plan, key=federation.coordinator.public_key.text)
    last = np.frombuffer((federation.root / "models" / "round-0003.f32").read_bytes(), dtype="<f4")
    np.testing.assert_array_equal(released, last)
    assert parameters_digest(released) == result.model_digest


def test_ciphertexts_travel_until_their_site_has_answered_once(federation: Federation) -> None:
    carried: dict[int, list[int]] = {}

    def note(way: str, node: int, data: bytes) -> None:
        envelope = read_envelope(data)
        if envelope.kind == "round":
            carried.setdefault(node, []).append(len(pb.Round.FromString(envelope.body).ciphertexts))

    with federation.agents() as agents:
        federation.train(agents, tap=note)
    assert carried == {1: [0, 0, 0], 2: [1, 0, 0], 3: [2, 0, 0], 4: [3, 0, 0]}


def cut_a_ciphertext(body: pb.Encapsulated) -> None:
    body.ciphertexts[0].ciphertext = body.ciphertexts[0].ciphertext[:-1]


def sign_nothing(body: pb.Encapsulated) -> None:
    body.ciphertexts[0].signature = bytes(64)


def leave_one_out(body: pb.Encapsulated) -> None:
    del body.ciphertexts[0]


def send_one_twice(body: pb.Encapsulated) -> None:
    body.ciphertexts.append(body.ciphertexts[0])


def speak_for_another(body: pb.Encapsulated) -> None:
    body.ciphertexts[0].sender = "north"


@pytest.mark.parametrize("change", [cut_a_ciphertext, sign_nothing, leave_one_out, send_one_twice, speak_for_another])
def test_bad_ciphertexts_drive_out_their_sender_and_not_their_receiver(federation: Federation, change) -> None:
    assert train_with(federation, "encapsulated", change) == (3, {SITE: "TrustError"})


def add_a_coordinate(body: pb.Masked) -> None:
    body.vector += bytes(4)


def claim_another_context(body: pb.Masked) -> None:
    body.context = "sha256:" + "0" * 64


def answer_another_round(body: pb.Masked) -> None:
    body.round += 1


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (add_a_coordinate, "TrustError"),
        (claim_another_context, "SecureSumAborted"),
        (answer_another_round, "SecureSumAborted"),
    ],
)
def test_a_masked_update_that_does_not_fit_drives_its_sender_out(federation: Federation, change, name: str) -> None:
    assert train_with(federation, "masked", change) == (3, {SITE: name})


def test_a_site_that_agreed_to_another_manifest_has_not_joined(federation: Federation) -> None:
    def change(body: pb.Joined) -> None:
        body.manifest_digest = "sha256:" + "0" * 64

    assert train_with(federation, "joined", change) == (3, {SITE: "NotConnected"})


def test_every_site_is_closed_also_when_the_run_is_lost(federation: Federation) -> None:
    closed: list[str] = []

    def dying_in_round_two(name: str, handle: Handle) -> Handle:
        def answer(data: bytes) -> bytes:
            envelope = read_envelope(data)
            if envelope.kind == "close":
                closed.append(name)
            if envelope.kind == "round" and pb.Round.FromString(envelope.body).round == 2:
                raise TimeoutError
            return handle(data)

        return answer

    with federation.agents() as agents, pytest.raises(QuorumLost, match="NoReply"):
        federation.train({name: dying_in_round_two(name, handle) for name, handle in agents.items()})
    assert sorted(closed) == sorted(2 * federation.names)
