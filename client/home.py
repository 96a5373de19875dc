"""Where a site keeps what is its own: one directory that only its owner may read.

site.json           name and public key                     policy.toml, policy.sig   the site's rules, signed
identity.pem        signing key, encrypted PKCS8             trust.json, trust.sig     pinned keys, signed
storage.key         storage key, encrypted                   approvals.json            decided plans, signed
secrets.sealed      keys for pseudonyms and patient tags     plans/<digest>.json       offered plans, signed
populations.sealed  patient tags                             ledger.jsonl, ledger.head what was spent
datasets.sealed     what was registered                      witnesses.jsonl           heads of the others' ledgers
data/*.sealed       registered records                       runs/<run>/               state of a run, sealed
"""

import json
import os
import tomllib
from base64 import b64decode, b64encode
from dataclasses import dataclass
from pathlib import Path

from client.decisions import Decisions, begin_run, read_decisions, write_approval, write_rejection
from common.canonical import canonical_json
from common.crypto.keys import SigningKey, VerifyKey
from common.crypto.seal import StorageKey, open_sealed, seal_bytes
from common.errors import ConfigurationError, OutputExists, TrustError
from common.files import write_atomic
from common.policy import SitePolicy
from common.settings import parse_json_settings, parse_settings, read_settings
from common.trust import TrustFile, trust_bytes

