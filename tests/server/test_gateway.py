"""Whom the gateway lets in, and what of a request reaches SuperLink."""

import asyncio
import json
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from common.errors import ConfigurationError
from server.gateway import gateway_app, server_config
from server.gateway_log import GatewayLog
from server.gateway_tls import Certificates
from server.limits import Limits
from server.listener import Listener
from server.node_access import MembersUnreadable, NodeAccess
from server.pki import server_files
from tests.deployment.gateway_house import House, Node, house, read_lines, wait_for_line

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def built() -> Iterator[House]:
    with house(superlink=False) as made:
        yield made


def signed(node: Node, moment: datetime) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in node.headers(moment=moment).items()]


class TestAccess:
    @pytest.fixture
    def access(self, built: House) -> NodeAccess:
        return NodeAccess(built.root, clock=lambda: NOON)

    def test_a_member_is_known_by_name(self, built: House, access: NodeAccess) -> None:
        caller = access.identify(signed(built.nodes["east"], NOON))
        assert (caller.name, caller.refused, len(caller.key)) == ("east", "", 12)

    def test_a_stranger_is_not(self, built: House, access: NodeAccess) -> None:
        caller = access.identify(signed(built.nodes["stranger"], NOON))
        assert (caller.name, caller.refused) == ("stranger", "not a member")

    @pytest.mark.parametrize("seconds", [-305, 5])
    def test_time_stamps_outside_flowers_tolerance_are_refused(
        self, built: House, access: NodeAccess, seconds: int
    ) -> None:
        moment = NOON + timedelta(seconds=seconds)
        assert access.identify(signed(built.nodes["east"], moment)).refused == "clock"

    @pytest.mark.parametrize("seconds", [-304, 4])
    def test_time_stamps_within_it_pass(self, built: House, access: NodeAccess, seconds: int) -> None:
        moment = NOON + timedelta(seconds=seconds)
        assert access.identify(signed(built.nodes["east"], moment)).refused == ""

    def test_a_time_stamp_that_is_none_is_refused_even_if_signed(self, built: House, access: NodeAccess) -> None:
        from base64 import b64encode

        from flwr.supercore.primitives.asymmetric import sign_message

        east = built.nodes["east"]
        for stamp in (b"soon", b"2026-01-01T12:00:00", b"\xff"):
            headers = dict(signed(east, NOON))
            headers[b"flwr-timestamp"] = stamp
            headers[b"flwr-signature"] = b64encode(sign_message(east.key, stamp))
            assert access.identify(headers.items()).refused == "clock"

    @pytest.mark.parametrize("name", [b"flwr-public-key", b"flwr-timestamp", b"flwr-signature"])
    def test_each_header_must_be_there_once(self, built: House, access: NodeAccess, name: bytes) -> None:
        headers = signed(built.nodes["east"], NOON)
        assert access.identify([pair for pair in headers if pair[0] != name]).refused == "no node key"
        assert access.identify([*headers, *(pair for pair in headers if pair[0] == name)]).refused == "no node key"

    def test_the_list_is_read_again_when_it_changes(self, built: House, access: NodeAccess) -> None:
        node = Node.make("later")
        assert access.identify(signed(node, NOON)).refused == "not a member"
        built.enrol(node)
        assert access.identify(signed(node, NOON)).refused == ""
        built.revoke("later")
        caller = access.identify(signed(node, NOON))
        assert (caller.name, caller.refused) == ("later", "revoked")

    def test_without_a_sound_list_nobody_passes_and_it_recovers(self, built: House) -> None:
        root = built.copy_of("unsound")
        access = NodeAccess(root, clock=lambda: NOON)
        headers, sound = signed(built.nodes["east"], NOON), (root / "members.json").read_bytes()
        assert access.identify(headers).refused == ""
        for content in (b"", b"{}", sound.replace(b"east", b"best")):
            (root / "members.json").write_bytes(content)
            with pytest.raises(MembersUnreadable):
                access.identify(headers)
        (root / "members.json").unlink()
        with pytest.raises(MembersUnreadable):
            access.identify(headers)
        (root / "members.json").write_bytes(sound)
        assert access.identify(headers).refused == ""

    def test_without_the_coordinators_key_it_does_not_begin(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"coordinator\.pub"):
            NodeAccess(tmp_path)


def test_certificate_and_key_that_do_not_fit_are_refused(built: House, tmp_path: Path) -> None:
    pki = built.copy_of("unfit") / "pki"
    (pki / "server.key").write_text("no key")
    with pytest.raises(ConfigurationError, match=r"server\.crt, server\.key cannot be used"):
        Certificates(server_files(pki), client_certificates=False)


