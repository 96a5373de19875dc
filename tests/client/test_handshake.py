from dataclasses import replace

import pytest

from client.handshake import exchange_keys, learn_secrets, peer_keys, read_joined, signed_ciphertexts
from client.runstate import RunState, forget_secrets
from common import wire_pb2 as pb
from common.crypto.masking import RunKeys
from common.errors import PolicyRefused, TrustError
from common.wire import COORDINATOR, write_envelope
from tests.flows.federation import POPULATION, RUN_ID, Federation

Joined = list[tuple[str, pb.Joined]]


@pytest.fixture
def states(made_federation: Federation) -> dict[str, RunState]:
    """Every site's state right after it joined."""
    return {
        name: RunState(
            plan=made_federation.plan,
            manifest=made_federation.manifest,
            population=POPULATION,
            keys=RunKeys.generate(),
        )
        for name in made_federation.names
    }


def joined_body(federation: Federation, state: RunState) -> pb.Joined:
    public = state.keys.public
    return pb.Joined(manifest_digest=federation.manifest.digest, x25519=public.x25519, mlkem=public.mlkem)


@pytest.fixture
def joined(made_federation: Federation, states: dict[str, RunState]) -> Joined:
    return [(name, joined_body(made_federation, state)) for name, state in states.items()]


@pytest.fixture
def exchanged(made_federation: Federation, states: dict[str, RunState], joined: Joined) -> dict[str, RunState]:
    """Every site's state after it saw the others' keys."""
    homes = made_federation.homes
    return {
        name: exchange_keys(homes[name], state, peer_keys(homes[name], state, joined)) for name, state in states.items()
    }


def ciphertexts_for(federation: Federation, exchanged: dict[str, RunState], site: str) -> list[pb.Ciphertext]:
    made = [item for name, state in exchanged.items() for item in signed_ciphertexts(federation.homes[name], state)]
    return [item for item in made if item.recipient == site]


def test_every_pair_comes_to_share_one_secret(made_federation: Federation, exchanged: dict[str, RunState]) -> None:
    done = {
        name: learn_secrets(
            made_federation.homes[name], state, ciphertexts_for(made_federation, exchanged, name)
        ).pair_secrets
        for name, state in exchanged.items()
    }
    pairs = {(a, b): done[a][b] for a in done for b in done if a != b}
    assert all(pairs[a, b] == pairs[b, a] for a, b in pairs)
    assert len(set(pairs.values())) == 6


def test_of_each_pair_the_first_by_name_encapsulates(exchanged: dict[str, RunState]) -> None:
    assert {name: sorted(state.ciphertexts) for name, state in exchanged.items()} == {
        "east": ["north", "south", "west"],
        "north": ["south", "west"],
        "south": ["west"],
        "west": [],
    }


def test_exchanging_the_same_keys_again_changes_nothing(
    made_federation: Federation, exchanged: dict[str, RunState], joined: Joined
) -> None:
    home, state = made_federation.homes["east"], exchanged["east"]
    assert exchange_keys(home, state, peer_keys(home, state, joined)) is state


def test_a_run_is_set_up_with_one_set_of_keys(
    made_federation: Federation, exchanged: dict[str, RunState], joined: Joined
) -> None:
    home, state = made_federation.homes["east"], exchanged["east"]
    with pytest.raises(TrustError, match="set up with other keys"):
        exchange_keys(home, state, peer_keys(home, state, joined[:3]))


def test_a_late_site_is_added_and_nothing_that_was_agreed_on_before_changes(
    made_federation: Federation, states: dict[str, RunState], joined: Joined
) -> None:
    """`south` comes late: `east` encapsulates to it, `west` is encapsulated to by it."""
    early = [one for one in joined if one[0] != "south"]
    for name, added in (("east", {"south"}), ("west", set())):
        home, state = made_federation.homes[name], states[name]
        before = exchange_keys(home, state, peer_keys(home, state, early))
        after = exchange_keys(home, before, peer_keys(home, before, joined))
        assert set(after.peers) - set(before.peers) == {"south"}
        assert set(after.ciphertexts) - set(before.ciphertexts) == added
        assert before.pair_secrets.items() <= after.pair_secrets.items()
        assert before.ciphertexts.items() <= after.ciphertexts.items()


