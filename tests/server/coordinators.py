"""Coordinator directories and enrolments for tests, made by the program itself."""

import dataclasses
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.crypto.keys import SigningKey
from common.enrolment import Enrolment, write_enrolment
from server.actlog import ActLog
from server.acts import Actor
from server.home import ServerHome, ServerSettings
from server.setup import set_up
from server.tokens import Role, create_token

PASSPHRASE = b"a passphrase for tests only"
ACTOR = Actor(name="ada", role="coordinator")
ADDRESS = "fed.example.org:8443"
NOW = datetime.now(UTC).replace(microsecond=0)

CERTIFICATE = """-----BEGIN CERTIFICATE-----
MIICBDCCAYmgAwIBAgIUadsecMH8ue+wKUncTugj2hCbVUwwCgYIKoZIzj0EAwMw
LzEtMCsGA1UEAwwkRmVkd2FyZCBhdXRob3JpdHkgb2YgZmVkLmV4YW1wbGUub3Jn
MB4XDTI2MTEyMzIxMTcxMVoXDTM2MTEyMDIyMTcxMVowLzEtMCsGA1UEAwwkRmVk
d2FyZCBhdXRob3JpdHkgb2YgZmVkLmV4YW1wbGUub3JnMHYwEAYHKoZIzj0CAQYF
K4EEACIDYgAEIRVqA2rtdBD4L5eUPvpfyirLw37+iWlTI+WJFXtYWRz9/Sh1IWCS
Nd92Vmb4a2P51eXOESd/XK8ygapScjnz2MEu2yuns75PTebFolbw/cIjxZKPEaB9
ih1Yn2cNNfr/o2YwZDAdBgNVHQ4EFgQUEHn8QJ7CZItyKcjkMBIKIRTEQ7wwHwYD
VR0jBBgwFoAUEHn8QJ7CZItyKcjkMBIKIRTEQ7wwEgYDVR0TAQH/BAgwBgEB/wIB
ADAOBgNVHQ8BAf8EBAMCAQYwCgYIKoZIzj0EAwMDaQAwZgIxALCpVyEopUp9gQ+o
K25tr2R0WpHKdZ7+3ZVqcDWvsRnnQL0Ee+k/1wngoR4ci85zCAIxAJyBcK313FIb
VfkSS/cGAfAs4s+pYftyAkvQ3kQ5ZssWph2I9YQMNPfZCZsZaoEAXg==
-----END CERTIFICATE-----
"""


def make_coordinator(root: Path, *, address: str = ADDRESS, api: str = "") -> ServerHome:
    """A fresh coordinator directory."""
    settings = ServerSettings(address=address, listen="127.0.0.1:0", api=api)
    return set_up(root, settings=settings, passphrase=PASSPHRASE, actor=ACTOR)


def copy_coordinator(made: ServerHome, root: Path) -> ServerHome:
    """The same coordinator in another place."""
    shutil.copytree(made.root, root)
    return dataclasses.replace(made, root=root)


def make_node_key() -> str:
    """A node's public key as OpenSSH text."""
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


class Applicant:
    """A site that wants to be enrolled."""

    def __init__(self, name: str, *, key: SigningKey | None = None, node_key: str = "", patients: int = 100) -> None:
        self.key = key or SigningKey.generate()
        self.enrolment = Enrolment(
            name=name,
            identity_key=self.key.public_key.text,
            node_key=node_key or make_node_key(),
            nominal_patients=patients,
        )

    def write(self, directory: Path, *, name: str = "") -> Path:
        """Write the enrolment to `<directory>/<name>.json`."""
        path = directory / f"{name or self.enrolment.name}.json"
        write_enrolment(path, self.enrolment, self.key)
        return path


def make_token(home: ServerHome, role: Role, name: str, *, site: str = "", days: int = 10, age_days: float = 0) -> str:
    """A token's text; one that was made `age_days` ago."""
    made = NOW - timedelta(days=age_days)
    log = ActLog.open(home.root)
    return create_token(home, role=role, name=name, site=site, days=days, actor=ACTOR, log=log, now=made)[1]
