"""Whether a ledger says what its site once wrote, from its bytes alone.

The same replay opens a site's own ledger and checks a stranger's. What it proves: nothing before a witnessed head was
changed, moved or removed, every line is by one key, and no reservation passed its budget. What it cannot prove: that
later entries exist, or that data was not used outside the agent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from common.canonical import ZERO_DIGEST
from common.crypto.keys import VerifyKey
from common.errors import FederationError, LedgerCorrupt, TrustError
from common.privacy.account import PopulationAccount
from common.privacy.entries import (
    LedgerEntry,
    LedgerHead,
    PopulationTerms,
    check_signature,
    line_digest,
    parse_line,
)
from common.privacy.witness import SignedHead

# Another machine's last digit may differ; the accounting margin is a million times wider.
_REPLAY_SLACK = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerReport:
    """What a verified ledger holds.

    Attributes:
        site: Whose it is; empty for an empty ledger.
        key: The key that signed every line; None for an empty ledger without a pinned one.
        key_pinned: Whether the key came from outside. If not, anyone could have signed the whole ledger anew.
        entries: How many lines.
        head: Where it ends.
        populations: Accounts by name, in the order of opening.
        witnessed_seq: The highest entry that a given head vouches for; None without one.
    """

    site: str
    key: VerifyKey | None
    key_pinned: bool
    entries: int
    head: LedgerHead
    populations: Mapping[str, PopulationAccount]
    witnessed_seq: int | None


class LedgerChain:
    """A ledger as its lines are read or written, one after the other.

    Attributes:
        head: Where it ends now.
        populations: Accounts by name.
    """

    def __init__(self, *, key: VerifyKey | None, site: str | None = None) -> None:
        self.key = key
        self.site = site
        self.head = LedgerHead()
        self.populations: dict[str, PopulationAccount] = {}
        self._digests = [ZERO_DIGEST]

    def read(self, line: bytes) -> None:
        """Verify the next line and take it over; raises LedgerCorrupt that names the entry."""
        number = self.head.seq + 1
        try:
            entry, fields = parse_line(line)
            self._check_place(entry)
            if self.key is None and isinstance(entry.payload, PopulationTerms):
                self.key = entry.payload.public_key
            if self.key is None:
                raise ValueError("the first entry opens a population and names the key")
            check_signature(fields, self.key)
            self.check(entry, slack=_REPLAY_SLACK)
        except (FederationError, ValueError) as error:
            raise LedgerCorrupt(f"entry {number}: {error}") from error
        self.apply(entry, line)

    def check(self, entry: LedgerEntry, *, slack: float = 0.0) -> None:
        """Return only if the entry may follow what is there; changes nothing.

        Raises:
            PolicyRefused, PrivacyBudgetExhausted: As `PopulationAccount.check`.
            ValueError: If the entry contradicts what is there.
        """
        account = self.populations.get(entry.population)
        if isinstance(entry.payload, PopulationTerms):
            if account is not None:
                raise ValueError(f"population {entry.population!r} is already open")
            if self.site is not None and entry.payload.site != self.site:
                raise ValueError(f"the site is {entry.payload.site!r} where it was {self.site!r}")
            if entry.payload.public_key != self.key:
                raise ValueError("the population names another key than the ledger's")
            return
        if account is None:
            raise ValueError(f"{entry.kind.value} in population {entry.population!r}, which was never opened")
        account.check(entry, slack=slack)

    def apply(self, entry: LedgerEntry, line: bytes) -> None:
        """Take over an entry that `check` let pass, and its line."""
        if isinstance(entry.payload, PopulationTerms):
            self.site = entry.payload.site
            self.populations[entry.population] = PopulationAccount(entry.payload)
        else:
            self.populations[entry.population].apply(entry)
        self.head = LedgerHead(seq=entry.seq, digest=line_digest(line))
        self._digests.append(self.head.digest)

    def confirm(self, head: LedgerHead, held_by: str) -> None:
        """Return only if the ledger passes through a head that somebody holds; raises LedgerCorrupt."""
        if head.seq > self.head.seq:
            raise LedgerCorrupt(
                f"entry {self.head.seq + 1}: missing; {held_by} holds entry {head.seq}, the ledger ends at "
                f"{self.head.seq}",
                hint="the ledger was cut or an old copy was restored; put back the newest copy of ledger.jsonl and "
                "ledger.head, and never begin a new one for the same patients",
            )
        if self._digests[head.seq] != head.digest:
            raise LedgerCorrupt(
                f"entry {head.seq}: not the one that {held_by} holds",
                hint="this entry or one before it was written anew",
            )

    def _check_place(self, entry: LedgerEntry) -> None:
        number = self.head.seq + 1
        if entry.seq != number:
            raise ValueError(f"numbered {entry.seq}; a line was removed, added or moved")
        if entry.prev != self.head.digest:
            raise ValueError(f"its previous digest is not that of entry {number - 1}")


def replay(
    content: bytes, *, key: VerifyKey | None, heads: Sequence[SignedHead], site: str | None = None
) -> tuple[LedgerChain, int | None]:
    """Read a whole ledger and compare it with the heads of its site.

    Heads of other sites say nothing about this ledger and are passed over.

    Returns:
        The chain and the highest entry that a head vouches for, None without one.

    Raises:
        LedgerCorrupt: As `verify_ledger`.
        TrustError: If the key is pinned and a head of this site is not signed by it: the head is false.
    """
    chain = LedgerChain(key=key, site=site)
    *lines, rest = content.split(b"\n")
    for line in lines:
        chain.read(line)
    if rest:
        raise LedgerCorrupt(
            f"entry {chain.head.seq + 1}: cut in its middle",
            hint="the site's own agent drops such a line when it starts: nothing was released under it",
        )
    witnessed: int | None = None
    for head in heads:
        if chain.site is not None and head.site != chain.site:
            continue
        _check_head_signature(head, chain.key, pinned=key is not None)
        chain.confirm(LedgerHead(seq=head.seq, digest=head.digest), "a witness")
        witnessed = max(head.seq, witnessed or 0)
    return chain, witnessed


def verify_ledger(
    content: bytes, *, key: VerifyKey | None, heads: Sequence[SignedHead] = (), site: str | None = None
) -> LedgerReport:
    """Verify a ledger offline.

    Args:
        content: The file's bytes.
        key: The site's pinned key, or None to take the one the ledger names itself; the report says which.
        heads: Signed heads that others hold.
        site: Whose ledger it should be, or None to take what its first entry says.

    Raises:
        LedgerCorrupt: Naming the entry, if a byte was changed, a line removed, moved or added, the tail cut before a
            given head, the ledger signed anew with another key, or an entry is of an unknown kind or newer version,
            repeats a reserve, settles what was not reserved, or passes a budget.
        TrustError: If the key is pinned and a head of this site is not signed by it.
    """
    chain, witnessed = replay(content, key=key, heads=heads, site=site)
    return LedgerReport(
        site=chain.site or "",
        key=chain.key,
        key_pinned=key is not None,
        entries=chain.head.seq,
        head=chain.head,
        populations=MappingProxyType(chain.populations),
        witnessed_seq=witnessed,
    )


def _check_head_signature(head: SignedHead, key: VerifyKey | None, *, pinned: bool) -> None:
    if key is None:
        return
    try:
        head.verify(key)
    except TrustError as error:
        if pinned:
            raise TrustError(f"a head of {head.site} at entry {head.seq} is not signed by its key") from error
        raise LedgerCorrupt(
            f"entry 1: names a key that did not sign the head that a witness holds of entry {head.seq}",
            hint="the ledger was signed anew with another key, or the head is false; pin the site's key to tell",
        ) from error
