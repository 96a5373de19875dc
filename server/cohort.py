"""Which sites are asked next: those that joined, without those that refused or went silent."""

from collections.abc import Callable, Iterable
from typing import Final

from common.errors import QuorumLost
from common.settings import Settings

MISSES_ALLOWED: Final = 2
NO_REPLY: Final = "NoReply"
NOT_CONNECTED: Final = "NotConnected"
NO_KEYS: Final = "NoKeys"

Acquainted = Callable[[Iterable[str]], list[str]]


class CohortRecord(Settings):
    """What a cohort remembers, as it stands in a checkpoint."""

    left: dict[str, str]
    resting: tuple[str, ...]
    misses: dict[str, int]


class Cohort:
    """The sites of a run that can still be counted on.

    A site that refuses leaves for good, with the name of its error. A site that is silent is left out for the rest of
    the round, unless no cohort can be formed without it, and after two silences in a row for the rest of the run. Only
    `returned` brings a site back.
    """

    def __init__(self, sites: Iterable[str], *, minimum: int, acquainted: Acquainted = sorted) -> None:
        """Start with everybody.

        Args:
            acquainted: The largest part of some sites that share keys with each other, sorted.
        """
        self._sites = sorted(sites)
        self._minimum = minimum
        self._acquainted = acquainted
        self._resting: set[str] = set()
        self._misses: dict[str, int] = {}
        self.left: dict[str, str] = {}

    def select(self) -> list[str]:
        """The next cohort, sorted; a site that was silent in this round is asked again only if it is needed.

        Raises:
            QuorumLost: If fewer than the minimum are left; the message says who left and why.
        """
        chosen = self._acquainted([site for site in self.present if site not in self._resting])
        if len(chosen) < self._minimum:
            chosen = self._acquainted(self.present)
        if len(chosen) < self._minimum:
            self._refuse(chosen)
        return chosen

    def require_quorum(self) -> None:
        """Return only if enough sites are present, whether they share keys yet or not; else raise QuorumLost."""
        if len(self.present) < self._minimum:
            self._refuse(self.present)

    def refused(self, site: str, error_name: str) -> None:
        """A site said no."""
        self.left[site] = error_name

    def returned(self, site: str) -> None:
        """A site that had left is there again."""
        self.left.pop(site, None)
        self._misses.pop(site, None)
        self._resting.discard(site)

    def silent(self, site: str) -> None:
        """A site did not answer in time."""
        self._misses[site] = self._misses.get(site, 0) + 1
        if self._misses[site] >= MISSES_ALLOWED:
            self.left[site] = NO_REPLY
        else:
            self._resting.add(site)

    def answered(self, sites: Iterable[str]) -> None:
        """These sites answered: earlier silences are forgotten."""
        for site in sites:
            self._misses.pop(site, None)

    def next_round(self) -> None:
        """Silent sites get another chance."""
        self._resting.clear()

    @property
    def present(self) -> list[str]:
        """Every site that has not left for good."""
        return [site for site in self._sites if site not in self.left]

    def record(self) -> CohortRecord:
        """What a checkpoint keeps."""
        return CohortRecord(left=dict(self.left), resting=tuple(sorted(self._resting)), misses=dict(self._misses))

    def restore(self, record: CohortRecord) -> None:
        """Go on from a checkpoint."""
        self.left, self._misses = dict(record.left), dict(record.misses)
        self._resting = set(record.resting)

    def _refuse(self, chosen: list[str]) -> None:
        away = {**dict.fromkeys(set(self.present) - set(chosen), NO_KEYS), **self.left}
        reasons = ", ".join(f"{site}: {reason}" for site, reason in sorted(away.items()))
        raise QuorumLost(
            f"{len(chosen)} of {len(self._sites)} sites are left, the minimum cohort is {self._minimum} ({reasons})",
            hint="what the sites spent so far stands in their ledgers; nothing of the model is lost",
        )
