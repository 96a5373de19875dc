"""The API's port against callers that take their time: each is dropped, and nobody else waits for him."""

import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from server.home import ServerHome
from tests.server.coordinators import make_coordinator

TIMEOUT_S = 60.0
SERVE = """
import sys
from pathlib import Path
from server.api_serve import serve_api
from server.limits import Limits
limits = Limits(handshake_s=5.0, header_s=3.0, connections_per_address=6)
serve_api(Path(sys.argv[1]), announce=lambda url: print(url, flush=True), limits=limits)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> ServerHome:
    return make_coordinator(tmp_path_factory.mktemp("slow") / "home", api="127.0.0.1:0")


@pytest.fixture(scope="module")
def url(home: ServerHome) -> Iterator[str]:
    """The API as a process with short deadlines."""
    command = [sys.executable, "-c", SERVE, str(home.root)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.communicate(timeout=TIMEOUT_S)


@pytest.fixture(scope="module")
def trusted(home: ServerHome) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(home.pki / "ca.crt"))


def connect(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.split(":")[2].split("/")[0])), timeout=TIMEOUT_S)


def ended(connection: socket.socket) -> bool:
    """Whether the other side lets go, sooner than this test loses its patience."""
    try:
        return connection.recv(1) == b""
    except (ConnectionResetError, ssl.SSLEOFError):
        return True


def test_who_begins_a_header_and_never_ends_it_is_dropped(url: str, trusted: ssl.SSLContext) -> None:
    with trusted.wrap_socket(connect(url), server_hostname="localhost") as slow:
        slow.sendall(b"GET /api/v1/token HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        assert ended(slow)


def test_who_says_nothing_at_all_is_dropped_before_and_after_tls(url: str, trusted: ssl.SSLContext) -> None:
    with connect(url) as plain:
        assert ended(plain)
    with trusted.wrap_socket(connect(url), server_hostname="localhost") as silent:
        assert ended(silent)


def test_one_address_cannot_take_every_connection(url: str, trusted: ssl.SSLContext) -> None:
    held = [connect(url) for _ in range(6)]
    try:
        with httpx.Client(verify=trusted, timeout=TIMEOUT_S, trust_env=False) as client:
            answer = client.get(f"{url}/token")
    finally:
        for each in held:
            each.close()
    assert (answer.status_code, answer.json()["fact"]) == (503, "too many connections")
    assert answer.headers["connection"] == "close"


def test_who_asks_at_once_is_answered(url: str, trusted: ssl.SSLContext) -> None:
    with httpx.Client(verify=trusted, timeout=TIMEOUT_S, trust_env=False) as client:
        assert [client.get(f"{url}/token").status_code for _ in range(3)] == [401, 401, 401]
