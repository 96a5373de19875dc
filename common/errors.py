"""What can go wrong in a way that a person can mend, with an exit code for each.

    FederationError                  1  (never raised itself)
    ├── ConfigurationError           3  a scenario, plan, policy or flag is wrong
    ├── OutputExists                 4  the out directory is already there
    ├── DataRefused                  5  the data cannot be registered
    ├── PolicyRefused                6  the site's policy does not allow the plan
    │   ├── PlanNotApproved          6  nobody at the site approved this plan
    │   └── AttemptLost              6  an attempt was charged and never answered
    ├── PrivacyBudgetExhausted       7  the spend would pass a limit
    ├── QuorumLost                   8  too few sites are left to go on
    ├── LedgerCorrupt                9  a ledger does not verify
    ├── LedgerNotWitnessed          10  a ledger is self-consistent, nobody vouches for its end
    ├── SecureSumAborted            11  the sum stays sealed
    ├── TrustError                  12  a signature, key or digest is not the pinned one
    ├── BackendFailed               13  Flower or Ray did not do its part
    ├── MissingDependency           14  an optional part is not installed
    ├── ClaimRefuted                15  an audit proved that a claimed epsilon is false
    ├── ActsCorrupt                 16  the coordinator's log of acts does not verify
    └── RunStopped                  17  the coordinator was asked to stop the run

130 is Ctrl-C, 2 a command line that cannot be read. The table stands in `common/FORMATS.md` too.
"""

from typing import ClassVar


class FederationError(Exception):
    """Something that a user can act on.

    Attributes:
        fact: What is so, with the number and its limit. One or two sentences.
        hint: What to do about it; may be empty.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, fact: str, *, hint: str = "") -> None:
        super().__init__(fact)
        self.fact = fact
        self.hint = hint


class ConfigurationError(FederationError):
    """A scenario, plan, policy or flag is wrong."""

    exit_code = 3


class OutputExists(FederationError):
    """The out directory is already there."""

    exit_code = 4


class DataRefused(FederationError):
    """The data cannot be registered as it is."""

    exit_code = 5


class PolicyRefused(FederationError):
    """The site's policy does not allow the plan."""

    exit_code = 6


class PlanNotApproved(PolicyRefused):
    """Nobody at the site approved this plan."""


class AttemptLost(PolicyRefused):
    """An attempt was charged and interrupted before there was an answer; it is never computed a second time."""


class PrivacyBudgetExhausted(FederationError):
    """The spend would pass a limit."""

    exit_code = 7


class QuorumLost(FederationError):
    """Too few sites are left to go on."""

    exit_code = 8


class LedgerCorrupt(FederationError):
    """A ledger does not verify; the message names the entry."""

    exit_code = 9


class LedgerNotWitnessed(FederationError):
    """A ledger is self-consistent, but nobody vouches for its end."""

    exit_code = 10


class SecureSumAborted(FederationError):
    """The sum stays sealed."""

    exit_code = 11


class TrustError(FederationError):
    """A signature, key or digest is not the pinned one."""

    exit_code = 12


class BackendFailed(FederationError):
    """Flower or Ray did not do its part."""

    exit_code = 13


class MissingDependency(FederationError):
    """An optional part is not installed."""

    exit_code = 14


class ClaimRefuted(FederationError):
    """An audit proved that a claimed epsilon is false."""

    exit_code = 15


class ActsCorrupt(FederationError):
    """The coordinator's log of acts does not verify; the message names the act."""

    exit_code = 16


class RunStopped(FederationError):
    """The coordinator was asked to stop the run; it is closed, and the model so far is released."""

    exit_code = 17
