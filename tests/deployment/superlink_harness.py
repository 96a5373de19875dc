"""A real SuperLink with TLS and node keys, and one run whose ServerApp exchanges bytes on order.

The order is a file, so that a test decides between two exchanges what falls and what comes back.
"""

import http.client
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from server.superlink import free_port
from tests.deployment.waiting import wait_until

BIN = Path(sys.executable).parent
RUN_MAIN = ("-c", "from common.cli import main; main()")
RUN_FEDWARD = (sys.executable, *RUN_MAIN)

_APP = Path(__file__).with_name("exchange_app.py")
_BUNDLE = """
[project]
name = "exchange"
version = "0.1.0"
description = "Exchanges bytes on order."
license = "Apache-2.0"
dependencies = ["flwr"]
[tool.flwr.app]
publisher = "fedward"
fab-include = ["pyproject.toml", "*.py"]
[tool.flwr.app.components]
serverapp = "exchange_app:app"
clientapp = "{clientapp}"
[tool.flwr.app.config]
orders = ""
"""


def environment(**changes: str) -> dict[str, str]:
    """This process's, without anything of Flower's or Fedward's, quiet, with Fedward's modules and programs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FLWR_", "FEDWARD_"))}
    return {
        **kept,
        "PATH": f"{BIN}:{kept.get('PATH', os.defpath)}",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        **changes,
    }


@dataclass(kw_only=True)
class Process:
    """A process of a test, with its output in a file."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """Its id."""
        return self.process.pid

    def text(self) -> str:
        """All that it wrote so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def says(self, words: str, *, times: int = 1) -> str:
        """Wait until its log holds the words so many times; the log. Fails if it ended without saying them."""

        def said() -> bool:
            if self.text().count(words) >= times:
                return True
            if self.process.poll() is not None and self.text().count(words) < times:
                raise AssertionError(f"it ended with {self.process.returncode} and never said {words!r}: {self.text()}")
            return False

        wait_until(said, what=f"{self.log.name} to say {words!r}")
        return self.text()

    def kill(self) -> None:
        """SIGKILL, and collect it."""
        self.process.kill()
        self.process.wait()

    def end(self, *, timeout_s: float = 30.0) -> int:
        """SIGTERM, and its exit code; SIGKILL to its whole group if it does not end."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)  # its group outlives it where it left children
            self.process.wait()

    def memory_mb(self, name: str = "VmRSS") -> float:
        """Its resident memory, or with `VmHWM` the most that it ever was, in MB of 1e6 bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024 / 1e6


def start(command: list[str], log: Path, env: Mapping[str, str], **options: Any) -> Process:
    """Start a process in a group of its own."""
    with log.open("ab") as stream:
        process = subprocess.Popen(
            command,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **options,
        )
    return Process(process=process, log=log)


@dataclass(kw_only=True)
class Run:
    """A run whose ServerApp takes orders; see exchange_app.py."""

    orders: Path
    superexec: Process
    given: int = 0

    def order(self, **order: Any) -> int:
        """Give an order; its number."""
        self.given += 1
        path = self.orders / f"order-{self.given}.json"
        path.with_suffix(".new").write_text(json.dumps(order))
        path.with_suffix(".new").rename(path)
        return self.given

    def result(self, number: int, *, timeout_s: float = 180.0) -> dict[str, Any]:
        """What became of an order."""
        path = self.orders / f"result-{number}.json"

        def there() -> bool:
            if self.superexec.process.poll() is not None:
                raise AssertionError(f"the superexec ended: {self.superexec.text()[-2000:]}")
            return path.exists()

        wait_until(there, what=f"the result of order {number}", timeout_s=timeout_s)
        return dict(json.loads(path.read_text()))

    def exchange(self, **order: Any) -> dict[str, Any]:
        """Order and wait."""
        return self.result(self.order(**order))

    def replies(self) -> list[bytes]:
        """The bytes that came back for the last order, by node."""
        return [path.read_bytes() for path in sorted(self.orders.glob(f"reply-{self.given}-*"))]


