import gzip
import os
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.message.arraychunk import ArrayChunk
from flwr.app.message.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from hypothesis import given
from hypothesis import strategies as st

from client.agent_channel import AgentChannel
from client.courier import Courier, fetch_body, read_node_key, tls_context
from client.fleet_trouble import explain
from client.flower_private import (
    LARGEST_RESPONSE_BYTES,
    Fleet,
    Incoming,
    MessageRefused,
    incoming,
    read_layout,
    read_record,
)
from client.node_files import CourierSettings
from client.supernode import supernode_arguments, supernode_environment
from common.errors import ConfigurationError
from common.flower import SHORT_BODY_BYTES, pack
from simulations.flower_private import task_identity
from tests.deployment.superlink_harness import make_certificates

LIMIT = 64 << 20
PIECE = 5 << 20


class Store:
    """The parts of one message as a SuperLink holds them, and which were asked for."""

    def __init__(self, content: RecordDict) -> None:
        with task_identity():
            message = Message(content, dst_node_id=2, message_type="query", ttl=60)
        self.parts = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
        self.tree = get_object_tree(message)
        self.head = message_to_proto(remove_content_from_message(message))
        self.asked: list[str] = []

    def source(self) -> Incoming:
        return incoming(self.head, self.tree)

    def pull(self, names: Sequence[str]) -> list[bytes]:
        self.asked += names
        return [self.parts[name] for name in names]

    def body(self, *, limit_bytes: int = LIMIT) -> bytes:
        return fetch_body(self.source(), self.pull, limit_bytes=limit_bytes)


def declared(size_bytes: int, *, times: int, piece: bytes = bytes(PIECE)) -> RecordDict:
    """A message that declares a size and repeats one piece."""
    array = Array("uint8", (size_bytes,), "fedward.raw", piece)
    chunk = ArrayChunk(memoryview(piece))
    array.__dict__["_chunks"] = [(chunk.object_id, chunk)] * times
    record = ArrayRecord()
    record["body"] = array
    return RecordDict({"fedward": record})


# Bodies.


@pytest.mark.parametrize("body", [b"x", os.urandom(PIECE), os.urandom(4 * PIECE + 7), bytes(3 * PIECE)])
def test_a_body_is_put_together_from_its_pieces(body: bytes) -> None:
    assert Store(pack(body)).body() == body


@pytest.mark.parametrize("size_bytes", [100, 2 * PIECE])
def test_every_part_has_been_seen_before_the_superlink_may_drop_the_message(size_bytes: int) -> None:
    store = Store(pack(os.urandom(size_bytes)))
    store.body()
    assert set(store.asked) == store.parts.keys()


def test_a_message_of_4_gb_is_refused_before_any_piece_is_fetched() -> None:
    store = Store(declared(1 << 32, times=820))
    with pytest.raises(ValueError, match="it has 4,294,967,296 bytes, the limit is 67,108,864"):
        store.body()
    assert not set(store.asked) & store.source().chunk_ids


@pytest.mark.parametrize(("size_bytes", "times"), [(1000, 1), (PIECE, 820), (3 * PIECE, 2), (0, 1)])
def test_pieces_that_do_not_make_up_the_declared_size_are_refused(size_bytes: int, times: int) -> None:
    with pytest.raises(ValueError, match="do not make up"):
        Store(declared(size_bytes, times=times)).body()


def test_empty_pieces_without_end_are_refused() -> None:
    with pytest.raises(ValueError, match="do not make up"):
        Store(declared(1000, times=100_000, piece=b"")).body()


def test_the_limit_itself_is_allowed() -> None:
    assert len(Store(pack(bytes(1000))).body(limit_bytes=1000)) == 1000


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"a": ArrayRecord(), "b": ConfigRecord({"x": 1})}),
    ],
)
def test_a_message_of_another_shape_is_refused_by_its_outline(content: RecordDict) -> None:
    with pytest.raises(MessageRefused):
        Store(content).source()


@pytest.mark.parametrize(
    "content",
    [
        RecordDict({"fedward": ConfigRecord()}),
        RecordDict({"fedward": ConfigRecord({"other": b"x"})}),
        RecordDict({"fedward": ConfigRecord({"body": "x"})}),
        RecordDict({"fedward": ConfigRecord({"body": bytes(SHORT_BODY_BYTES + 1)})}),
        RecordDict({"fedward": ArrayRecord()}),
        RecordDict({"fedward": MetricRecord({"body": 1})}),
    ],
)
def test_a_record_without_a_short_body_is_refused(content: RecordDict) -> None:
    with pytest.raises(ValueError):
        Store(content).body()


def test_a_short_body_in_an_array_is_read_as_before() -> None:
    array = Array("uint8", (3,), "fedward.raw", b"abc")
    assert Store(RecordDict({"fedward": ArrayRecord({"body": array})})).body() == b"abc"


