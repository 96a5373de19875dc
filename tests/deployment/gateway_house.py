"""A coordinator's directory, Flower's SuperLink and doors before it, as real processes on loopback."""

import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.control_pb2 import RegisterNodeRequest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from common.crypto.keys import SigningKey
from common.enrolment import Enrolment
from server.actlog import ActLog
from server.acts import Actor
from server.home import ServerHome, ServerSettings
from server.members import enrol, revoke
from server.setup import set_up
from server.superlink import free_port
from tests.deployment.waiting import wait_until

PASSPHRASE = b"correct horse battery staple"
ACTOR = Actor(name="tester", role="coordinator")
FEDWARD = str(Path(sys.executable).parent / "fedward")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A site's courier as the gateway knows it: a name and a key."""

    name: str
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def make(cls, name: str) -> "Node":
        """A node with a fresh key."""
        return cls(name=name, key=ec.generate_private_key(ec.SECP384R1()))

    @property
    def openssh(self) -> str:
        """The public key as an enrolment carries it."""
        public = self.key.public_key()
        return public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()

    @property
    def pem(self) -> bytes:
        """The public key as Flower carries it."""
        return public_key_to_bytes(self.key.public_key())

    def client(self, address: str, authority: Path) -> FleetHttpClient:
        """Flower's own client with this node's key."""
        interceptors = [
            RuntimeVersionHttpInterceptor("SuperNode"),
            NodeAuthHttpInterceptor(self.key, self.key.public_key()),
        ]
        return FleetHttpClient.from_server_address(address, False, authority.read_bytes(), interceptors)

    def activate(self, address: str, authority: Path) -> int:
        """Activate and deactivate through `address`; returns the status that refused it, else 200."""
        with self.client(address, authority) as client:
            try:
                answer = client.ActivateNode(ActivateNodeRequest(public_key=self.pem, heartbeat_interval=30))
                client.DeactivateNode(DeactivateNodeRequest(node_id=answer.node_id))
            except httpx.HTTPStatusError as error:
                return error.response.status_code
        return 200 if answer.node_id else 0

    def headers(self, *, moment: datetime | None = None) -> dict[str, str]:
        """What Flower's client would send at `moment`, for raw requests."""
        stamp = (moment or datetime.now(UTC)).isoformat()
        return {
            "flwr-public-key": b64encode(self.pem).decode(),
            "flwr-timestamp": stamp,
            "flwr-signature": b64encode(sign_message(self.key, stamp.encode())).decode(),
        }


