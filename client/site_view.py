"""A site's directory as anybody with read access sees it: verified with the key in site.json, without a passphrase."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Self

from client.decisions import Decisions, read_decisions
from client.home import POLICY_DOMAIN, TRUST_DOMAIN, read_signed_file
from client.plans import KeptOffers, read_offers
from common.crypto.keys import VerifyKey
from common.errors import ConfigurationError, TrustError
from common.policy import SitePolicy
from common.privacy.account import PopulationAccount
from common.report.site_ledger import HINT, SiteDocument, read_site_ledger
from common.settings import parse_json_settings, parse_settings
from common.trust import TrustFile


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteView:
    """A site that is looked at. Nothing is locked and nothing written, so an agent may be running."""

    root: Path
    name: str
    key: VerifyKey

    @classmethod
    def open(cls, root: Path) -> Self:
        """The site that lives in a directory; raises ConfigurationError if none does."""
        path = root / "site.json"
        try:
            document = parse_json_settings(path.read_bytes(), SiteDocument, source=str(path))
        except OSError as error:
            raise ConfigurationError(f"{root}: no site lives here, or its files cannot be read", hint=HINT) from error
        try:
            return cls(root=root, name=document.name, key=VerifyKey.parse(document.public_key))
        except (ValueError, TrustError) as error:
            raise ConfigurationError(f"{path}: the public key cannot be read", hint=HINT) from error

    def policy(self) -> SitePolicy:
        """The policy in force; raises TrustError if it was edited and not signed."""
        path = self.root / "policy.toml"
        content = read_signed_file(path, POLICY_DOMAIN, key=self.key, site=self.name)
        return parse_settings(tomllib.loads(content.decode()), SitePolicy, source=str(path))

    def trust(self) -> TrustFile:
        """The pinned keys; raises TrustError if there are none or they were changed."""
        path = self.root / "trust.json"
        content = read_signed_file(path, TRUST_DOMAIN, key=self.key, site=self.name)
        return parse_json_settings(content, TrustFile, source=str(path))

    def decisions(self) -> Decisions:
        """The plans that were decided on."""
        return read_decisions(self.root, self.key)

    def offers(self) -> KeptOffers:
        """The plans that were offered."""
        return read_offers(self.root, self.key)

    def accounts(self) -> Mapping[str, PopulationAccount]:
        """What each population was charged; none before the first data set. Raises LedgerCorrupt."""
        if not (self.root / "ledger.jsonl").exists():
            return MappingProxyType({})
        return read_site_ledger(self.root).populations