@given(st.binary(max_size=200))
def test_noise_is_no_record(noise: bytes) -> None:
    for content in (noise, b"ConfigRecord  %d\0" % len(noise) + noise):
        with suppress(ValueError):
            assert "body" not in read_record(content)


@given(st.binary(max_size=200))
def test_noise_is_no_layout(noise: bytes) -> None:
    with pytest.raises(ValueError):
        read_layout(b"Array  %d\0" % len(noise) + noise)


@pytest.mark.parametrize(
    "document",
    [
        '{"shape": [-1], "arraychunk_ids": []}',
        '{"shape": [1.5], "arraychunk_ids": []}',
        '{"shape": ["9"], "arraychunk_ids": []}',
        '{"shape": [1], "arraychunk_ids": [3]}',
        '{"shape": [1, 2]}',
        "[" * 5000,
    ],
)
def test_a_layout_without_sense_is_refused(document: str) -> None:
    with pytest.raises(ValueError):
        read_layout(b"Array  %d\0" % len(document) + document.encode())


# Troubles, as a person at the console reads them.


Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def gateway(directory: Path, answer: Answer, *, days: int = 2, host: str = "127.0.0.1") -> Iterator[str]:
    """An HTTPS server on loopback; its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            answer(self)

        def log_message(self, *_: object) -> None:
            return

    make_certificates(directory, days=days)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.crt", directory / "server.key")
    server = ThreadingHTTPServer((host, 0), Handler)
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # a client that refuses the certificate breaks off
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"{host}:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def status(code: int, *, body: bytes = b"", **headers: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response_only(code)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return answer


@contextmanager
def fleet_to(address: str, certificates: Path) -> Iterator[Fleet]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=certificates)
    fleet = Fleet(address, tls=context, key=ec.generate_private_key(ec.SECP384R1()), pause=lambda seconds: True)
    try:
        yield fleet
    finally:
        fleet.close()


def trouble(address: str, certificates: Path) -> str:
    with fleet_to(address, certificates) as fleet, pytest.raises(httpx.HTTPError) as caught:
        fleet.activate()
    found = explain(caught.value, gateway="gw:443")
    return f"{found.fact}. {found.hint}"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (401, "does not take this node's key"),
        (403, "refuses this node"),
        (412, "connected already"),
        (418, "status 418"),
        (502, "behind it is not"),
        (503, "behind it is not"),
    ],
)
def test_a_refusal_is_said_with_its_hint(tmp_path: Path, code: int, words: str) -> None:
    with gateway(tmp_path, status(code)) as address:
        line = trouble(address, tmp_path / "ca.crt")
    assert line.startswith("gw:443: ") and words in line and str(code) in line


@pytest.mark.parametrize(("ahead_s", "way"), [(-3600, "3600 s ahead of"), (3600, "3600 s behind")])
def test_a_401_to_a_wrong_clock_is_said_to_be_the_clocks(tmp_path: Path, ahead_s: int, way: str) -> None:
    stamp = format_datetime(datetime.now(UTC) + timedelta(seconds=ahead_s), usegmt=True)
    with gateway(tmp_path, status(401, Date=stamp)) as address:
        line = trouble(address, tmp_path / "ca.crt")
    assert "this machine's clock is" in line and way[5:] in line and "timedatectl" in line


def test_a_gateway_of_another_authority_is_not_spoken_to(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    make_certificates(tmp_path / "other")
    calls: list[object] = []
    with gateway(tmp_path, calls.append) as address:
        line = trouble(address, tmp_path / "other" / "ca.crt")
    assert "secure connection failed" in line and "fingerprint by telephone" in line
    assert calls == []


def test_an_expired_certificate_is_said_to_be_that(tmp_path: Path) -> None:
    with gateway(tmp_path, status(200), days=0) as address:
        line = trouble(address, tmp_path / "ca.crt")
    assert "expired" in line and "renew" in line


def test_a_name_that_is_not_in_the_certificate_is_said_to_be_that(tmp_path: Path) -> None:
    with gateway(tmp_path, status(200), host="127.0.0.2") as address:
        assert "not in its certificate" in trouble(address, tmp_path / "ca.crt")


def test_nobody_at_the_address_is_said_to_be_that(tmp_path: Path) -> None:
    with gateway(tmp_path, status(200)) as address:
        pass
    assert "nobody listens there" in trouble(address, tmp_path / "ca.crt")


def test_a_name_that_nobody_knows_is_said_to_be_that(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    assert "name cannot be found" in trouble("no-such-gateway.invalid:443", tmp_path / "ca.crt")


# What a gateway may not do to a courier.


def test_a_response_that_is_too_long_is_not_kept(tmp_path: Path) -> None:
    with gateway(tmp_path, status(200, body=bytes(LARGEST_RESPONSE_BYTES + 1))) as address:
        assert "longer than 8,388,608 bytes" in trouble(address, tmp_path / "ca.crt")


def test_a_compressed_response_is_not_unpacked(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(64 << 20))
    with gateway(tmp_path, status(200, body=bomb, Content_Encoding="gzip")) as address:
        assert "compressed" in trouble(address, tmp_path / "ca.crt")


def test_a_redirection_is_not_followed(tmp_path: Path) -> None:
    calls: list[str] = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        calls.append(request.path)
        status(307, Location="/elsewhere")(request)

    with gateway(tmp_path, answer) as address:
        assert "status 307" in trouble(address, tmp_path / "ca.crt")
    assert calls == ["/v1/fleet/activate-node"]


def test_a_courier_says_one_line_a_state_and_goes_on_until_told_to_stop(tmp_path: Path) -> None:
    codes = iter([503, 503, 401, 403])
    lines: list[str] = []
    stopping = threading.Event()

    def answer(request: BaseHTTPRequestHandler) -> None:
        code = next(codes, None)
        if code is None:
            stopping.set()
        status(code or 403)(request)

    agent = AgentChannel(tmp_path / "agent.sock")
    with gateway(tmp_path, answer) as address, fleet_to(address, tmp_path / "ca.crt") as fleet, agent:
        Courier(fleet, agent, gateway="gw", poll_s=0.01, stopping=stopping, say=lines.append).run()
    assert [line.split("(")[1][:3] for line in lines] == ["503", "401", "403"]


# Files.


def test_a_client_certificate_is_shown_where_courier_toml_names_one(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    settings = CourierSettings(gateway="g:1", agent="a", client_certificate="server.crt", client_key="server.key")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    server.load_verify_locations(tmp_path / "ca.crt")
    server.verify_mode = ssl.CERT_REQUIRED
    ends = [ssl.MemoryBIO() for _ in range(4)]
    here = tls_context(tmp_path, settings).wrap_bio(ends[0], ends[1], server_hostname="localhost")
    there = server.wrap_bio(ends[2], ends[3], server_side=True)
    for _ in range(4):
        for side, out, inward in ((here, ends[1], ends[2]), (there, ends[3], ends[0])):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
            inward.write(out.read())
    assert there.getpeercert()["subject"]


@pytest.mark.parametrize("missing", ["ca.crt", "server.key"])
def test_a_certificate_that_is_not_there_is_named(tmp_path: Path, missing: str) -> None:
    make_certificates(tmp_path)
    (tmp_path / missing).unlink()
    settings = CourierSettings(gateway="g:1", agent="a", client_certificate="server.crt", client_key="server.key")
    with pytest.raises(ConfigurationError, match=r"courier\.toml: a certificate that it names cannot be read"):
        tls_context(tmp_path, settings)


def test_a_node_key_of_ssh_keygen_is_read(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-C", "", "-f", path], check=True)
    assert isinstance(read_node_key(path).curve, ec.SECP384R1)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), None])
def test_another_key_or_none_is_refused(tmp_path: Path, curve: ec.EllipticCurve | None) -> None:
    path = tmp_path / "node.key"
    if curve is not None:
        key = ec.generate_private_key(curve)
        openssh = serialization.PrivateFormat.OpenSSH
        path.write_bytes(key.private_bytes(serialization.Encoding.PEM, openssh, serialization.NoEncryption()))
    with pytest.raises(ConfigurationError, match=r"node\.key: (no OpenSSH private key|a node key is ECDSA)"):
        read_node_key(path)


# Flower's own SuperNode in the courier's place.


def test_a_supernode_is_told_the_socket_and_nothing_of_the_site(tmp_path: Path) -> None:
    settings = CourierSettings(gateway="gw:443", agent="/run/fedward/agent.sock", courier="supernode")
    arguments = supernode_arguments(tmp_path, settings)
    assert arguments[:2] == ["--superlink", "gw:443"]
    assert 'agent="/run/fedward/agent.sock"' in arguments
    assert not {"--insecure", "--allow-runtime-dependency-installation"} & set(arguments)


def test_a_supernode_gets_no_passphrase_and_calls_nobody_else(tmp_path: Path) -> None:
    given = {"FEDWARD_PASSPHRASE": "secret", "FEDWARD_HOME": "/site", "FLWR_HOME": "/other", "LANG": "C"}
    environment = supernode_environment(tmp_path, given)
    assert "secret" not in environment.values() and "FEDWARD_HOME" not in environment
    assert environment["FLWR_HOME"] == str(tmp_path / "flower")
    assert (environment["FLWR_TELEMETRY_ENABLED"], environment["LANG"]) == ("0", "C")
