"""What a look at a node found, and where to look: the words that all checks of `fedward site check` share."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from client.node_files import CourierSettings, NodeSettings, read_courier_settings, read_node_settings
from common.crypto.keys import VerifyKey
from common.errors import ConfigurationError, TrustError
from common.settings import Settings, parse_json_settings


class Verdict(StrEnum):
    """How a finding stands."""

    FINE = "fine"
    WARNING = "warning"
    WRONG = "wrong"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: Its short name; the same in every run.
        looked_at: What was looked at.
        found: What is so, with the number and its limit.
        mend: What to do about it; empty where nothing is to be done.
    """

    check: str
    looked_at: str
    verdict: Verdict
    found: str
    mend: str = ""

    def to_json(self) -> dict[str, Any]:
        """The finding in the document of `fedward site check`."""
        return {
            "check": self.check,
            "looked_at": self.looked_at,
            "verdict": self.verdict.value,
            "found": self.found,
            "mend": self.mend,
        }


class SiteName(Settings):
    """`site.json`: who lives in a directory."""

    version: int
    name: str
    public_key: str


@dataclass(frozen=True, kw_only=True)
class Premises:
    """Where a node lives, as a check finds it. Nothing is written and no lock is taken.

    Attributes:
        home: The agent's directory.
        given_courier: The courier's directory as the command line named it; None: as node.toml says, or beside home.
        environment: For the passphrase alone.
        clock: The machine's time, UTC.
    """

    home: Path
    given_courier: Path | None
    environment: Mapping[str, str]
    clock: Callable[[], datetime]

    @cached_property
    def node(self) -> NodeSettings:
        """node.toml; raises ConfigurationError if it is malformed."""
        return read_node_settings(self.home)

    @cached_property
    def courier(self) -> Path:
        """The courier's directory."""
        return courier_directory(self.home, self.given_courier, self.node)

    @cached_property
    def courier_settings(self) -> CourierSettings:
        """courier.toml; raises ConfigurationError if it is missing or malformed."""
        return read_courier_settings(self.courier)

    @cached_property
    def socket(self) -> Path:
        """Where the agent listens."""
        return self.home / self.node.socket

    @cached_property
    def site(self) -> SiteName:
        """site.json; raises ConfigurationError if no site lives here."""
        path = self.home / "site.json"
        try:
            content = path.read_bytes()
        except OSError as error:
            hint = "name the site's directory with --home DIR or in FEDWARD_HOME; make one with: fedward site init"
            raise ConfigurationError(f"{self.home}: no site can be read here ({error.strerror})", hint=hint) from error
        return parse_json_settings(content, SiteName, source=str(path))

    @cached_property
    def key(self) -> VerifyKey:
        """The site's public key; raises ConfigurationError or TrustError if site.json names none."""
        try:
            return VerifyKey.parse(self.site.public_key)
        except ValueError as error:
            raise TrustError(f"{self.home / 'site.json'}: the public key cannot be read") from error


Check = Callable[[Premises], Iterable[Finding]]


def courier_directory(home: Path, given: Path | None, node: NodeSettings) -> Path:
    """Where the courier lives: as given, else as node.toml says, else in `<home>-courier` beside the home."""
    if given is not None:
        return given
    if node.courier:
        return home / node.courier
    absolute = home.absolute()
    return absolute.with_name(f"{absolute.name}-courier")


def worst(*judged: tuple[bool, Verdict]) -> Verdict:
    """The worst verdict whose condition holds; FINE if none does."""
    order = [Verdict.FINE, Verdict.SKIPPED, Verdict.WARNING, Verdict.WRONG]
    return max((verdict for holds, verdict in judged if holds), key=order.index, default=Verdict.FINE)


def size(size_bytes: float) -> str:
    """Bytes for people: MiB below one GiB."""
    return f"{size_bytes / 2**20:.0f} MiB" if size_bytes < 2**30 else f"{size_bytes / 2**30:.1f} GiB"
