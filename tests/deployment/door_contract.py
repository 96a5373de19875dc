"""What every door before SuperLink must hold, be it our gateway or nginx: the same requests, the same answers."""

import shutil
import ssl
from abc import ABC, abstractmethod
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.fleet_request import VERBS
from server.pki import renew_server
from tests.deployment.gateway_house import PASSPHRASE, House, house, raw_request, wait_for_line
from tests.deployment.waiting import wait_until

REFUSED = [
    "/v1/control/list-runs",
    "/v1/control/start-run",
    "/v1/runtime/acquire-task",
    "/v1/runtime/push-object",
    "/health",
    "/docs",
    "/openapi.json",
    "/",
    "/v1/fleet",
    "/v1/fleet/",
    "/v1/fleet/register-node",
    "/v1/fleet/unregister-node",
    "/v1/fleet/pull-messages-of-others",
    "/v1/fleet/pull-messages/",
    "/v1/fleet/pull-messages?x=1",
    "/v1/fleet/Pull-Messages",
    "/V1/fleet/pull-messages",
    "//v1/fleet/pull-messages",
    "/v1//fleet/pull-messages",
    "/v1/fleet/../fleet/pull-messages",
    "/v1/fleet/%70ull-messages",
    "/v1/fleet%2fpull-messages",
    "/v1/control/..;/fleet/pull-messages",
    "/v1/fleet/pull-messages/..;/../../control/list-runs",
    "/v1/fleet/pull-messages/../../control/list-runs",
    "/v1/fleet/pull-messages%2f..%2f..%2fcontrol%2flist-runs",
    "/v1/fleet/pull-messages;/x",
    "/v1/fleet/pull-messages%00",
]


class DoorContract(ABC):
    """Inherited by one class for each door."""

    @pytest.fixture(scope="class")
    @classmethod
    def door_house(cls) -> Iterator[House]:
        with house() as built:
            yield built

    @pytest.fixture(scope="class")
    @classmethod
    def door(cls, door_house: House) -> str:
        return cls.start(door_house, "door")

    @classmethod
    @abstractmethod
    def start(
        cls, door_house: House, name: str, *, pki: Path | None = None, requests_per_second: float | None = None
    ) -> str:
        """Start a door to the house's SuperLink and say its `localhost:port`."""

    @abstractmethod
    def log(self, door_house: House, name: str) -> Path:
        """The door's audit log."""

    def line(self, door_house: House, door_name: str = "door", *, asked: str = "", **fields: object) -> dict[str, Any]:
        return wait_for_line(self.log(door_house, door_name), asked=asked, **fields)

    def test_an_enrolled_node_is_activated_by_flowers_own_client(self, door_house: House, door: str) -> None:
        assert door_house.nodes["east"].activate(door, door_house.authority) == 200
        for verb in ("activate-node", "deactivate-node"):
            assert self.line(door_house, verb=verb, status=200)["bytes_in"] > 0

    @pytest.mark.parametrize("verb", sorted(VERBS))
    def test_each_verb_that_a_node_needs_reaches_superlink(self, door_house: House, door: str, verb: str) -> None:
        headers = {**door_house.nodes["east"].headers(), "content-type": "application/x-protobuf"}
        ask = {"content": b"", "headers": headers, "verify": ssl_context(door_house), "timeout": 30}
        answers = [httpx.post(f"https://{where}/v1/fleet/{verb}", **ask) for where in (door, door_house.superlink)]
        assert answers[0].status_code == answers[1].status_code != 404
        assert answers[0].content == answers[1].content

    @pytest.mark.parametrize("path", REFUSED)
    def test_nothing_else_can_be_named(self, door_house: House, door: str, path: str) -> None:
        signed = "".join(f"{name}: {value}\r\n" for name, value in door_house.nodes["east"].headers().items())
        request = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{signed}Content-Length: 0\r\n\r\n"
        status, body = raw_request(door, door_house.authority, request.encode())
        assert status in (400, 404)
        assert b"flwr" not in body.lower()
        assert self.line(door_house, asked=f"POST {path}", status=status)

    @pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "post"])
    def test_only_post_is_spoken(self, door_house: House, door: str, method: str) -> None:
        request = f"{method} /v1/fleet/pull-messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
        status, _ = raw_request(door, door_house.authority, request.encode())
        assert status in (400, 404, 405)

    def test_nine_mebibytes_are_refused_before_they_are_read(self, door_house: House, door: str) -> None:
        headers = door_house.nodes["east"].headers()
        answer = httpx.post(
            f"https://{door}/v1/fleet/push-object",
            content=bytes(9 << 20),
            headers=headers,
            verify=ssl_context(door_house),
            timeout=60,
        )
        assert answer.status_code == 413
        assert self.line(door_house, status=413)["verb"] == "push-object"

    def test_a_body_of_undeclared_length_is_refused(self, door_house: House, door: str) -> None:
        def pieces() -> Iterator[bytes]:
            yield b"abc"

        answer = httpx.post(
            f"https://{door}/v1/fleet/push-object",
            content=pieces(),
            headers=door_house.nodes["east"].headers(),
            verify=ssl_context(door_house),
            timeout=30,
        )
        assert answer.status_code == 411

    def test_a_request_with_two_lengths_is_refused(self, door_house: House, door: str) -> None:
        request = b"POST /v1/fleet/get-run HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\nhello"
        assert raw_request(door, door_house.authority, request)[0] == 400

    def test_old_tls_is_refused(self, door_house: House, door: str) -> None:
        context = ssl_context(door_house)
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(httpx.ConnectError):
            httpx.post(f"https://{door}/v1/fleet/get-run", verify=context, timeout=30)

    def test_a_node_that_asks_too_often_is_told_to_wait(self, door_house: House) -> None:
        address = self.start(door_house, "limited", requests_per_second=1)
        headers = door_house.nodes["east"].headers()
        with httpx.Client(verify=ssl_context(door_house), timeout=30) as client:
            url = f"https://{address}/v1/fleet/get-run"
            statuses = [client.post(url, headers=headers).status_code for _ in range(8)]
        assert 503 in statuses
        assert set(statuses) & {401, 403, 429} == set(statuses[:1]) & {401}
        assert self.line(door_house, "limited", status=503)["verb"] == "get-run"

    def test_an_expired_certificate_of_the_door_is_refused_by_flowers_client(
        self, door_house: House, tmp_path: Path
    ) -> None:
        pki = tmp_path / "pki"
        shutil.copytree(door_house.home.pki, pki)
        past = datetime.now(UTC) - timedelta(days=500)
        renew_server(pki, hosts=["localhost"], passphrase=PASSPHRASE, now=past, new_key=True)
        address = self.start(door_house, "expired", pki=pki)
        with pytest.raises(httpx.ConnectError, match="certificate has expired"):
            door_house.nodes["east"].activate(address, door_house.authority)

    def test_without_superlink_nodes_are_told_to_wait_until_it_is_back(self, door_house: House, door: str) -> None:
        node = door_house.nodes["east"]
        door_house.kill_superlink()
        assert node.activate(door, door_house.authority) == 503
        door_house.start_superlink()
        wait_until(lambda: node.activate(door, door_house.authority) == 200, what="the door to find SuperLink again")


def ssl_context(door_house: House) -> ssl.SSLContext:
    """Trusts the house's authority, as a courier does."""
    return ssl.create_default_context(cafile=str(door_house.authority))
