"""Whom a site believes: a consortium whose fingerprint was read out, pinned; its gateway told to the courier."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from client.home import SiteHome
from client.node_files import COURIER_FILE, read_courier_settings
from common.crypto.keys import VerifyKey
from common.enrolment import Consortium, read_consortium, same_fingerprint
from common.errors import FederationError, TrustError
from common.files import write_atomic
from common.trust import TrustFile

CERTIFICATE_FILE: Final = "ca.crt"
_GATEWAY_LINE: Final = re.compile(r"^gateway[ \t]*=.*$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustChange:
    """What a consortium would change in a site's pinned keys.

    Attributes:
        coordinator: Whether the coordinator's key is `new`, the `same` or `changed`.
        added, kept, changed, removed: Names of sites, sorted.
    """

    coordinator: str
    added: tuple[str, ...]
    kept: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]

    @property
    def is_replacement(self) -> bool:
        """Whether somebody who is pinned would become somebody else."""
        return self.coordinator == "changed" or bool(self.changed)

    def to_json(self) -> dict[str, Any]:
        """As a document."""
        return {
            "coordinator": self.coordinator,
            "sites": {
                "added": list(self.added),
                "kept": list(self.kept),
                "changed": list(self.changed),
                "removed": list(self.removed),
            },
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class CourierChange:
    """What became of the courier's directory.

    Attributes:
        written: Files that were written.
        failed: Why nothing was written, in words; empty if it was.
    """

    directory: Path
    written: tuple[Path, ...] = ()
    failed: str = ""


def read_trusted(path: Path, *, fingerprint: str) -> Consortium:
    """A consortium whose signature holds and whose fingerprint is the one that was read out.

    Raises:
        TrustError: Otherwise. ConfigurationError: If the file cannot be read.
    """
    consortium = read_consortium(path)
    if not same_fingerprint(fingerprint, consortium.fingerprint):
        raise TrustError(
            f"{path} does not have the fingerprint that you gave, {fingerprint.strip()[:80] or 'none'}",
            hint="let the coordinator read it out again, and ask for the newest file",
        )
    return consortium


def pinned_keys(home: SiteHome) -> TrustFile | None:
    """What is pinned so far; None before the first time. Raises TrustError if the file was changed."""
    return home.trust() if (home.root / "trust.json").exists() else None


def trust_change(pinned: TrustFile | None, wanted: TrustFile) -> TrustChange:
    """Who is new, the same, another or gone."""
    before = {} if pinned is None else pinned.sites
    both = before.keys() & wanted.sites.keys()
    same = {name for name in both if before[name] == wanted.sites[name]}
    coordinator = "same" if pinned is not None and pinned.coordinator == wanted.coordinator else "changed"
    return TrustChange(
        coordinator="new" if pinned is None else coordinator,
        added=tuple(sorted(wanted.sites.keys() - before.keys())),
        kept=tuple(sorted(same)),
        changed=tuple(sorted(both - same)),
        removed=tuple(sorted(before.keys() - wanted.sites.keys())),
    )


def pin_consortium(home: SiteHome, consortium: Consortium, *, replace: bool = False) -> TrustChange:
    """Pin a consortium's keys, once it is clear that this site stands in it with its own key.

    Args:
        replace: Accept another coordinator, or another key of a site that is pinned.

    Raises:
        TrustError: If this site is missing or has another key, or somebody's key changed and `replace` is not set.
    """
    own, named = home.identity.public_key.text, consortium.sites.get(home.name)
    if named is None:
        raise TrustError(
            f"{home.name}: the consortium names {len(consortium.sites)} sites, this one is not among them",
            hint="send enrolment.json to the coordinator and read out its fingerprint",
        )
    if named != own:
        raise TrustError(
            f"{home.name}: the consortium names another key for this site, {VerifyKey.parse(named).fingerprint}",
            hint=f"this site's key is {home.identity.public_key.fingerprint}; it has to be enrolled anew",
        )
    change = trust_change(pinned_keys(home), consortium.trust)
    if change.is_replacement and not replace:
        who = ["the coordinator"] if change.coordinator == "changed" else []
        raise TrustError(
            f"{home.name}: another key than the pinned one for {', '.join([*who, *change.changed])}",
            hint="ask on the telephone why; if it is so, give --replace",
        )
    with as_owner(home.root):  # or the agent's own user could not read what root has pinned for him
        home.install_trust(consortium.trust)
    return change


def tell_courier(directory: Path, consortium: Consortium) -> CourierChange:
    """Write gateway and authority into the courier's directory, if this user may; run by root, as its owner.

    What stands in that directory is the courier's word. Whoever writes there with more rights than the courier could
    be led to other files, so nothing outside is written, and no right is used that the courier has not.
    """
    try:
        with as_owner(directory):
            settings = read_courier_settings(directory)
            path, certificates = directory / COURIER_FILE, directory / settings.certificates
            if certificates.parent != directory:
                fact = f"certificates = {settings.certificates[:80]!r} lies elsewhere"
                raise TrustError(fact, hint="put ca.crt into the courier's directory")
            text = path.read_text(encoding="utf-8")
            line = f'gateway = "{consortium.gateway}"'
            changed = _GATEWAY_LINE.sub(line, text, count=1) if _GATEWAY_LINE.search(text) else f"{line}\n{text}"
            write_atomic(certificates, consortium.certificates.encode(), mode=0o644)
            write_atomic(path, changed.encode(), mode=0o600)
    except (FederationError, OSError, UnicodeDecodeError) as error:
        reason = error.fact if isinstance(error, FederationError) else type(error).__name__
        if isinstance(error, OSError):
            reason = error.strerror or reason
        return CourierChange(directory=directory, failed=reason)
    return CourierChange(directory=directory, written=(certificates, path))


@contextmanager
def as_owner(directory: Path) -> Iterator[None]:
    """While the block runs, root has the rights of a directory's owner and no others.

    Raises:
        TrustError: If it belongs to another user and this one cannot become him: links there could lead anywhere.
    """
    own = os.geteuid()
    if not directory.is_dir() or (owner := directory.stat()).st_uid == own:
        yield
        return
    if own != 0:
        raise TrustError("it belongs to another user", hint="run this as root, or copy the files as that user")
    group, groups = os.getegid(), os.getgroups()
    os.setgroups([])
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(own)
        os.setegid(group)
        os.setgroups(groups)