class Serving:
    """An ASGI application on a port of loopback, in a thread, until it is left."""

    def __init__(self, config: uvicorn.Config) -> None:
        self._server = uvicorn.Server(config)
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve([self._socket])))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self) -> "Serving":
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            self._thread.join(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(30)


class Recorder:
    """Stands where SuperLink does: keeps what reaches it, and answers as it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        self.pieces = [b"answer"]
        self.fail_after: int | None = None
        self.wait_s = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.seen.append((scope["raw_path"].decode(), headers, body))
        await asyncio.sleep(self.wait_s)
        shown = [(b"content-type", b"application/x-protobuf"), (b"set-cookie", b"a=b"), (b"x-powered-by", b"c")]
        await send({"type": "http.response.start", "status": 200, "headers": shown})
        for number, piece in enumerate(self.pieces):
            if number == self.fail_after:
                raise ConnectionError("cut off, as the test wants it")
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class TestPassing:
    @pytest.fixture
    def recorder(self) -> Recorder:
        return Recorder()

    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(upstream_s=1.0, header_s=1.0, request_s=3.0)

    @pytest.fixture
    def gateway(self, built: House, recorder: Recorder, limits: Limits, tmp_path: Path) -> Iterator[str]:
        files = server_files(built.home.pki)
        upstream = uvicorn.Config(
            recorder,
            ssl_certfile=files.certificate,
            ssl_keyfile=files.key,
            ws="none",
            lifespan="off",
            log_config=None,
        )
        log = GatewayLog(tmp_path / "gateway.jsonl")
        listener = Listener(certificates=Certificates(files, client_certificates=False), limits=limits, log=log)
        with Serving(upstream) as superlink:
            app = gateway_app(
                access=NodeAccess(built.root),
                superlink=superlink.address,
                trust=ssl.create_default_context(cafile=str(files.authority)),
                log=log,
                limits=limits,
                listener=listener,
            )
            with Serving(server_config(app, listener=listener, limits=limits)) as serving:
                yield serving.address
        log.close()

    @pytest.fixture
    def client(self, built: House) -> Iterator[httpx.Client]:
        with httpx.Client(verify=ssl.create_default_context(cafile=str(built.authority)), timeout=30) as opened:
            yield opened

    @staticmethod
    def lines(tmp_path: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (tmp_path / "gateway.jsonl").read_text().splitlines()]

    def test_only_known_headers_and_the_body_reach_superlink(
        self, built: House, gateway: str, recorder: Recorder, client: httpx.Client
    ) -> None:
        node = built.nodes["east"].headers()
        strange = {
            "x-forwarded-for": "10.0.0.1",
            "forwarded": "for=10.0.0.1",
            "te": "trailers",
            "upgrade": "h2c",
            "authorization": "Bearer x",
            "cookie": "a=b",
            "flwr-task-token": "stolen",
            "flwr-superexec-signature": "x",
            "accept-encoding": "gzip",
        }
        flower = {"flwr-package-name": "flwr", "flwr-package-version": "1.41.0", "flwr-component-name": "SuperNode"}
        answer = client.post(
            f"https://{gateway}/v1/fleet/push-object",
            headers={**node, **strange, **flower, "content-type": "application/x-protobuf"},
            content=b"body",
        )
        assert (answer.status_code, answer.content) == (200, b"answer")
        assert set(answer.headers) == {"content-type", "date", "transfer-encoding"}
        ((path, headers, body),) = recorder.seen
        assert (path, body) == ("/v1/fleet/push-object", b"body")
        assert headers["host"] != gateway
        known = {"host", "content-type", "content-length", "accept", "accept-encoding", "connection", "user-agent"}
        assert set(headers) <= known | set(node) | set(flower)
        assert {name: headers[name] for name in (*node, *flower)} == {**node, **flower}
        assert headers["accept-encoding"] == "identity"

    def test_bodies_of_any_size_up_to_the_limit_arrive_whole(
        self, built: House, gateway: str, recorder: Recorder, client: httpx.Client
    ) -> None:
        url, headers = f"https://{gateway}/v1/fleet/push-object", built.nodes["east"].headers()
        recorder.pieces = [os.urandom(1 << 20) for _ in range(6)]
        for size in (0, 1, 65_536, 8 << 20):
            body = os.urandom(size)
            assert client.post(url, headers=headers, content=body).content == b"".join(recorder.pieces)
            assert recorder.seen.pop()[2] == body
        assert client.post(url, headers=headers, content=bytes((8 << 20) + 1)).status_code == 413
        assert recorder.seen == []

    def test_a_silent_superlink_is_503(
        self, built: House, gateway: str, recorder: Recorder, client: httpx.Client, tmp_path: Path
    ) -> None:
        recorder.wait_s = 2.0
        answer = client.post(f"https://{gateway}/v1/fleet/get-run", headers=built.nodes["east"].headers())
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")

    def test_an_answer_that_breaks_off_never_looks_whole(
        self, built: House, gateway: str, recorder: Recorder, client: httpx.Client
    ) -> None:
        recorder.pieces, recorder.fail_after = [b"x" * 1000] * 5, 3
        with pytest.raises(httpx.TransportError):
            client.post(f"https://{gateway}/v1/fleet/pull-object", headers=built.nodes["east"].headers())

    def test_a_client_that_leaves_midway_is_logged_and_leaves_no_request_behind(
        self, built: House, gateway: str, tmp_path: Path, client: httpx.Client
    ) -> None:
        host, _, port = gateway.rpartition(":")
        node = built.nodes["east"].headers()
        head = "".join(f"{name}: {value}\r\n" for name, value in node.items())
        for _ in range(20):  # more than a node may have at once
            with (
                socket.create_connection((host, int(port)), timeout=10) as plain,
                ssl.create_default_context(cafile=str(built.authority)).wrap_socket(
                    plain, server_hostname=host
                ) as secured,
            ):
                begun = f"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\n{head}Content-Length: 1000\r\n\r\nabc"
                secured.sendall(begun.encode())
        for _ in range(200):
            statuses = [line["status"] for line in self.lines(tmp_path)]
            if len(statuses) == 20:
                break
            threading.Event().wait(0.05)
        assert statuses == [499] * 20
        assert client.post(f"https://{gateway}/v1/fleet/get-run", headers=node).status_code == 200

    def test_a_connection_that_asks_nothing_is_closed_and_logged(
        self, built: House, gateway: str, tmp_path: Path
    ) -> None:
        host, _, port = gateway.rpartition(":")
        context = ssl.create_default_context(cafile=str(built.authority))
        with (
            socket.create_connection((host, int(port)), timeout=20) as plain,
            context.wrap_socket(plain, server_hostname=host, suppress_ragged_eofs=True) as secured,
        ):
            secured.sendall(b"POST /v1/fleet/get-run HTTP/1.1\r\nSlow: ")
            try:
                ended = secured.recv(1)
            except ConnectionResetError:
                ended = b""
        assert ended == b""
        assert wait_for_line(tmp_path / "gateway.jsonl", status=0)["reason"] == "no request in time"

    def test_a_request_whose_body_never_ends_is_told_to_come_back(
        self, built: House, gateway: str, tmp_path: Path
    ) -> None:
        host, _, port = gateway.rpartition(":")
        head = "".join(f"{name}: {value}\r\n" for name, value in built.nodes["east"].headers().items())
        context = ssl.create_default_context(cafile=str(built.authority))
        with (
            socket.create_connection((host, int(port)), timeout=20) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            begun = f"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\n{head}Content-Length: 1000\r\n\r\nabc"
            secured.sendall(begun.encode())
            assert secured.recv(20).startswith(b"HTTP/1.1 503")

    def test_headers_beyond_sixteen_kibibytes_are_refused(self, gateway: str, client: httpx.Client) -> None:
        answer = client.post(f"https://{gateway}/v1/fleet/get-run", headers={"x": "y" * 17_000})
        assert answer.status_code == 431

    def test_what_is_no_tls_is_closed_and_logged(self, gateway: str, tmp_path: Path) -> None:
        host, _, port = gateway.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=20) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
            try:
                ended = plain.recv(1)
            except ConnectionResetError:
                ended = b""
        assert ended == b""
        assert wait_for_line(tmp_path / "gateway.jsonl", status=0)["reason"] == "TLS: http request"


def test_connections_beyond_the_limit_are_answered_503_and_far_beyond_it_closed(built: House, tmp_path: Path) -> None:
    files = server_files(built.home.pki)
    limits = Limits(connections_per_address=4)
    log = GatewayLog(tmp_path / "gateway.jsonl")
    listener = Listener(certificates=Certificates(files, client_certificates=False), limits=limits, log=log)
    app = gateway_app(
        access=NodeAccess(built.root),
        superlink="127.0.0.1:9",
        trust=ssl.create_default_context(cafile=str(files.authority)),
        log=log,
        limits=limits,
        listener=listener,
    )
    context = ssl.create_default_context(cafile=str(files.authority))
    with Serving(server_config(app, listener=listener, limits=limits)) as serving:
        host, _, port = serving.address.rpartition(":")
        held = [socket.create_connection((host, int(port)), timeout=20) for _ in range(4)]
        with httpx.Client(verify=context, timeout=20) as client:
            crowded = client.post(f"https://{serving.address}/v1/fleet/get-run")
            assert (crowded.status_code, crowded.headers["connection"]) == (503, "close")
        held.append(socket.create_connection((host, int(port)), timeout=20))
        last = socket.create_connection((host, int(port)), timeout=20)
        with suppress(ConnectionResetError):
            assert last.recv(1) == b""
        for each in (*held, last):
            each.close()
    log.close()
    refused = [line for line in read_lines(tmp_path / "gateway.jsonl") if line["reason"] == "too many connections"]
    assert {line["status"] for line in refused} == {0, 503}
