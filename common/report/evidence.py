"""Who vouches for a ledger: the pinned keys and the books of heads that are found beside it.

A run leaves `sites/<name>/ledger.jsonl`, `witnesses.jsonl` (heads that the coordinator holds), each site's own
`sites/<name>/witnesses.jsonl` (heads that it holds of the others) and `trust.json` (pinned keys).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.crypto.keys import VerifyKey
from common.privacy.witness import SignedHead, WitnessBook
from common.trust import TrustFile, read_trust

LEDGER_NAME, WITNESS_NAME, TRUST_NAME, SITES_NAME = "ledger.jsonl", "witnesses.jsonl", "trust.json", "sites"
_READER = "auditor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is held against a run's ledgers.

    Attributes:
        trust: Pinned keys; None if there are none.
        books: Books of heads by resolved path.
    """

    trust: TrustFile | None
    books: Mapping[Path, WitnessBook]

    @classmethod
    def gather(cls, run: Path, *, witness_files: Sequence[Path], trust: TrustFile | None) -> "Evidence":
        """Find the files beside a run's ledgers; given books are added to them, given keys replace the run's.

        Raises:
            ConfigurationError: If the trust file is malformed.
            LedgerCorrupt: If a book cannot be read or contradicts itself.
        """
        if trust is None and (run / TRUST_NAME).is_file():
            trust = read_trust(run / TRUST_NAME)
        beside = [run / WITNESS_NAME, *sorted(run.glob(f"{SITES_NAME}/*/{WITNESS_NAME}"))]
        paths = [*witness_files, *(path for path in beside if path.is_file())]
        return cls(trust=trust, books={path.resolve(): WitnessBook(path, holder=_READER) for path in paths})

    @property
    def pinned_sites(self) -> frozenset[str]:
        """Sites whose key is pinned."""
        return frozenset() if self.trust is None else frozenset(self.trust.sites)

    def key(self, site: str) -> VerifyKey | None:
        """The pinned key of a site, if any."""
        return self.trust.site_key(site) if self.trust is not None and site in self.trust.sites else None

    def heads(self, site: str, ledger: Path) -> list[SignedHead]:
        """Heads of a site from every book but the one beside its own ledger: nobody is a witness of himself.

        In the run's own book the coordinator holds heads; a ledger that lies right beside it has no book of its own.
        """
        ledger = ledger.resolve()
        own = ledger.with_name(WITNESS_NAME) if ledger.parent.parent.name == SITES_NAME else None
        return [head for path, book in self.books.items() if path != own for head in book.heads(site)]


def run_of(ledger: Path) -> Path:
    """The run that a ledger file lies in, or its own directory when it was handed over alone."""
    parents = ledger.resolve().parents
    return parents[2] if len(parents) > 2 and parents[1].name == SITES_NAME else parents[0]
