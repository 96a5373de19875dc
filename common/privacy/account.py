"""What one population was charged so far, and what may still happen to it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from common.errors import PolicyRefused, PrivacyBudgetExhausted
from common.privacy.admission import FilterCost
from common.privacy.budget import PrivacyBudget
from common.privacy.entries import AttemptKey, EntryKind, LedgerEntry, PopulationTerms
from common.privacy.events import MechanismEvent

MOST_FITTING = 10**9


class AttemptState(StrEnum):
    """How far an answer came. All three are charged."""

    RESERVED = "reserved"
    SETTLED = "settled"
    BURNED = "burned"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargedAttempt:
    """One charged answer.

    Attributes:
        event: What it costs.
        state: How far it came.
        release: Digest of the bytes that may leave; None unless settled.
    """

    event: MechanismEvent
    state: AttemptState
    release: str | None = None


class PopulationAccount:
    """The account of one population. Grows by `apply`; nothing is ever taken back.

    Attributes:
        terms: Site, key, filter and budget as opened.
        cost: Total in the filter's own unit, kept as it grows so that admission takes constant time.
    """

    def __init__(self, terms: PopulationTerms) -> None:
        self.terms = terms
        self.cost = FilterCost()
        self._attempts: dict[AttemptKey, ChargedAttempt] = {}

    @property
    def budget(self) -> PrivacyBudget:
        """The limits."""
        return self.terms.budget

    @property
    def events(self) -> tuple[MechanismEvent, ...]:
        """Every charged event in the order of reservation, whatever became of its answer."""
        return tuple(charged.event for charged in self._attempts.values())

    @property
    def charges(self) -> Mapping[AttemptKey, ChargedAttempt]:
        """Every charged answer by its key, in the order of reservation."""
        return MappingProxyType(self._attempts)

    @property
    def unsettled(self) -> tuple[AttemptKey, ...]:
        """Answers that were reserved and neither settled nor burned, oldest first."""
        return tuple(key for key, charged in self._attempts.items() if charged.state is AttemptState.RESERVED)

    @property
    def reserves(self) -> int:
        """How many answers were charged."""
        return len(self._attempts)

    def count(self, state: AttemptState) -> int:
        """How many answers came exactly this far."""
        return sum(charged.state is state for charged in self._attempts.values())

    def attempt(self, key: AttemptKey) -> ChargedAttempt | None:
        """One charged answer, or None if it was never reserved."""
        return self._attempts.get(key)

    def charged_in(self, run_id: str) -> int:
        """How many answers one run was charged for."""
        return sum(key.run_id == run_id for key in self._attempts)

    def check_affordable(
        self, event: MechanismEvent, *, times: int, also: MechanismEvent | None = None, every: int = 1
    ) -> None:
        """Return only if `times` such events would still fit; raises as a reservation does.

        Args:
            also: Comes once with every `every` of them, or with what is left of so many.

        Raises:
            ValueError: If `times` or `every` is below 1.
        """
        if times < 1 or every < 1:
            raise ValueError(f"what may be afforded happens at least once, not {times} times, {every} apart")
        extra = FilterCost()
        for charged, often in ((event, times), (also, -(-times // every))):
            if charged is not None:
                one = self.terms.admission.cost(charged)
                extra += FilterCost(trusted=often * one.trusted, alone=often * one.alone)
        self.terms.admission.check(self.cost, extra, self.terms.budget)

    def fitting(
        self,
        event: MechanismEvent,
        *,
        at_most: int = MOST_FITTING,
        also: MechanismEvent | None = None,
        every: int = 1,
    ) -> int:
        """How many more such events the filter would let in, 0 to `at_most`; `also` and `every` as above."""
        if not 0 <= at_most <= MOST_FITTING:
            raise ValueError(f"at_most lies between 0 and {MOST_FITTING}, not {at_most}")
        fits, too_many = 0, at_most + 1
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            try:
                self.check_affordable(event, times=middle, also=also, every=every)
            except (PolicyRefused, PrivacyBudgetExhausted):
                too_many = middle
            else:
                fits = middle
        return fits

    def check(self, entry: LedgerEntry, *, slack: float = 0.0) -> None:
        """Return only if the entry may follow; changes nothing.

        Args:
            entry: A reserve, settle or burn entry.
            slack: Relative tolerance of the budget's comparison.

        Raises:
            PolicyRefused: For a second reservation of one answer, or an event that the filter has no sum for.
            PrivacyBudgetExhausted: If a reservation passes the budget under either view.
            ValueError: If what is settled or burned is not merely reserved.
        """
        key = _key_of(entry)
        charged = self._attempts.get(key)
        if entry.kind is EntryKind.RESERVE:
            if charged is not None:
                raise PolicyRefused(f"{key} is already charged; every attempt is answered once")
            extra = self.terms.admission.cost(_event_of(entry))
            self.terms.admission.check(self.cost, extra, self.terms.budget, slack=slack)
            return
        if charged is None:
            raise ValueError(f"{entry.kind.value} without a reserve: {key}")
        if charged.state is not AttemptState.RESERVED:
            raise ValueError(f"{entry.kind.value} of what is already {charged.state.value}: {key}")

    def apply(self, entry: LedgerEntry) -> None:
        """Take over an entry that `check` let pass."""
        key = _key_of(entry)
        if entry.kind is EntryKind.RESERVE:
            event = _event_of(entry)
            self._attempts[key] = ChargedAttempt(event=event, state=AttemptState.RESERVED)
            self.cost += self.terms.admission.cost(event)
            return
        event = self._attempts[key].event
        if isinstance(entry.payload, str):
            self._attempts[key] = ChargedAttempt(event=event, state=AttemptState.SETTLED, release=entry.payload)
        else:
            self._attempts[key] = ChargedAttempt(event=event, state=AttemptState.BURNED)


def _key_of(entry: LedgerEntry) -> AttemptKey:
    if entry.key is None:
        raise ValueError(f"a {entry.kind.value} entry names no attempt")
    return entry.key


def _event_of(entry: LedgerEntry) -> MechanismEvent:
    if not isinstance(entry.payload, MechanismEvent):
        raise ValueError(f"a {entry.kind.value} entry has no event")
    return entry.payload
