"""Who vouches for a ledger: the pinned keys and the books of heads that are found beside it.

A run leaves `sites/<name>/ledger.jsonl`, `witnesses.jsonl` (heads that the coordinator holds), each site's own
`sites/<name>/witnesses.jsonl` (heads that it holds of the others), `trust.json` (pinned keys) and `manifest.json`,
signed by the coordinator, whose roster says which sites there were and with which keys.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.crypto.keys import VerifyKey
from common.errors import TrustError
from common.plan import Manifest
from common.privacy.witness import SignedHead, WitnessBook
from common.settings import parse_settings
from common.signed import read_signed
from common.trust import TrustFile, read_trust

LEDGER_NAME, WITNESS_NAME, TRUST_NAME, SITES_NAME = "ledger.jsonl", "witnesses.jsonl", "trust.json", "sites"
MANIFEST_NAME = "manifest.json"
_READER = "auditor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """The heads of one ledger that one party holds, by one book.

    Attributes:
        held_by: Who, as the book says; a holder's name is not signed.
        path: The book.
        heads: Entry numbers and digests, ascending; at least one.
    """

    held_by: str
    path: Path
    heads: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is held against a run's ledgers.

    Attributes:
        run: The directory that it was found in.
        trust: Pinned keys; None if there are none.
        books: Books of heads by resolved path.
        roster: Sites and keys by the run's signed manifest; empty without pinned keys or without a manifest.
    """

    run: Path
    trust: TrustFile | None
    books: Mapping[Path, WitnessBook]
    roster: Mapping[str, str]

    @classmethod
    def gather(cls, run: Path, *, witness_files: Sequence[Path], trust: TrustFile | None) -> "Evidence":
        """Find the files beside a run's ledgers; given books are added to them, given keys replace the run's.

        Raises:
            ConfigurationError: If the trust file or the manifest is malformed.
            TrustError: If the manifest is not signed by the pinned coordinator.
            LedgerCorrupt: If a book cannot be read.
        """
        if trust is None and (run / TRUST_NAME).is_file():
            trust = read_trust(run / TRUST_NAME)
        beside = [run / WITNESS_NAME, *sorted(run.glob(f"{SITES_NAME}/*/{WITNESS_NAME}"))]
        paths = [*witness_files, *(path for path in beside if path.is_file() and not path.is_symlink())]
        books = {path.resolve(): WitnessBook(path, holder=_READER) for path in paths}
        return cls(run=run, trust=trust, books=books, roster={} if trust is None else _signed_roster(run, trust))

    @property
    def expected_sites(self) -> frozenset[str]:
        """Sites whose key is pinned, and those of the run's roster."""
        return frozenset(self.roster) | (frozenset() if self.trust is None else frozenset(self.trust.sites))

    def key(self, site: str) -> VerifyKey | None:
        """The pinned key of a site, if any; raises TrustError if the run's signed roster names another or none."""
        pinned = self.trust.sites.get(site) if self.trust is not None else None
        if site in self.roster and pinned != self.roster[site]:
            raise TrustError(
                f"the pinned key is not the one that {MANIFEST_NAME} names", hint="the file of pinned keys was replaced"
            )
        return self.trust.site_key(site) if self.trust is not None and site in self.trust.sites else None

    def heads(self, site: str, ledger: Path) -> list[SignedHead]:
        """Heads of a site from every book but the one beside its own ledger: nobody is a witness of himself.

        In the run's own book the coordinator holds heads; a ledger that lies right beside it has no book of its own.
        """
        own = {own_book(ledger), (self.run / SITES_NAME / site / WITNESS_NAME).resolve()}
        found = {
            (head.seq, head.digest, head.run_id, head.signature): head
            for path, book in self.books.items()
            if path not in own
            for head in book.heads(site)
        }
        return list(found.values())

    def holdings(self) -> dict[str, list[Holding]]:
        """Who holds which heads, by the site that they are of; every book is read once more."""
        found: dict[str, list[Holding]] = {}
        for path in self.books:
            held: dict[tuple[str, str], set[tuple[int, str]]] = {}
            for line in path.read_bytes().split(b"\n")[:-1]:
                fields = json.loads(line)
                held.setdefault((fields["site"], fields["held_by"]), set()).add((fields["seq"], fields["head"]))
            for (site, held_by), heads in held.items():
                found.setdefault(site, []).append(Holding(held_by=held_by, path=path, heads=tuple(sorted(heads))))
        return found


def own_book(ledger: Path) -> Path | None:
    """The book of the site whose ledger this is, if the ledger lies in a run."""
    ledger = ledger.resolve()
    return ledger.with_name(WITNESS_NAME) if ledger.parent.parent.name == SITES_NAME else None


def run_of(ledger: Path) -> Path:
    """The run that a ledger file lies in, or its own directory when it was handed over alone."""
    parents = ledger.resolve().parents
    return parents[2] if len(parents) > 2 and parents[1].name == SITES_NAME else parents[0]


def _signed_roster(run: Path, trust: TrustFile) -> Mapping[str, str]:
    path = run / MANIFEST_NAME
    if not path.is_file():
        return {}
    document = read_signed(path, "manifest", trust.coordinator_key)
    manifest = parse_settings(document, Manifest, source=str(path))
    return {entry.name: entry.identity_key for entry in manifest.roster}
