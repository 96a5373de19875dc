"""A site's own ledger, read where it lies: verified, without a passphrase, without the lock, nothing written."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from common.crypto.keys import VerifyKey
from common.errors import ConfigurationError, LedgerCorrupt, TrustError
from common.privacy.account import PopulationAccount
from common.privacy.entries import LedgerEntry, LedgerHead, parse_line
from common.privacy.high_water import decode_mark
from common.privacy.verify import replay
from common.privacy.witness import WitnessBook
from common.settings import Settings, parse_json_settings

HINT = "name the site's directory with --home DIR or in FEDWARD_HOME"


class SiteDocument(Settings):
    """`site.json`: who lives in a directory."""

    version: int
    name: str
    public_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteLedger:
    """A verified ledger with its lines.

    Attributes:
        site: Whose it is.
        key: The key that signed every line, as `site.json` names it.
        head: Where it ends.
        populations: Accounts by name, in the order of opening.
        entries: Every entry and the line's raw fields, oldest first.
    """

    site: str
    key: VerifyKey
    head: LedgerHead
    populations: Mapping[str, PopulationAccount]
    entries: tuple[tuple[LedgerEntry, Mapping[str, Any]], ...]


def read_site_ledger(home: Path) -> SiteLedger:
    """Verify and read the ledger of a site's directory.

    An agent may be running: the high-water mark is read before the ledger, so it never is ahead of it, and a last line
    that is still being written is left out. The key is the one that the directory's own `site.json` names; to check a
    ledger against keys from elsewhere is the auditor's work.

    Args:
        home: The site's directory.

    Raises:
        ConfigurationError: If no site lives there, or it has no ledger yet.
        LedgerCorrupt: If the ledger does not verify or ends before its high-water mark or a head of it
            that a witness once showed this site; the entry is named.
    """
    site, key = _read_site(home)
    path = home / "ledger.jsonl"
    try:
        mark = path.with_suffix(".head").read_bytes()
    except FileNotFoundError:
        mark = None
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        if mark is None:
            raise ConfigurationError(
                f"{site}: there is no ledger yet", hint="register a data set first; that opens its population"
            ) from error
        content = b""  # the mark tells how much is missing
    except OSError as error:
        raise ConfigurationError(f"{site}: {path} cannot be read", hint="only its owner may read it") from error
    whole = content[: content.rfind(b"\n") + 1]
    try:
        heads = WitnessBook(home / "witnesses.jsonl", holder=site).heads(site)
        chain, _ = replay(whole, key=key, heads=heads, site=site)
        if mark is not None:
            chain.confirm(decode_mark(mark), "the high-water mark")
        elif chain.head.seq:
            raise LedgerCorrupt(
                f"entry {chain.head.seq}: nothing says that it is the last; ledger.head is missing",
                hint="restore the high-water mark together with the ledger",
            )
    except LedgerCorrupt as error:
        raise LedgerCorrupt(f"{site}: {error.fact}", hint=error.hint) from error
    return SiteLedger(
        site=site,
        key=key,
        head=chain.head,
        populations=MappingProxyType(chain.populations),
        entries=tuple(parse_line(line) for line in whole.split(b"\n")[:-1]),
    )


def _read_site(home: Path) -> tuple[str, VerifyKey]:
    path = home / "site.json"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{home}: no site lives here", hint=HINT) from error
    document = parse_json_settings(content, SiteDocument, source=str(path))
    if document.version != 1:
        raise ConfigurationError(f"{path}: version {document.version} is unknown; 1 is read here")
    try:
        return document.name, VerifyKey.parse(document.public_key)
    except (ValueError, TrustError) as error:
        raise ConfigurationError(f"{path}: the public key cannot be read", hint=HINT) from error
