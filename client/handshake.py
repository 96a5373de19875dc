"""How the sites of a run come to share secrets in pairs, through a coordinator that they do not trust."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from client.home import SiteHome
from client.runstate import RunState
from common import wire_pb2 as pb
from common.crypto.masking import RunPublicKeys, comes_first, encapsulate, pair_secret, pair_transcript
from common.errors import PolicyRefused, TrustError
from common.plan import Manifest
from common.trust import TrustFile
from common.wire import (
    CIPHERTEXT_DOMAIN,
    COORDINATOR,
    ciphertext_statement,
    read_body,
    read_envelope,
    verify_envelope,
)


def read_joined(trust: TrustFile, manifest: Manifest, data: bytes) -> tuple[str, pb.Joined]:
    """One relayed agreement: signed by a pinned site of the roster, for this run and this very manifest.

    Raises:
        TrustError: If it is not.
    """
    envelope = read_envelope(data)
    if envelope.sender not in manifest.names:
        raise TrustError(f"{envelope.sender[:63]!r} is not in the roster")
    key = trust.site_key(envelope.sender)
    verify_envelope(envelope, key=key, run_id=manifest.run_id, sender=envelope.sender, recipient=COORDINATOR)
    body = read_body(envelope, pb.Joined)
    if body.manifest_digest != manifest.digest:
        raise TrustError(f"{envelope.sender} signed another manifest")
    return envelope.sender, body


def peer_keys(home: SiteHome, state: RunState, joined: Sequence[tuple[str, pb.Joined]]) -> dict[str, RunPublicKeys]:
    """The run keys of all others that joined.

    Raises:
        TrustError: If a site stands there twice, or this site's own keys are missing or changed.
        PolicyRefused: If fewer than the minimum cohort joined.
    """
    found: dict[str, RunPublicKeys] = {}
    for site, body in joined:
        if site in found:
            raise TrustError(f"{site} stands twice among the joined sites")
        found[site] = RunPublicKeys(x25519=body.x25519, mlkem=body.mlkem)
    if found.pop(home.name, None) != state.keys.public:
        raise TrustError(f"{home.name}: this site's own keys are missing or changed")
    if len(found) + 1 < state.manifest.minimum_cohort:
        raise PolicyRefused(f"{len(found) + 1} sites joined, the minimum cohort is {state.manifest.minimum_cohort}")
    return found


def exchange_keys(home: SiteHome, state: RunState, peers: dict[str, RunPublicKeys]) -> RunState:
    """The state with the peers' keys, and a fresh ciphertext for each new peer whose name sorts later.

    Sites may join later than others: `peers` may hold more than the state, never less and never another key. What was
    agreed on with a known peer stays as it is.

    Raises:
        TrustError: If a known peer is missing or has another key than before.
        PolicyRefused: If the run is closed; no secret of it is made again.
    """
    if state.closed:
        raise PolicyRefused(f"run {state.manifest.run_id!r} is closed")
    changed = [peer for peer, keys in state.peers.items() if peers.get(peer) != keys]
    if changed:
        raise TrustError(f"run {state.manifest.run_id!r} was set up with other keys of {len(changed)} peers")
    ciphertexts, secrets = dict(state.ciphertexts), dict(state.pair_secrets)
    late = {peer: keys for peer, keys in peers.items() if peer not in state.peers}
    if not late:
        return state
    for peer, keys in late.items():
        if comes_first(home.name, peer):
            kem_secret, ciphertexts[peer] = encapsulate(keys)
            secrets[peer] = _pair_secret(home, state, peer, keys, kem_secret, ciphertexts[peer])
    return replace(state, peers=peers, ciphertexts=ciphertexts, pair_secrets=secrets)


def signed_ciphertexts(home: SiteHome, state: RunState) -> list[pb.Ciphertext]:
    """What this site encapsulated, each signed for its recipient."""
    signed = []
    for peer, value in sorted(state.ciphertexts.items()):
        item = pb.Ciphertext(sender=home.name, recipient=peer, ciphertext=value)
        item.signature = home.identity.sign(CIPHERTEXT_DOMAIN, ciphertext_statement(state.manifest.digest, item))
        signed.append(item)
    return signed


def learn_secrets(home: SiteHome, state: RunState, ciphertexts: Iterable[pb.Ciphertext]) -> RunState:
    """The state that also knows the secrets behind ciphertexts addressed to this site.

    Raises:
        TrustError: If one is for somebody else, from a stranger, or not signed by its sender.
    """
    trust, learned = home.trust(), dict[str, bytes]()
    for item in ciphertexts:
        if item.recipient != home.name or item.sender not in state.peers:
            raise TrustError("a ciphertext is not for this site, or it is from a stranger")
        if item.sender in state.pair_secrets or item.sender not in trust.sites:
            continue  # known, or of a site that left the consortium since
        if not comes_first(item.sender, home.name):
            raise TrustError(f"{item.sender} does not encapsulate to {home.name}")
        signed = ciphertext_statement(state.manifest.digest, item)
        trust.site_key(item.sender).verify(CIPHERTEXT_DOMAIN, signed, item.signature)
        kem_secret = state.keys.decapsulate(item.ciphertext)
        keys = state.peers[item.sender]
        learned[item.sender] = _pair_secret(home, state, item.sender, keys, kem_secret, item.ciphertext)
    if not learned:
        return state
    return replace(state, pair_secrets={**state.pair_secrets, **learned})


def _pair_secret(
    home: SiteHome, state: RunState, peer: str, keys: RunPublicKeys, kem_secret: bytes, ciphertext: bytes
) -> bytes:
    transcript = pair_transcript(
        manifest_digest=state.manifest.digest,
        first=(home.name, state.keys.public),
        second=(peer, keys),
        ciphertext=ciphertext,
    )
    return pair_secret(own=state.keys, peer=keys, kem_secret=kem_secret, transcript=transcript)
