"""Who has been told whose run keys, and which ciphertexts are still to be delivered.

Two sites can be in one cohort only if each was told the other's keys. A site that comes late is introduced to those
that are there; who did not hear of it waits outside until he has.
"""

from collections.abc import Iterable, Mapping, Sequence

from common import wire_pb2 as pb
from common.crypto.masking import MLKEM_CIPHERTEXT_BYTES, comes_first
from common.errors import TrustError
from common.plan import Manifest
from common.trust import TrustFile
from common.wire import CIPHERTEXT_DOMAIN, ciphertext_statement


class Introductions:
    """The key exchange of one run, as far as the coordinator sees it: it carries ciphertexts and opens none."""

    def __init__(self, manifest: Manifest, trust: TrustFile) -> None:
        self._manifest = manifest
        self._trust = trust
        self._told: dict[str, frozenset[str]] = {}
        self._unsent: dict[str, list[pb.Ciphertext]] = {}

    def accept(self, site: str, joined: Sequence[str], answer: pb.Encapsulated) -> None:
        """Keep a site's answer to the keys of all `joined`; what it was told before is not delivered again.

        What the receiving sites would refuse is refused here, or one site's bad answer would drive the others out.

        Raises:
            TrustError: If it is not one well-formed and signed ciphertext for each later site.
        """
        later = [other for other in joined if other != site and comes_first(site, other)]
        if sorted(item.recipient for item in answer.ciphertexts) != sorted(later):
            raise TrustError(f"{site} did not send one ciphertext to each of {len(later)} later sites")
        for item in answer.ciphertexts:
            if item.sender != site or len(item.ciphertext) != MLKEM_CIPHERTEXT_BYTES:
                raise TrustError(f"{site} sent a ciphertext that is malformed or not its own")
            signed = ciphertext_statement(self._manifest.digest, item)
            self._trust.site_key(site).verify(CIPHERTEXT_DOMAIN, signed, item.signature)
        before = self._told.get(site, frozenset())
        for item in answer.ciphertexts:
            if item.recipient not in before:
                self._unsent.setdefault(item.recipient, []).append(item)
        self._told[site] = before | set(joined)

    def not_told(self, sites: Iterable[str], joined: Iterable[str]) -> list[str]:
        """Those of `sites` that have not heard of everybody who joined, sorted."""
        everybody = set(joined)
        return sorted(site for site in sites if not everybody <= self._told.get(site, frozenset()))

    def acquainted(self, sites: Iterable[str]) -> list[str]:
        """The largest part of `sites` that all know each other, sorted; of two as large the one with late comers."""
        asked, best = sorted(sites), (0, 0, list[str]())
        for circle in set(self._told.values()):
            members = [site for site in asked if site in circle and circle <= self._told.get(site, frozenset())]
            best = max(best, (len(members), len(circle), members))
        return best[2]

    def unsent(self, site: str) -> list[pb.Ciphertext]:
        """What travels to a site with its next request."""
        return self._unsent.get(site, [])

    def delivered(self, site: str) -> None:
        """A site answered a request: it has what travelled with it."""
        self._unsent.pop(site, None)

    def told_json(self) -> dict[str, list[str]]:
        """Whom each site has been told of."""
        return {site: sorted(others) for site, others in sorted(self._told.items())}

    def unsent_bytes(self) -> list[bytes]:
        """Every ciphertext that is still to be delivered."""
        items = (item for site in sorted(self._unsent) for item in self._unsent[site])
        return [item.SerializeToString(deterministic=True) for item in items]

    def restore(self, told: Mapping[str, Sequence[str]], unsent: Iterable[bytes]) -> None:
        """Go on from `told_json` and `unsent_bytes`."""
        self._told = {site: frozenset(others) for site, others in told.items()}
        self._unsent = {}
        for item in map(pb.Ciphertext.FromString, unsent):
            self._unsent.setdefault(item.recipient, []).append(item)
