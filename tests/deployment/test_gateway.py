"""The gateway's process before the real SuperLink."""

import os
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from server.pki import issue_client
from tests.deployment.door_contract import DoorContract, ssl_context
from tests.deployment.gateway_house import PASSPHRASE, House, Node, gateway_command, house

pytestmark = pytest.mark.deployment


class TestGateway(DoorContract):
    @classmethod
    def start(
        cls, door_house: House, name: str, *, pki: Path | None = None, requests_per_second: float | None = None
    ) -> str:
        rate = requests_per_second or door_house.home.settings.requests_per_second
        root = door_house.copy_of(name, pki=pki, requests_per_second=rate)
        return door_house.start_gateway(name, root=root)

    def log(self, door_house: House, name: str) -> Path:
        return door_house.root / name / "gateway.jsonl"


@pytest.fixture(scope="module")
def shared() -> Iterator[House]:
    with house() as built:
        yield built


@pytest.fixture(scope="module")
def gateway(shared: House) -> str:
    return shared.start_gateway()


def test_a_stranger_whom_superlink_would_serve_is_refused_and_logged(shared: House, gateway: str) -> None:
    stranger = shared.nodes["stranger"]
    assert stranger.activate(shared.superlink, shared.authority) == 200
    assert stranger.activate(gateway, shared.authority) == 401
    line = shared.wait_for_line(status=401, reason="not a member", node="stranger")
    assert re.fullmatch(r"[0-9a-f]{12}", line["key"])


def test_who_claims_a_members_key_without_holding_it_is_refused(shared: House, gateway: str) -> None:
    headers = shared.nodes["stranger"].headers()
    headers["flwr-public-key"] = shared.nodes["east"].headers()["flwr-public-key"]
    answer = httpx.post(f"https://{gateway}/v1/fleet/get-run", headers=headers, verify=ssl_context(shared), timeout=30)
    assert answer.status_code == 401
    assert shared.wait_for_line(status=401, reason="bad signature")["node"] == "stranger"


def test_a_replayed_or_skewed_time_stamp_is_refused_and_named(shared: House, gateway: str) -> None:
    for skew in (timedelta(minutes=-6), timedelta(seconds=20)):
        headers = shared.nodes["east"].headers(moment=datetime.now(UTC) + skew)
        url = f"https://{gateway}/v1/fleet/get-run"
        assert httpx.post(url, headers=headers, verify=ssl_context(shared), timeout=30).status_code == 401
    assert shared.wait_for_line(status=401, reason="clock")["node"] == "east"


def test_a_revoked_node_is_refused_at_once_though_superlink_still_knows_it(shared: House, gateway: str) -> None:
    node = Node.make("south")
    shared.enrol(node)
    shared.register(node)
    assert node.activate(gateway, shared.authority) == 200
    shared.revoke("south")
    assert node.activate(gateway, shared.authority) == 401
    assert shared.wait_for_line(status=401, reason="revoked")["node"] == "south"
    assert node.activate(shared.superlink, shared.authority) == 200


def test_members_that_the_coordinator_did_not_sign_let_nobody_in(shared: House) -> None:
    root = shared.copy_of("forged")
    address = shared.start_gateway("forged", root=root)
    node = shared.nodes["east"]
    assert node.activate(address, shared.authority) == 200
    sound = (root / "members.json").read_bytes()
    (root / "members.json").write_bytes(sound.replace(b'"nominal_patients":100', b'"nominal_patients":101'))
    assert node.activate(address, shared.authority) == 503
    (root / "members.json").unlink()
    assert node.activate(address, shared.authority) == 503
    (root / "members.json").write_bytes(sound)
    assert node.activate(address, shared.authority) == 200
    assert shared.wait_for_line(root, status=503, reason="members cannot be read")["node"] == "stranger"


def test_client_certificates_are_asked_for_and_expired_ones_refused(shared: House, tmp_path: Path) -> None:
    root = shared.copy_of("certified", client_certificates=True)
    address = shared.start_gateway("certified", root=root)
    headers = shared.nodes["east"].headers()

    def ask(context: ssl.SSLContext) -> int:
        with httpx.Client(verify=context, timeout=30) as client:
            return client.post(f"https://{address}/v1/fleet/get-run", headers=headers).status_code

    now = datetime.now(UTC)
    statuses = {}
    for name, moment in (("valid", now), ("expired", now - timedelta(days=500))):
        certificate, key = issue_client(shared.home.pki, name="east", request=None, passphrase=PASSPHRASE, now=moment)
        pair = tmp_path / f"{name}.pem"
        pair.write_text(certificate + key)
        context = ssl_context(shared)
        context.load_cert_chain(pair)
        if name == "valid":
            statuses[name] = ask(context)
        else:
            with pytest.raises(httpx.TransportError):
                ask(context)
    with pytest.raises(httpx.TransportError):
        ask(ssl_context(shared))
    assert statuses["valid"] not in (401, 404, 503)
    for reason in ("certificate has expired", "peer did not return a certificate"):
        assert shared.wait_for_line(root, reason=f"TLS: {reason}")["status"] == 0


