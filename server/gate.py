"""Which requests the gateway lets through to SuperLink, and what it answers to the others.

What passes goes on as new HTTP: verb, known headers and body, nothing else of the request. Registering nodes, the
control and the runtime API cannot be named from outside. What only a person can mend is refused with 404, 411, 413 or,
for a node that is no member, 401, as SuperLink itself would: Flower's SuperNode ends then, and our courier keeps on
asking. Everything that passes with time is 503, which both wait out.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Final, cast

import httpx
from flwr.supercore.constant import (
    VERSION_INCOMPATIBILITY_MESSAGE_METADATA_KEY,
)
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from server.fleet_request import PASSED_HEADERS, Refused, Request, declared_length, entry, observe
from server.gateway_log import GatewayLog
from server.limits import Buckets, Counter, Limits, network
from server.listener import Listener
from server.node_access import MembersUnreadable, NodeAccess

TICK_S: Final = 5.0
CLIENT_GONE: Final = 499

_ANSWERS: Final = frozenset({b"content-type", VERSION_INCOMPATIBILITY_MESSAGE_METADATA_KEY.encode()})


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
        request = observe(scope)
        uncrowded = self._listener.begin(request.client)
        try:
            async with asyncio.timeout(self._limits.request_s):
                await self._answer(request, scope, receive, send, uncrowded=uncrowded)
        except Refused as refusal:
            await self._refuse(request, send, refusal)
        except httpx.HTTPError:
            await self._refuse(request, send, Refused(HTTPStatus.SERVICE_UNAVAILABLE, "SuperLink does not answer"))
        except TimeoutError:
            await self._refuse(request, send, Refused(HTTPStatus.SERVICE_UNAVAILABLE, "took too long"))
        finally:
            self._listener.end(request.client)
            self._log.write(entry(request))

    async def _answer(self, request: Request, scope: Scope, receive: Receive, send: Send, *, uncrowded: bool) -> None:
        headers = cast(list[tuple[bytes, bytes]], scope["headers"])
        if not uncrowded:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections")
        if request.client and not self._addresses.take(network(request.client[0])):
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "address asks too often")
        if not request.verb:
            raise Refused(HTTPStatus.NOT_FOUND, "no such verb")
        if sum(len(name) + len(value) for name, value in headers) > self._limits.header_bytes:
            raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "headers too large")
        length = declared_length(headers, self._limits.body_bytes)
        if not self._log.ready():
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "log cannot be written")
        try:
            request.caller = self._access.identify(headers)
        except MembersUnreadable as error:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "members cannot be read") from error
        if request.caller.refused:
            raise Refused(HTTPStatus.UNAUTHORIZED, request.caller.refused)
        digest = request.caller.digest
        if not self._nodes.take(digest):
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "node asks too often")
        if self._running.total >= self._limits.in_flight or self._running.of(digest) >= self._limits.in_flight_per_node:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "too many requests at once")
        self._running.add(digest)
        try:
            await self._forward(request, headers, length, receive, send)
        finally:
            self._running.remove(digest)

    async def _forward(
        self, request: Request, headers: list[tuple[bytes, bytes]], length: int, receive: Receive, send: Send
    ) -> None:
        if self._upstream is None:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "not started")
        passed = [(name, value) for name, value in headers if name in PASSED_HEADERS]
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

    async def _body(self, request: Request, receive: Receive) -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(CLIENT_GONE, "client gone")
            piece, more = message.get("body", b""), message.get("more_body", False)
            request.bytes_in += len(piece)
            if request.bytes_in > self._limits.body_bytes:
                raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body too large")
            if piece:
                yield piece

    async def _refuse(self, request: Request, send: Send, refusal: Refused) -> None:
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
