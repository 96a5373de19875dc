"""Which requests the gateway lets through to SuperLink, and what it answers to the others.

What passes goes on as new HTTP: verb, known headers and body, nothing else of the request. Registering nodes, the
control and the runtime API cannot be named from outside. What only a person can mend is refused with 404, 411, 413 or,
for a node that is no member, 401, as SuperLink itself would: Flower's SuperNode ends then, and our courier keeps on
asking. Everything that passes with time is 503, which both wait out.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, cast

import httpx
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    FLWR_COMPONENT_NAME_METADATA_KEY,
    FLWR_PACKAGE_NAME_METADATA_KEY,
    FLWR_PACKAGE_VERSION_METADATA_KEY,
    VERSION_INCOMPATIBILITY_MESSAGE_METADATA_KEY,
)
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from server.gateway_log import Entry, GatewayLog, harmless
from server.limits import Buckets, Counter, Limits, network
from server.listener import Client, Listener
from server.node_access import Caller, MembersUnreadable, NodeAccess

VERBS: Final = frozenset(
    {
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "pull-object",
        "push-object",
        "confirm-message-received",
    }
)
TICK_S: Final = 5.0
CLIENT_GONE: Final = 499

_PATHS: Final = {f"/v1/fleet/{verb}".encode(): verb for verb in VERBS}
_ANSWERS: Final = frozenset({b"content-type", VERSION_INCOMPATIBILITY_MESSAGE_METADATA_KEY.encode()})
_QUESTIONS: Final = frozenset(
    name.encode()
    for name in (
        "content-type",
        "accept",
        TIMESTAMP_HEADER,
        FLEET_HTTP_PUBLIC_KEY_HEADER,
        FLEET_HTTP_SIGNATURE_HEADER,
        FLWR_PACKAGE_NAME_METADATA_KEY,
        FLWR_PACKAGE_VERSION_METADATA_KEY,
        FLWR_COMPONENT_NAME_METADATA_KEY,
    )
)


@dataclass(slots=True, kw_only=True)
class _Request:
    """What is known of one request so far."""

    client: Client | None
    verb: str
    shown: str
    started: float
    caller: Caller = field(default_factory=Caller)
    status: int = 0
    reason: str = ""
    bytes_in: int = 0
    bytes_out: int = 0


class _Refused(Exception):
    """The request goes no further."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Gate:
    """Every request from outside, one call each."""

    def __init__(
        self,
        *,
        access: NodeAccess,
        superlink: str,
        trust: ssl.SSLContext,
        log: GatewayLog,
        limits: Limits,
        listener: Listener,
    ) -> None:
        self._access, self._log, self._limits, self._listener = access, log, limits, listener
        self._base = f"https://{superlink}/v1/fleet/"
        self._trust = trust
        self._upstream: httpx.AsyncClient | None = None
        rate, address_rate = limits.requests_per_second, limits.address_requests_per_second
        self._nodes = Buckets(rate=rate, burst=2 * rate)
        self._addresses = Buckets(rate=address_rate, burst=2 * address_rate)
        self._running = Counter()

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Keep connections to SuperLink, and write the log's sums when they are due."""
        silence = self._limits.upstream_s
        many = self._limits.in_flight
        async with httpx.AsyncClient(
            verify=self._trust,
            trust_env=False,
            timeout=httpx.Timeout(silence, connect=5.0, pool=5.0),
            # SuperLink closes a connection that rested for 5 s: one that may be about to close is not used again
            limits=httpx.Limits(max_connections=many, max_keepalive_connections=many, keepalive_expiry=3.0),
        ) as self._upstream:
            ticking = asyncio.create_task(self._tick())
            yield
            ticking.cancel()
            with suppress(asyncio.CancelledError):
                await ticking

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = _observe(scope)
        uncrowded = self._listener.begin(request.client)
        try:
            async with asyncio.timeout(self._limits.request_s):
                await self._answer(request, scope, receive, send, uncrowded=uncrowded)
        except _Refused as refusal:
            await self._refuse(request, send, refusal)
        except httpx.HTTPError:
            await self._refuse(request, send, _Refused(HTTPStatus.SERVICE_UNAVAILABLE, "SuperLink does not answer"))
        except TimeoutError:
            await self._refuse(request, send, _Refused(HTTPStatus.SERVICE_UNAVAILABLE, "took too long"))
        finally:
            self._listener.end(request.client)
            self._log.write(_entry(request))

    async def _answer(self, request: _Request, scope: Scope, receive: Receive, send: Send, *, uncrowded: bool) -> None:
        headers = cast(list[tuple[bytes, bytes]], scope["headers"])
        if not uncrowded:
            raise _Refused(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections")
        if request.client and not self._addresses.take(network(request.client[0])):
            raise _Refused(HTTPStatus.SERVICE_UNAVAILABLE, "address asks too often")
        if not request.verb:
            raise _Refused(HTTPStatus.NOT_FOUND, "no such verb")
        if sum(len(name) + len(value) for name, value in headers) > self._limits.header_bytes:
            raise _Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "headers too large")
        length = _declared_length(headers, self._limits.body_bytes)
        if not self._log.ready():
            raise _Refused(HTTPStatus.SERVICE_UNAVAILABLE, "log cannot be written")
        try:
            request.caller = self._access.identify(headers)
        except MembersUnreadable as error:
            raise _Refused(HTTPStatus.SERVICE_UNAVAILABLE, "members cannot be read") from error
        if request.caller.refused:
            raise _Refused(HTTPStatus.UNAUTHORIZED, request.caller.refused)
        digest = request.caller.digest
        if not self._nodes.take(digest):
            raise _Refused(HTTPStatus.SERVICE_UNAVAILABLE, "node asks too often")
        if self._running.total >= self._limits.in_flight or self._running.of(digest) >= self._limits.in_flight_per_node:
            raise _Refused(HTTPStatus.SERVICE_UNAVAILABLE, "too many requests at once")
        self._running.add(digest)
        try:
            await self._forward(request, headers, length, receive, send)
        finally:
            self._running.remove(digest)

    async def _forward(
        self, request: _Request, headers: list[tuple[bytes, bytes]], length: int, receive: Receive, send: Send
    ) -> None:
        if self._upstream is None:
            raise _Refused(HTTPStatus.SERVICE_UNAVAILABLE, "not started")
        passed = [(name, value) for name, value in headers if name in _QUESTIONS]
        passed += [(b"content-length", str(length).encode()), (b"accept-encoding", b"identity")]
        body = self._body(request, receive)
        async with self._upstream.stream("POST", self._base + request.verb, headers=passed, content=body) as answer:
            request.status = answer.status_code
            shown = [(name.lower(), value) for name, value in answer.headers.raw]
            shown = [(name, value) for name, value in shown if name in _ANSWERS or name == b"content-length"]
            await send({"type": "http.response.start", "status": answer.status_code, "headers": shown})
            async for piece in answer.aiter_raw():
                request.bytes_out += len(piece)
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _body(self, request: _Request, receive: Receive) -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Refused(CLIENT_GONE, "client gone")
            piece, more = message.get("body", b""), message.get("more_body", False)
            request.bytes_in += len(piece)
            if request.bytes_in > self._limits.body_bytes:
                raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body too large")
            if piece:
                yield piece

    async def _refuse(self, request: _Request, send: Send, refusal: _Refused) -> None:
        """Answer, if nothing was answered yet; else cut the answer off, so that nobody takes it for whole."""
        began, request.status, request.reason = request.status != 0, refusal.status, refusal.reason
        if began or refusal.status == CLIENT_GONE:
            self._listener.abort(request.client)
            return
        body = b'{"detail":"' + refusal.reason.encode() + b'"}'
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if refusal.status == HTTPStatus.SERVICE_UNAVAILABLE:
            headers.append((b"retry-after", b"1"))
        if refusal.reason == "too many connections":
            headers.append((b"connection", b"close"))
        request.bytes_out = len(body)
        await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._log.tick()


