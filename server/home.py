"""Where a coordinator keeps what is its own: one directory that only its owner may read.

server.toml       how this machine serves          members.json     enrolled sites and their keys, signed
coordinator.pem   plan-signing key, encrypted      consortium.json  what every site pins, signed
coordinator.pub   its public half                  tokens.json      who may use the API, hashed, signed
storage.key       storage key, encrypted           acts.*           who did what, chained and signed
pki/              authority and certificates       proposals/       plans that researchers sent
superexec.secret  for Flower's executor            gateway.jsonl    every request from outside
flower/           Flower's home, state and logs    runs/<run id>/   one directory a run (`server/rundir.py`)
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from common.canonical import canonical_json
from common.crypto.keys import SigningKey, VerifyKey
from common.crypto.seal import StorageKey
from common.errors import ConfigurationError, OutputExists, TrustError
from common.files import write_atomic
from common.settings import Settings, read_settings

_PUBLIC = 0o644
_HOST_PORT = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9.\-]{0,252}|\[[0-9A-Fa-f:.]{2,45}\]):([0-9]{1,5})")
_LARGEST_PORT = 65535


def _is_host_port(text: str) -> str:
    form = _HOST_PORT.fullmatch(text)
    if form is None or int(form[1]) > _LARGEST_PORT:
        raise ValueError(f"write it as host:port, such as fed.example.org:8443, with a port up to {_LARGEST_PORT}")
    return text


HostPort = Annotated[str, AfterValidator(_is_host_port)]


class ServerSettings(Settings):
    """server.toml: how this machine serves; nothing here concerns privacy.

    Attributes:
        address: `host:port` that couriers call; stands in the consortium and in the server's certificate.
        listen: `host:port` that the gateway binds.
        api: `host:port` of the API for people with a token; empty is off. Keep it inside the house.
        client_certificates: Ask every courier for a certificate of the authority, too.
        requests_per_second: Of one node, before the gateway answers 503.
    """

    version: Literal[1] = 1
    address: HostPort
    listen: HostPort
    api: Literal[""] | HostPort = ""
    client_certificates: bool = False
    requests_per_second: float = Field(default=200.0, gt=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerHome:
    """An opened coordinator directory: its paths, settings and keys. Made by `create_server` or `open_server`."""

    root: Path
    settings: ServerSettings
    key: SigningKey
    storage: StorageKey

    @property
    def pki(self) -> Path:
        """ca.crt, ca.key (absent with certificates of one's own), server.crt, server.key."""
        return self.root / "pki"

    @property
    def proposals(self) -> Path:
        """Plans that came over the API."""
        return self.root / "proposals"

    @property
    def runs(self) -> Path:
        """One directory a run."""
        return self.root / "runs"

    @property
    def flower(self) -> Path:
        """Flower's home, state database and logs."""
        return self.root / "flower"

    @property
    def members_path(self) -> Path:
        """Enrolled sites, signed."""
        return self.root / "members.json"

    @property
    def consortium_path(self) -> Path:
        """What every site pins, signed."""
        return self.root / "consortium.json"

    @property
    def tokens_path(self) -> Path:
        """Hashed API tokens, signed."""
        return self.root / "tokens.json"

    @property
    def acts_path(self) -> Path:
        """The log of who did what."""
        return self.root / "acts.jsonl"

    @property
    def gateway_log_path(self) -> Path:
        """The log of every request from outside."""
        return self.root / "gateway.jsonl"

    @property
    def superexec_secret_path(self) -> Path:
        """The secret between SuperLink and its executor: raw bytes without a newline."""
        return self.root / "superexec.secret"


def create_server(root: Path, *, settings: ServerSettings, passphrase: bytes) -> ServerHome:
    """Make a coordinator directory with fresh keys; raises OutputExists if there is one already."""
    if (root / "coordinator.pem").exists():
        raise OutputExists(f"{root}: there is a coordinator already")
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    root.chmod(0o700)
    home = ServerHome(root=root, settings=settings, key=SigningKey.generate(), storage=StorageKey.generate())
    lines = [f"{name} = {_toml(value)}" for name, value in settings.model_dump().items()]
    write_atomic(root / "server.toml", ("\n".join(lines) + "\n").encode())
    write_atomic(root / "storage.key", home.storage.to_sealed_bytes(passphrase))
    write_atomic(root / "coordinator.pub", home.key.public_key.text.encode() + b"\n", mode=_PUBLIC)
    write_atomic(root / "coordinator.pem", home.key.to_pem(passphrase))
    return home


def read_public_key(root: Path) -> VerifyKey:
    """The coordinator's public key, for processes that are not given the passphrase.

    Raises:
        ConfigurationError: If coordinator.pub is missing or malformed.
    """
    try:
        return VerifyKey.parse((root / "coordinator.pub").read_text(encoding="ascii").removesuffix("\n"))
    except (OSError, ValueError) as error:
        hint = "make a coordinator with: fedward server init"
        raise ConfigurationError(f"{root}: coordinator.pub cannot be read", hint=hint) from error


def open_server(root: Path, *, passphrase: bytes) -> ServerHome:
    """Open a coordinator directory.

    Raises:
        ConfigurationError: If there is none, or server.toml is malformed. TrustError: If the passphrase is wrong.
    """
    try:
        pem, sealed = (root / "coordinator.pem").read_bytes(), (root / "storage.key").read_bytes()
    except OSError as error:
        hint = "make one with: fedward server init"
        raise ConfigurationError(
            f"{root}: no coordinator lives here, or its files cannot be read", hint=hint
        ) from error
    settings = read_settings(root / "server.toml", ServerSettings)
    try:
        key, storage = SigningKey.from_pem(pem, passphrase), StorageKey.from_sealed_bytes(sealed, passphrase)
    except TrustError as error:
        raise TrustError(
            f"{root}: the coordinator's keys do not open with this passphrase",
            hint="FEDWARD_PASSPHRASE_FILE or FEDWARD_PASSPHRASE is that of another directory, or mistyped",
        ) from error
    return ServerHome(root=root, settings=settings, key=key, storage=storage)


def _toml(value: str | float | bool) -> str:
    """A scalar as TOML; JSON writes strings, numbers and booleans in the same way."""
    return canonical_json(value).decode()