@dataclass(slots=True, kw_only=True)
class Process:
    """A child with a log."""

    child: subprocess.Popen[bytes]
    log: Path

    def text(self) -> str:
        """What it said so far."""
        return self.log.read_text(errors="replace")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Signal it, wait, and return how it ended."""
        if self.child.poll() is None:
            self.child.send_signal(number)
        return self.child.wait(timeout=40)


@dataclass(slots=True, kw_only=True)
class House:
    """The coordinator's directory with three sites: east and west are enrolled, and SuperLink knows all three."""

    home: ServerHome
    superlink: str
    nodes: dict[str, Node]
    children: dict[str, Process] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """The directory."""
        return self.home.root

    @property
    def authority(self) -> Path:
        """What clients check certificates against."""
        return self.home.pki / "ca.crt"

    def enrol(self, node: Node) -> None:
        """Make a node's site a member."""
        enrolment = Enrolment(
            name=node.name,
            identity_key=SigningKey.generate().public_key.text,
            node_key=node.openssh,
            nominal_patients=100,
        )
        enrol(self.home, [enrolment], actor=ACTOR, log=ActLog.open(self.root), now=datetime.now(UTC))

    def revoke(self, name: str) -> None:
        """Take a site out; SuperLink is not told."""
        revoke(self.home, name, actor=ACTOR, log=ActLog.open(self.root), now=datetime.now(UTC))

    def start(self, name: str, command: list[str], environment: Mapping[str, str] | None = None) -> Process:
        """Start a child that ends with the house."""
        log = self.root / f"{name}.log"
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("FLWR_", "FEDWARD_"))}
        quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_HOME": str(self.root / "flwr")}
        with log.open("wb") as stream:
            child = subprocess.Popen(
                command,
                env={**inherited, **quiet, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.children[name] = Process(child=child, log=log)
        return self.children[name]

    def start_superlink(self) -> None:
        """Start SuperLink at its address, as a coordinator does."""
        port = self.superlink.rpartition(":")[2]
        pki = self.home.pki
        program = Path(sys.executable).parent / "flower-superlink"
        command = [str(program), "--host", "127.0.0.1", "--port", port, "--enable-supernode-auth"]
        command += ["--ssl-ca-certfile", str(pki / "ca.crt"), "--ssl-certfile", str(pki / "server.crt")]
        command += ["--ssl-keyfile", str(pki / "server.key"), "--database", str(self.root / "state.db")]
        command += ["--disable-runtime-dependency-installation", "--isolation", "process"]
        secret = self.root / "test-superexec.secret"
        secret.write_bytes(secrets.token_bytes(32))
        process = self.start("superlink", [*command, "--superexec-auth-secret-file", str(secret)])

        context = ssl.create_default_context(cafile=str(self.authority))

        def healthy() -> bool:
            try:
                return httpx.get(f"https://{self.superlink}/health", verify=context, timeout=5).is_success
            except httpx.HTTPError:
                return False

        wait_until(lambda: healthy() or process.child.poll() is not None, what="SuperLink", says=process.text)

    def kill_superlink(self) -> None:
        """SIGKILL: its own end takes half a minute."""
        self.children.pop("superlink").end(signal.SIGKILL)

    def register(self, node: Node) -> None:
        """Make SuperLink know a node key."""
        with ControlHttpClient.from_server_address(self.superlink, False, self.authority.read_bytes(), []) as client:
            client.RegisterNode(RegisterNodeRequest(public_key=node.pem))

    def copy_of(self, name: str, *, pki: Path | None = None, **changes: str | float | bool) -> Path:
        """A directory beside with what a gateway reads, other settings and perhaps other certificates."""
        root = self.root / name
        root.mkdir()
        for file in ("coordinator.pub", "members.json"):
            shutil.copy2(self.root / file, root / file)
        shutil.copytree(pki or self.home.pki, root / "pki")
        settings = {**self.home.settings.model_dump(), **changes}
        lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
        (root / "server.toml").write_text("\n".join(lines))
        return root

    def start_gateway(self, name: str = "gateway", *, root: Path | None = None) -> str:
        """Start a gateway on a port that the kernel picks; returns `localhost:port`."""
        process = self.start(name, gateway_command(root or self.root, self.superlink))
        wait_until(
            lambda: "gateway ready on" in process.text() or process.child.poll() is not None,
            what=name,
            says=process.text,
        )
        if process.child.poll() is not None:
            raise RuntimeError(process.text())
        line = next(line for line in process.text().splitlines() if "gateway ready on" in line)
        return f"localhost:{line.rpartition(':')[2]}"

    def log_lines(self, root: Path | None = None) -> list[dict[str, Any]]:
        """The gateway's log so far."""
        return read_lines((root or self.root) / "gateway.jsonl")

    def wait_for_line(self, root: Path | None = None, **fields: object) -> dict[str, Any]:
        """The newest line of the gateway's log with these fields; an answer may be there before its line."""
        return wait_for_line((root or self.root) / "gateway.jsonl", **fields)


def gateway_command(root: Path, superlink: str) -> list[str]:
    """How `fedward server up` starts the gateway."""
    return [FEDWARD, "server", "gateway", "--home", str(root), "--superlink", superlink]


@contextmanager
def house(*, superlink: bool = True) -> Iterator[House]:
    """A house with a running SuperLink; everything ends and goes with it."""
    root = Path(tempfile.mkdtemp(prefix="fwg-", dir="/tmp"))
    built: House | None = None
    try:
        settings = ServerSettings(address="localhost:8443", listen="127.0.0.1:0")
        home = set_up(root / "home", settings=settings, passphrase=PASSPHRASE, actor=ACTOR)
        nodes = {name: Node.make(name) for name in ("east", "west", "stranger")}
        built = House(home=home, superlink=f"127.0.0.1:{free_port()}", nodes=nodes)
        for name in ("east", "west"):
            built.enrol(nodes[name])
        if superlink:
            built.start_superlink()
            for node in nodes.values():
                built.register(node)
        yield built
    finally:
        if built and "superlink" in built.children:
            built.kill_superlink()
        for process in reversed(list(built.children.values()) if built else []):
            try:
                process.end()
            except subprocess.TimeoutExpired:
                process.end(signal.SIGKILL)
        shutil.rmtree(root, ignore_errors=True)


def raw_request(address: str, authority: Path, request: bytes, *, timeout_s: float = 30) -> tuple[int, bytes]:
    """Send bytes over TLS as they are; returns status and body of the first answer, (0, b"") if there is none."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cafile=str(authority))
    with (
        socket.create_connection((host, int(port)), timeout=timeout_s) as plain,
        context.wrap_socket(plain, server_hostname=host) as secured,
    ):
        try:
            secured.sendall(request)
            answer = http.client.HTTPResponse(secured, method=request.split(b" ", 1)[0].decode())
            answer.begin()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return 0, b""


def read_lines(log: Path) -> list[dict[str, Any]]:
    """A log of JSON lines."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def wait_for_line(log: Path, *, asked: str = "", **fields: object) -> dict[str, Any]:
    """The newest line with these fields, once there is one.

    An answer may be there before its line: what is to be the line of one request has to name something that no
    earlier request has.

    Args:
        log: JSON lines of the gateway or of nginx.
        asked: Method and target, which either door writes into another field.
    """

    def named(line: dict[str, Any]) -> bool:
        return not asked or any(f"{value} ".startswith(f"{asked} ") for value in line.values())

    def fits() -> list[dict[str, Any]]:
        return [line for line in read_lines(log) if fields.items() <= line.items() and named(line)]

    what = f"a line with {asked} {fields}"
    return wait_until(fits, what=what, timeout_s=20, says=lambda: log.read_text()[-2000:])[-1]