def _observe(scope: Scope) -> _Request:
    method, raw = str(scope["method"]), bytes(scope.get("raw_path") or b"")
    target = raw + (b"?" + scope["query_string"] if scope["query_string"] else b"")
    verb = _PATHS.get(target, "") if method == "POST" else ""
    client = scope.get("client")
    peer = (str(client[0]), int(client[1])) if client else None
    return _Request(client=peer, verb=verb, shown=verb or harmless(method, target), started=time.monotonic())


def _declared_length(headers: list[tuple[bytes, bytes]], limit: int) -> int:
    """How long the body is; a request that does not say so beforehand is refused."""
    lengths = [value for name, value in headers if name == b"content-length"]
    if len(lengths) != 1 or not lengths[0].isdigit() or any(name == b"transfer-encoding" for name, _ in headers):
        raise _Refused(HTTPStatus.LENGTH_REQUIRED, "no length")
    if len(lengths[0]) > len(str(limit)) or int(lengths[0]) > limit:
        raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body too large")
    return int(lengths[0])


def _entry(request: _Request) -> Entry:
    return Entry(
        address=request.client[0] if request.client else "",
        verb=request.shown,
        status=request.status,
        reason=request.reason,
        bytes_in=request.bytes_in,
        bytes_out=request.bytes_out,
        seconds=time.monotonic() - request.started,
        node=request.caller.name,
        key=request.caller.key,
    )