@dataclass(kw_only=True)
class SuperLinkHarness:
    """See the module. Made by `superlink_harness`."""

    root: Path
    port: int
    superlink: Process = field(init=False)
    superexec: Process = field(init=False)
    runs: int = 0

    @property
    def address(self) -> str:
        """Where couriers call."""
        return f"127.0.0.1:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        """Of Flower's commands."""
        return environment(FLWR_HOME=str(self.root / "flwr"))

    def start_superlink(self) -> None:
        """Start it on its port, with the state of before if there was one, and wait until it is healthy."""
        command = [str(BIN / "flower-superlink"), "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--ssl-ca-certfile", "ca.crt", "--ssl-certfile", "server.crt", "--ssl-keyfile", "server.key"]
        command += ["--enable-supernode-auth", "--database", "state.db", "--disable-runtime-dependency-installation"]
        command += ["--isolation", "process", "--superexec-auth-secret-file", "superexec.secret"]
        self.superlink = start(command, self.root / "superlink.log", self.env, cwd=self.root)
        wait_until(self._healthy, what="the SuperLink to be healthy")

    def start_superexec(self) -> None:
        """Start what runs ServerApps."""
        command = [str(BIN / "flower-superexec"), "--runtime-api-address", self.address, "--root-certificates"]
        command += ["ca.crt", "--superexec-auth-secret-file", "superexec.secret"]
        self.superexec = start(command, self.root / "superexec.log", self.env, cwd=self.root)

    def flwr(self, *arguments: str) -> str:
        """One of Flower's own commands; its output."""
        done = subprocess.run(
            [str(BIN / "flwr"), *arguments], cwd=self.root, env=self.env, capture_output=True, text=True, timeout=120
        )
        if done.returncode:
            raise AssertionError(f"flwr {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def make_courier(self, name: str, agent: Path, **settings: str) -> Path:
        """A courier's directory whose node key is registered."""
        directory = self.root / name
        directory.mkdir(mode=0o700)
        key = ec.generate_private_key(ec.SECP384R1())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
        (directory / "node.key").write_bytes(private)
        (directory / "node.key").chmod(0o600)
        public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        (directory / "node.pub").write_bytes(public + b"\n")
        shutil.copy(self.root / "ca.crt", directory / "ca.crt")
        document = {"gateway": self.address, "agent": str(agent), **settings}
        lines = ["version = 1", *(f"{key} = {json.dumps(value)}" for key, value in document.items())]
        (directory / "courier.toml").write_text("\n".join(lines) + "\n")
        self.flwr("supernode", "register", str(directory / "node.pub"), "prod")
        return directory

    def start_courier(self, directory: Path, *, python: str = sys.executable, **options: Any) -> Process:
        """`fedward site courier` on its directory; `options` are Popen's, such as the user."""
        command = [python, *RUN_MAIN, "site", "courier", "--courier", str(directory)]
        options.setdefault("env", environment())
        return start(command, directory.with_name(f"{directory.name}.log"), **options)

    def submit(self, *, clientapp: str = "client.app:app", code: Sequence[Path] = ()) -> "Run":
        """Start a run that takes orders, shipping `code` beside its ServerApp."""
        self.runs += 1
        bundle, orders = self.root / f"bundle-{self.runs}", self.root / f"orders-{self.runs}"
        bundle.mkdir()
        orders.mkdir()
        (bundle / "pyproject.toml").write_text(_BUNDLE.format(clientapp=clientapp))
        for path in (_APP, *code):
            shutil.copy(path, bundle / path.name)
        self.flwr("run", str(bundle), "prod", "--run-config", f"orders={json.dumps(str(orders))}")
        return Run(orders=orders, superexec=self.superexec)

    def node_status(self) -> list[str]:
        """What Flower says of each registered node."""
        document = json.loads(self.flwr("supernode", "list", "prod", "--format", "json"))
        return sorted(str(node["status"]) for node in document["nodes"])

    def _healthy(self) -> bool:
        if self.superlink.process.poll() is not None:
            raise AssertionError(f"the SuperLink ended: {self.superlink.text()[-2000:]}")
        context = ssl.create_default_context(cafile=str(self.root / "ca.crt"))
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=2, context=context)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.HTTPStatus.OK
        except OSError:
            return False
        finally:
            connection.close()


@contextmanager
def superlink_harness(root: Path) -> Iterator[SuperLinkHarness]:
    """A SuperLink and a superexec below `root`; the run has to be submitted. None of their processes stays."""
    root.mkdir(parents=True, exist_ok=True)
    make_certificates(root)
    (root / "superexec.secret").write_bytes(os.urandom(32).hex().encode())
    (root / "superexec.secret").chmod(0o600)
    harness = SuperLinkHarness(root=root, port=free_port())
    home = root / "flwr"
    home.mkdir()
    connection = f'address = "{harness.address}"\nroot-certificates = "{root / "ca.crt"}"\n'
    (home / "config.toml").write_text(f'[superlink]\ndefault = "prod"\n[superlink.prod]\n{connection}')
    harness.start_superlink()
    try:
        harness.start_superexec()
        try:
            yield harness
        finally:
            for orders in root.glob("orders-*"):
                (orders / "stop").touch()
            harness.superexec.end()
    finally:
        harness.superlink.end()


def make_certificates(directory: Path, *, prefix: str = "", days: int = 2) -> None:
    """An authority and a certificate for loopback: ca.crt, server.crt, server.key."""
    authority_key, authority = _certificate("Test authority", None, days=days)
    key, certificate = _certificate("localhost", (authority_key, authority), days=days)
    pem = serialization.Encoding.PEM
    (directory / f"{prefix}ca.crt").write_bytes(authority.public_bytes(pem))
    (directory / f"{prefix}server.crt").write_bytes(certificate.public_bytes(pem))
    (directory / f"{prefix}server.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def _certificate(
    name: str, issuer: tuple[ec.EllipticCurvePrivateKey, x509.Certificate] | None, *, days: int
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    issuer_key, issuer_name = (key, subject) if issuer is None else (issuer[0], issuer[1].subject)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if issuer is None:
        usage = x509.KeyUsage(
            digital_signature=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        builder = builder.add_extension(usage, critical=True)
    else:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return key, builder.sign(issuer_key, hashes.SHA256())
