"""What a site said to the plans it was asked for: `approvals.json`, signed by the site."""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from common.crypto.keys import SigningKey, VerifyKey
from common.errors import ConfigurationError, PlanNotApproved
from common.signed import read_signed, write_signed

APPROVALS_FILE: Final = "approvals.json"
APPROVALS_DOMAIN: Final = "approvals"
VERSION: Final = 3
_UNTIL_REJECTED: Final = (1, 2)  # versions whose approvals held for every run; the first had no rejections


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """What a person let one plan do.

    Attributes:
        population: Whose budget it may spend.
        runs_left: How many more runs of it may begin; None: any number, which only approvals before version 3 say.
        begun: Runs that began under it. Each may go on, however often it is resumed or asked again.
    """

    population: str
    runs_left: int | None = 1
    begun: tuple[str, ...] = ()

    def covers(self, run_id: str) -> bool:
        """Whether a run may compute: it began already, or may still begin."""
        return run_id in self.begun or self.runs_left is None or self.runs_left > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """Plans that were decided on, by digest; no plan is in both.

    Attributes:
        approved: For whose budget, and for how many runs.
        rejected: When each was rejected.
    """

    approved: Mapping[str, Approval] = field(default_factory=dict)
    rejected: Mapping[str, str] = field(default_factory=dict)

    def state(self, plan_digest: str, run_id: str) -> str:
        """What was decided on one run of a plan: `approved`, `rejected` or `waiting`."""
        if plan_digest in self.rejected:
            return "rejected"
        approval = self.approved.get(plan_digest)
        return "approved" if approval is not None and approval.covers(run_id) else "waiting"


def read_decisions(root: Path, key: VerifyKey) -> Decisions:
    """What was decided so far; needs no passphrase.

    Raises:
        TrustError: If the site did not sign it. ConfigurationError: If it cannot be read.
    """
    path = root / APPROVALS_FILE
    if not path.exists():
        return Decisions()
    document = read_signed(path, APPROVALS_DOMAIN, key)
    version = document.get("version")
    if version in _UNTIL_REJECTED:
        approved = {digest: Approval(population=name, runs_left=None) for digest, name in document["plans"].items()}
    elif version == VERSION:
        approved = {digest: _approval(entry) for digest, entry in document["plans"].items()}
    else:
        raise ConfigurationError(f"{path}: version {version} is unknown; 1 to {VERSION} are read here")
    return Decisions(approved=approved, rejected=document.get("rejected", {}))


def write_approval(root: Path, key: SigningKey, plan_digest: str, *, population: str, runs: int = 1) -> None:
    """Let so many more runs of a plan begin, on the budget of one population; a rejection of it is taken back.

    What was left of an approval before is replaced; runs that began under it go on.
    """
    with _alone(root):
        known = read_decisions(root, key.public_key)
        before = known.approved.get(plan_digest)
        begun = () if before is None else before.begun
        rejected = {digest: time for digest, time in known.rejected.items() if digest != plan_digest}
        approval = Approval(population=population, runs_left=runs, begun=begun)
        _write(root, key, {**known.approved, plan_digest: approval}, rejected)


def begin_run(root: Path, key: SigningKey, plan_digest: str, *, run_id: str) -> None:
    """Count a run against its plan's approval, once; whoever computes does this before anything is charged.

    Raises:
        PlanNotApproved: If the approval does not cover the run, or is gone.
    """
    with _alone(root):
        known = read_decisions(root, key.public_key)
        approval = known.approved.get(plan_digest)
        if approval is None or not approval.covers(run_id):
            raise PlanNotApproved(f"plan {plan_digest[:19]}… is not approved for run {run_id}")
        if run_id in approval.begun:
            return
        left = None if approval.runs_left is None else approval.runs_left - 1
        counted = replace(approval, runs_left=left, begun=(*approval.begun, run_id))
        _write(root, key, {**known.approved, plan_digest: counted}, known.rejected)


def write_rejection(root: Path, key: SigningKey, plan_digest: str, *, time: str) -> None:
    """Refuse one plan for good; an approval of it is taken back."""
    with _alone(root):
        known = read_decisions(root, key.public_key)
        approved = {digest: approval for digest, approval in known.approved.items() if digest != plan_digest}
        _write(root, key, approved, {**known.rejected, plan_digest: time})


def _approval(entry: Mapping[str, Any]) -> Approval:
    return Approval(population=entry["population"], runs_left=entry["runs_left"], begun=tuple(entry["begun"]))


def _write(root: Path, key: SigningKey, approved: Mapping[str, Approval], rejected: Mapping[str, str]) -> None:
    plans = {
        digest: {"population": approval.population, "runs_left": approval.runs_left, "begun": list(approval.begun)}
        for digest, approval in approved.items()
    }
    document = {"version": VERSION, "plans": plans, "rejected": dict(rejected)}
    write_signed(root / APPROVALS_FILE, APPROVALS_DOMAIN, document, key)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Two people who decide at once must not lose one decision."""
    handle = os.open(root / "approvals.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