SECRET_BYTES = 32
POLICY_DOMAIN = "policy"
TRUST_DOMAIN = "trust"
HINTS = {
    POLICY_DOMAIN: "review it, then sign it: fedward site policy --install policy.toml",
    TRUST_DOMAIN: "pin the keys again: fedward site trust consortium.json --fingerprint …",
}
_TRIES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteHome:
    """An opened site directory: its paths and its keys. Made by `create_home` or `open_home`."""

    root: Path
    name: str
    identity: SigningKey
    storage: StorageKey

    @property
    def ledger_path(self) -> Path:
        """The budget ledger."""
        return self.root / "ledger.jsonl"

    @property
    def witness_path(self) -> Path:
        """The heads of the other sites' ledgers that this site has seen."""
        return self.root / "witnesses.jsonl"

    def run_path(self, run_id: str) -> Path:
        """The state of one run."""
        return self.root / "runs" / run_id

    def seal(self, path: Path, plain: bytes) -> None:
        """Encrypt `plain` into `path`, atomically; it opens only under that name in this home."""
        write_atomic(path, self.seal_for(self._purpose(path), plain))

    def unseal(self, path: Path) -> bytes:
        """What `seal` wrote to `path`; raises TrustError if it was changed, FileNotFoundError if it is not there."""
        return self.unseal_for(self._purpose(path), path.read_bytes())

    def seal_for(self, purpose: str, plain: bytes) -> bytes:
        """Encrypt bytes for one purpose of this site."""
        return seal_bytes(plain, self.storage, purpose=f"{self.name}/{purpose}")

    def unseal_for(self, purpose: str, sealed: bytes) -> bytes:
        """The bytes that `seal_for` was given for the same purpose; raises TrustError for anything else."""
        return open_sealed(sealed, self.storage, purpose=f"{self.name}/{purpose}")

    def secret(self, name: str) -> bytes:
        """One of the site's 32-byte secrets: `pseudonyms` or `tags`."""
        secrets: dict[str, str] = json.loads(self.unseal(self.root / "secrets.sealed"))
        return bytes.fromhex(secrets[name])

    def policy(self) -> SitePolicy:
        """The site's rules; raises TrustError if the file changed since the site signed it."""
        content = self._signed_content("policy.toml", POLICY_DOMAIN)
        return parse_settings(tomllib.loads(content.decode()), SitePolicy, source=str(self.root / "policy.toml"))

    def install_policy(self, content: bytes) -> SitePolicy:
        """Check a policy, put it in place and sign it; nothing changes if it does not fit."""
        candidate = self.root / ".policy.candidate.toml"
        write_atomic(candidate, content)
        try:
            policy = read_settings(candidate, SitePolicy)
        finally:
            candidate.unlink()
        self._write_signed_content("policy.toml", POLICY_DOMAIN, content)
        return policy

    def trust(self) -> TrustFile:
        """The pinned keys of the coordinator and of every site; raises TrustError if the file is not the one signed."""
        content = self._signed_content("trust.json", TRUST_DOMAIN)
        return parse_json_settings(content, TrustFile, source=str(self.root / "trust.json"))

    def install_trust(self, trust: TrustFile) -> None:
        """Pin the keys of a consortium; raises TrustError if this site stands in it with another key."""
        if trust.site_key(self.name) != self.identity.public_key:
            raise TrustError(f"{self.name}: the trust file names another key for this site")
        self._write_signed_content("trust.json", TRUST_DOMAIN, trust_bytes(trust))

    def decisions(self) -> Decisions:
        """The plans that were approved and rejected; raises TrustError if the file was edited."""
        return read_decisions(self.root, self.identity.public_key)

    def approvals(self) -> dict[str, str]:
        """Approved plan digests, each with the population whose budget it may spend; raises TrustError if edited."""
        return {digest: approval.population for digest, approval in self.decisions().approved.items()}

    def approve(self, plan_digest: str, *, population: str, runs: int = 1) -> None:
        """Let so many more runs of one plan spend the budget of one population; a changed plan has another digest."""
        write_approval(self.root, self.identity, plan_digest, population=population, runs=runs)

    def begin_run(self, plan_digest: str, *, run_id: str) -> None:
        """Count a run against its plan's approval, once; raises PlanNotApproved if that does not cover it."""
        begin_run(self.root, self.identity, plan_digest, run_id=run_id)

    def reject(self, plan_digest: str, *, time: str) -> None:
        """Refuse one plan until it is approved, also where the policy would approve it by itself."""
        write_rejection(self.root, self.identity, plan_digest, time=time)

    def _signed_content(self, name: str, domain: str) -> bytes:
        """The bytes of a file beside which this site's signature lies."""
        return read_signed_file(self.root / name, domain, key=self.identity.public_key, site=self.name)

    def _write_signed_content(self, name: str, domain: str, content: bytes) -> None:
        path = self.root / name
        signature = b64encode(self.identity.sign(domain, content)).decode()
        document = {"version": 1, "signature": signature}
        # Two files do not change at once: until the content has, the signature before stands beside the new one, so
        # that an agent that reads between the two finds the old content signed, not a forgery.
        before = _signatures(path)[:1]
        write_atomic(path.with_suffix(".sig"), canonical_json({**document, "before": before}) + b"\n")
        write_atomic(path, content)
        write_atomic(path.with_suffix(".sig"), canonical_json(document) + b"\n")

    def _purpose(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def read_signed_file(path: Path, domain: str, *, key: VerifyKey, site: str) -> bytes:
    """The bytes of `policy.toml` or `trust.json`, if the site whose key this is signed them; needs no passphrase.

    Raises:
        TrustError: If it cannot be read, or is not the one that the site signed.
    """
    signatures: list[str] = []
    for _ in range(_TRIES):
        # Whoever replaces the file changes its signatures first and last; a mismatch without that is none of a moment.
        before, signatures = signatures, _signatures(path)
        if before == signatures:
            break
        try:
            content = path.read_bytes()
        except OSError as error:
            raise TrustError(f"{site}: {path.name} or its signature cannot be read", hint=HINTS[domain]) from error
        if any(_holds(signature, content, domain, key) for signature in signatures):
            return content
    what = "is not the one this site signed" if signatures else "or its signature cannot be read"
    raise TrustError(f"{site}: {path.name} {what}", hint=HINTS[domain])


def _holds(signature: str, content: bytes, domain: str, key: VerifyKey) -> bool:
    try:
        key.verify(domain, content, b64decode(signature, validate=True))
    except (TrustError, ValueError):
        return False
    return True


def _signatures(path: Path) -> list[str]:
    """The signatures beside a file, as text, the newest first; none if they cannot be read."""
    try:
        signed = json.loads(path.with_suffix(".sig").read_bytes())
        found = [signed["signature"], *signed.get("before", [])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return [signature for signature in found if isinstance(signature, str)]


def create_home(root: Path, *, name: str, passphrase: bytes) -> SiteHome:
    """Make a site directory with fresh keys; raises OutputExists if there is one already."""
    if (root / "site.json").exists():
        raise OutputExists(f"{root}: there is a site already")
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.chmod(root, 0o700)
    home = SiteHome(root=root, name=name, identity=SigningKey.generate(), storage=StorageKey.generate())
    write_atomic(root / "identity.pem", home.identity.to_pem(passphrase))
    write_atomic(root / "storage.key", home.storage.to_sealed_bytes(passphrase))
    secrets = {name: os.urandom(SECRET_BYTES).hex() for name in ("pseudonyms", "tags")}
    home.seal(root / "secrets.sealed", canonical_json(secrets))
    document = {"version": 1, "name": name, "public_key": home.identity.public_key.text}
    write_atomic(root / "site.json", canonical_json(document) + b"\n")
    return home


def open_home(root: Path, *, passphrase: bytes) -> SiteHome:
    """Open a site directory.

    Raises:
        ConfigurationError: If there is no site.
        TrustError: If the passphrase is wrong or a key is not the one that site.json names.
    """
    try:
        document = json.loads((root / "site.json").read_bytes())
        name, public_key = document["name"], VerifyKey.parse(document["public_key"])
        pem, sealed = (root / "identity.pem").read_bytes(), (root / "storage.key").read_bytes()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{root}: no site lives here, or its files cannot be read") from error
    identity = SigningKey.from_pem(pem, passphrase)
    if identity.public_key != public_key:
        raise TrustError(f"{name}: identity.pem is not the key that site.json names")
    return SiteHome(root=root, name=name, identity=identity, storage=StorageKey.from_sealed_bytes(sealed, passphrase))