def test_a_known_peer_does_not_get_another_key_when_somebody_comes_late(
    made_federation: Federation, states: dict[str, RunState], joined: Joined
) -> None:
    early, home = [one for one in joined if one[0] != "south"], made_federation.homes["east"]
    state = exchange_keys(home, states["east"], peer_keys(home, states["east"], early))
    other = RunKeys.generate().public
    for _, body in joined:
        if body.x25519 == states["north"].keys.public.x25519:
            body.x25519 = other.x25519
    with pytest.raises(TrustError, match="other keys of 1 peers"):
        exchange_keys(home, state, peer_keys(home, state, joined))


def test_nobody_is_added_to_a_closed_run(
    made_federation: Federation, exchanged: dict[str, RunState], joined: Joined
) -> None:
    home, closed = made_federation.homes["east"], forget_secrets(exchanged["east"])
    with pytest.raises(PolicyRefused, match="closed"):
        exchange_keys(home, closed, {})


def test_a_site_looks_for_its_own_keys_among_the_others(
    made_federation: Federation, states: dict[str, RunState], joined: Joined
) -> None:
    state = replace(states["east"], keys=RunKeys.generate())
    for wrong in (joined, joined[1:]):
        with pytest.raises(TrustError, match="own keys are missing or changed"):
            peer_keys(made_federation.homes["east"], state, wrong)


def test_a_site_stands_once_among_those_that_joined(
    made_federation: Federation, states: dict[str, RunState], joined: Joined
) -> None:
    with pytest.raises(TrustError, match="west stands twice"):
        peer_keys(made_federation.homes["east"], states["east"], [*joined, joined[-1]])


def test_fewer_than_the_minimum_exchange_no_keys(
    made_federation: Federation, states: dict[str, RunState], joined: Joined
) -> None:
    with pytest.raises(PolicyRefused, match="2 sites joined, the minimum cohort is 3"):
        peer_keys(made_federation.homes["east"], states["east"], joined[:2])


@pytest.mark.parametrize("size", [0, 31, 33])
def test_keys_of_another_size_are_refused(
    made_federation: Federation, states: dict[str, RunState], joined: Joined, size: int
) -> None:
    joined[1][1].x25519 = bytes(size)
    with pytest.raises(TrustError, match="32 bytes"):
        peer_keys(made_federation.homes["east"], states["east"], joined)


def relayed(federation: Federation, site: str, body: pb.Joined, **changes: str) -> bytes:
    place = {"run_id": RUN_ID, "sender": site, "recipient": COORDINATOR, **changes}
    return write_envelope(body, key=federation.homes[site].identity, **place)


def test_an_agreement_is_read_as_its_site_signed_it(made_federation: Federation, states: dict[str, RunState]) -> None:
    body = joined_body(made_federation, states["west"])
    read = read_joined(made_federation.trust, made_federation.manifest, relayed(made_federation, "west", body))
    assert read == ("west", body)


@pytest.mark.parametrize("changes", [{"run_id": "demo-2"}, {"sender": "north"}, {"sender": "x"}, {"recipient": "any"}])
def test_an_agreement_from_elsewhere_is_refused(
    made_federation: Federation, states: dict[str, RunState], changes: dict[str, str]
) -> None:
    data = relayed(made_federation, "west", joined_body(made_federation, states["west"]), **changes)
    with pytest.raises(TrustError):
        read_joined(made_federation.trust, made_federation.manifest, data)


def test_an_agreement_to_another_manifest_is_refused(made_federation: Federation, states: dict[str, RunState]) -> None:
    body = joined_body(made_federation, states["west"])
    body.manifest_digest = "sha256:" + "0" * 64
    with pytest.raises(TrustError, match="west signed another manifest"):
        read_joined(made_federation.trust, made_federation.manifest, relayed(made_federation, "west", body))


@pytest.mark.parametrize(
    ("field", "value"),
    [("recipient", "east"), ("sender", "stranger"), ("signature", bytes(64)), ("ciphertext", b"")],
)
def test_a_ciphertext_that_is_not_its_senders_for_this_site_is_refused(
    made_federation: Federation, exchanged: dict[str, RunState], field: str, value: object
) -> None:
    (item,) = [one for one in ciphertexts_for(made_federation, exchanged, "north") if one.sender == "east"]
    setattr(item, field, value)
    with pytest.raises(TrustError):
        learn_secrets(made_federation.homes["north"], exchanged["north"], [item])


def test_a_secret_that_is_known_is_not_learned_anew(
    made_federation: Federation, exchanged: dict[str, RunState]
) -> None:
    home, items = made_federation.homes["west"], ciphertexts_for(made_federation, exchanged, "west")
    state = learn_secrets(home, exchanged["west"], items)
    assert learn_secrets(home, state, items) is state