def test_a_renewed_certificate_is_shown_without_a_restart(shared: House) -> None:
    from server.pki import renew_server

    root = shared.copy_of("renewed")
    address = shared.start_gateway("renewed", root=root)
    before = ssl.get_server_certificate(("localhost", int(address.rpartition(":")[2])))
    renew_server(root / "pki", hosts=["localhost"], passphrase=PASSPHRASE, now=datetime.now(UTC), new_key=True)
    after = ssl.get_server_certificate(("localhost", int(address.rpartition(":")[2])))
    assert before != after
    assert shared.nodes["east"].activate(address, shared.authority) == 200


def test_an_expired_certificate_is_announced_where_the_administrator_looks(shared: House) -> None:
    from server.pki import renew_server

    root = shared.copy_of("old")
    past = datetime.now(UTC) - timedelta(days=500)
    renew_server(root / "pki", hosts=["localhost"], passphrase=PASSPHRASE, now=past, new_key=True)
    shared.start_gateway("old", root=root)
    assert "server.crt ended on" in shared.children["old"].text()


def test_slow_and_silent_clients_do_not_stop_a_member(shared: House, gateway: str) -> None:
    host, _, port = gateway.rpartition(":")
    member = shared.nodes["east"].headers()
    signed = "".join(f"{name}: {value}\r\n" for name, value in member.items())
    beginning = f"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\n{signed}Content-Length: 8000000\r\n\r\n".encode()
    with ExitStack() as stack:

        def connect(*, secured: bool) -> socket.socket:
            plain = stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
            return (
                stack.enter_context(ssl_context(shared).wrap_socket(plain, server_hostname=host)) if secured else plain
            )

        for _ in range(30):
            connect(secured=False)
        for _ in range(10):
            connect(secured=True).sendall(b"POST /v1/fl")
        for _ in range(10):
            connect(secured=True).sendall(beginning + bytes(100_000))
        started = time.monotonic()
        assert shared.nodes["west"].activate(gateway, shared.authority) == 200
        assert time.monotonic() - started < 10


def test_big_bodies_pass_through_without_being_held(shared: House, gateway: str) -> None:
    process = shared.children["gateway"].child.pid
    before = resident(process)
    headers = shared.nodes["west"].headers()
    statuses: list[int] = []

    def push() -> None:
        with httpx.Client(verify=ssl_context(shared), timeout=120) as client:
            url = f"https://{gateway}/v1/fleet/push-object"
            statuses.extend(client.post(url, headers=headers, content=bytes(8 << 20)).status_code for _ in range(2))

    threads = [threading.Thread(target=push) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(statuses) == 16 and 503 not in statuses
    assert resident(process) - before < 48 << 20


def test_more_requests_at_once_than_one_node_may_have_are_told_to_wait(shared: House, gateway: str) -> None:
    host, _, port = gateway.rpartition(":")
    signed = "".join(f"{name}: {value}\r\n" for name, value in shared.nodes["west"].headers().items())
    beginning = f"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\n{signed}Content-Length: 90000\r\n\r\n".encode()
    with ExitStack() as stack:
        for _ in range(17):
            plain = stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
            secured = stack.enter_context(ssl_context(shared).wrap_socket(plain, server_hostname=host))
            secured.sendall(beginning)
        assert secured.recv(20).startswith(b"HTTP/1.1 503")
        assert shared.nodes["east"].activate(gateway, shared.authority) == 200


def test_the_log_goes_on_in_a_new_file_after_logrotate_moved_it(shared: House, gateway: str) -> None:
    shared.nodes["east"].activate(gateway, shared.authority)
    (shared.root / "gateway.jsonl").rename(shared.root / "gateway.jsonl.1")
    assert shared.nodes["stranger"].activate(gateway, shared.authority) == 401
    assert shared.wait_for_line(status=401)["reason"] == "not a member"
    assert "east" in (shared.root / "gateway.jsonl.1").read_text()
    assert (shared.root / "gateway.jsonl").stat().st_mode & 0o777 == 0o600


def test_sigterm_ends_it_after_the_requests_under_way_and_writes_the_sums(shared: House) -> None:
    root = shared.copy_of("ending")
    address = shared.start_gateway("ending", root=root)
    headers = shared.nodes["east"].headers()
    with httpx.Client(verify=ssl_context(shared), timeout=30) as client:
        client.post(f"https://{address}/v1/fleet/send-node-heartbeat", headers=headers)
        assert shared.children["ending"].end() == 0
    assert [line["verb"] for line in shared.log_lines(root)] == ["send-node-heartbeat"]
    text = shared.children["ending"].text()
    assert text.splitlines() == [text.splitlines()[0]]


def test_a_port_that_is_taken_is_an_error_that_says_so(shared: House, gateway: str) -> None:
    taken = gateway.replace("localhost", "127.0.0.1")
    root = shared.copy_of("second", listen=taken)
    done = subprocess.run(
        gateway_command(root, shared.superlink), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 3
    assert f"listen = '{taken}': cannot be bound" in done.stderr


def resident(process: int) -> int:
    """Bytes of memory that a process holds."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
