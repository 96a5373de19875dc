"""The API as a process: TLS, bounded as the gateway is, ended by SIGTERM."""

import asyncio
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

import uvicorn
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.errors import ConfigurationError
from common.journal import Journal
from common.settings import read_settings
from server.api import api_app
from server.gateway_log import Entry
from server.gateway_tls import Certificates
from server.home import ServerSettings
from server.limits import Buckets, Limits
from server.listener import Listener
from server.pki import host_of, server_files

API_LIMITS: Final = Limits(connections=128, connections_per_address=32, connections_per_second=20.0)
_LINES_PER_SECOND: Final = 1.0
_BACKLOG: Final = 64


def serve_api(root: Path, *, announce: Callable[[str], None], limits: Limits = API_LIMITS) -> None:
    """Serve until SIGTERM or SIGINT, at the address that server.toml names under `api`; port 0 is any free one.

    Args:
        root: The coordinator's directory.
        announce: Told the URL once the port is bound.
        limits: What is borne of connections; what a token may ask is `ApiLimits`.

    Raises:
        ConfigurationError: If no address is set, or it cannot be bound, or a file cannot be read.
    """
    settings = read_settings(root / "server.toml", ServerSettings)
    if not settings.api:
        raise ConfigurationError("server.toml: api is empty, so there is no API", hint='set api = "127.0.0.1:8443"')
    certificates = Certificates(server_files(root / "pki"), client_certificates=False)
    listener = Listener(certificates=certificates, limits=limits, log=_Strangers())
    config = uvicorn.Config(
        Bounded(api_app(root), listener=listener, limits=limits),
        http=cast(Any, listener.protocol),  # uvicorn calls it as it would a class
        loop="asyncio",  # with uvloop, if that is installed, a handshake on a paused connection may never begin
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        log_level="warning",
        lifespan="off",
        ws="none",
        timeout_keep_alive=5,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=limits.header_bytes,
    )
    with _bound(settings.api) as listening:
        host, port = settings.api.rpartition(":")[0], listening.getsockname()[1]
        announce(f"https://{host}:{port}/api/v1")
        uvicorn.Server(config).run(sockets=[listening])


class Bounded:
    """Middleware: tells the listener when a request runs, and lets none run longer than `limits.request_s`."""

    def __init__(self, app: ASGIApp, *, listener: Listener, limits: Limits) -> None:
        self._app, self._listener, self._limits = app, listener, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = False

        async def noted(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        client = scope.get("client")
        uncrowded = self._listener.begin(client)
        try:
            async with asyncio.timeout(self._limits.request_s):
                await (self._app if uncrowded else _crowded())(scope, receive, noted)
        except TimeoutError:
            if began:
                self._listener.abort(client)
            else:
                await _refusal("took too long")(scope, receive, send)
        finally:
            self._listener.end(client)


class _Strangers:
    """Connections without a request, in the program's own log, at most one line a second; no address, no target."""

    def __init__(self) -> None:
        self._lines = Buckets(rate=_LINES_PER_SECOND, burst=60 * _LINES_PER_SECOND)
        self._journal = Journal(sys.stderr)

    def write(self, entry: Entry) -> None:
        if self._lines.take(""):
            self._journal.write("connection refused", reason=entry.reason)


def _crowded() -> JSONResponse:
    answer = _refusal("too many connections")
    answer.headers["connection"] = "close"
    return answer


def _refusal(fact: str) -> JSONResponse:
    content = {"error": "TooOften", "fact": fact, "hint": "wait a little"}
    return JSONResponse(content, status_code=503, headers={"Retry-After": "5"})


def _bound(address: str) -> socket.socket:
    host, port = host_of(address), int(address.rpartition(":")[2])
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)
        listening.listen(_BACKLOG)
    except OSError as error:
        raise ConfigurationError(f"api = {address!r} cannot be bound: {error.strerror}") from error
    return listening
