"""What a site said to the plans it was asked for: `approvals.json`, signed by the site."""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from common.crypto.keys import SigningKey, VerifyKey
from common.errors import ConfigurationError
from common.signed import read_signed, write_signed

APPROVALS_FILE: Final = "approvals.json"
APPROVALS_DOMAIN: Final = "approvals"
VERSION: Final = 2  # version 1 had no rejections


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """Plans that were decided on, by digest; no plan is in both.

    Attributes:
        approved: The population whose budget each may spend.
        rejected: When each was rejected.
    """

    approved: Mapping[str, str] = field(default_factory=dict)
    rejected: Mapping[str, str] = field(default_factory=dict)

    def state(self, plan_digest: str) -> str:
        """`approved`, `rejected` or `waiting`."""
        if plan_digest in self.approved:
            return "approved"
        return "rejected" if plan_digest in self.rejected else "waiting"


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
    if version not in (1, VERSION):
        raise ConfigurationError(f"{path}: version {version} is unknown; 1 and {VERSION} are read here")
    return Decisions(approved=document["plans"], rejected=document.get("rejected", {}))


def write_approval(root: Path, key: SigningKey, plan_digest: str, *, population: str) -> None:
    """Let one plan spend the budget of one population; a rejection of it is taken back."""
    with _alone(root):
        known = read_decisions(root, key.public_key)
        rejected = {digest: time for digest, time in known.rejected.items() if digest != plan_digest}
        _write(root, key, {**known.approved, plan_digest: population}, rejected)


def write_rejection(root: Path, key: SigningKey, plan_digest: str, *, time: str) -> None:
    """Refuse one plan for good; an approval of it is taken back."""
    with _alone(root):
        known = read_decisions(root, key.public_key)
        approved = {digest: population for digest, population in known.approved.items() if digest != plan_digest}
        _write(root, key, approved, {**known.rejected, plan_digest: time})


def _write(root: Path, key: SigningKey, approved: Mapping[str, str], rejected: Mapping[str, str]) -> None:
    document = {"version": VERSION, "plans": dict(approved), "rejected": dict(rejected)}
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
