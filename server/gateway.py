"""The only public listener: TLS, members alone, ten verbs of Flower's Fleet API, small bodies, and a log of it all.

A process of its own that holds neither the coordinator's passphrase nor its key.
"""

import asyncio
import signal
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any, Final, cast

import typer
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from common.errors import ConfigurationError
from common.settings import read_settings
from server.gate import Gate
from server.gateway_log import GatewayLog
from server.gateway_tls import Certificates
from server.home import ServerSettings
from server.limits import Limits
from server.listener import Listener
from server.node_access import NodeAccess
from server.pki import loopback_files, read_certificate, server_files

GRACE_S: Final = 10
NODES_OF_AN_ADDRESS: Final = 10
EXPIRES_SOON: Final = timedelta(days=30)


def gateway_app(
    *, access: NodeAccess, superlink: str, trust: ssl.SSLContext, log: GatewayLog, limits: Limits, listener: Listener
) -> Starlette:
    """The gateway as an ASGI application.

    Args:
        access: Tells members from strangers.
        superlink: `host:port` of SuperLink.
        trust: Verifies SuperLink's certificate.
        log: Takes an entry for every request.
        limits: What is borne.
        listener: Holds the connections that requests come by.
    """
    gate = Gate(access=access, superlink=superlink, trust=trust, log=log, limits=limits, listener=listener)
    return Starlette(routes=[Mount("/", app=gate)], lifespan=gate.lifespan)


def serve_gateway(home_root: Path, *, superlink: str) -> None:
    """Serve until SIGTERM or SIGINT; requests under way then have `GRACE_S` to end.

    Needs no passphrase: `server.toml`, `coordinator.pub`, `members.json` and `pki/` are read, `gateway.jsonl` written.
    Says `gateway ready on HOST:PORT` on stderr once it listens.

    Raises:
        ConfigurationError: If a file that it needs is missing or malformed, or the address cannot be bound.
    """
    settings = read_settings(home_root / "server.toml", ServerSettings)
    limits = Limits(
        requests_per_second=settings.requests_per_second,
        address_requests_per_second=NODES_OF_AN_ADDRESS * settings.requests_per_second,
    )
    access = NodeAccess(home_root)
    files = server_files(home_root / "pki")
    certificates = Certificates(files, client_certificates=settings.client_certificates)
    _warn_of_expiry(files.certificate)
    trust = _trust(loopback_files(home_root / "pki").authority)
    log = GatewayLog(home_root / "gateway.jsonl")
    listener = Listener(certificates=certificates, limits=limits, log=log)
    app = gateway_app(access=access, superlink=superlink, trust=trust, log=log, limits=limits, listener=listener)
    bound = _bind(settings.listen)
    host, port = bound.getsockname()[:2]
    try:
        _run(
            uvicorn.Server(server_config(app, listener=listener, limits=limits)),
            bound,
            f"gateway ready on {f'[{host}]' if ':' in host else host}:{port}",
        )
    finally:
        log.close()


def server_config(app: Starlette, *, listener: Listener, limits: Limits) -> uvicorn.Config:
    """How uvicorn serves the gateway: HTTP/1.1 parsed by h11 alone, nothing believed of headers from outside."""
    return uvicorn.Config(
        app,
        http=cast(Any, listener.protocol),  # uvicorn calls it as it would a class
        ws="none",
        lifespan="on",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=max(1, int(limits.header_s)),
        timeout_graceful_shutdown=GRACE_S,
        h11_max_incomplete_event_size=limits.header_bytes,
    )


def _trust(authority: Path) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(authority))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{authority}: no authority's certificate can be read: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _warn_of_expiry(path: Path) -> None:
    ends = read_certificate(path).not_valid_after_utc
    left = ends - datetime.now(UTC)
    if left < EXPIRES_SOON:
        when = f"{ends:%Y-%m-%d %H:%M} UTC"
        fact = f"ends on {when}" if left > timedelta() else f"ended on {when}: no courier connects"
        typer.echo(f"gateway: {path.name} {fact}; renew it with: fedward server renew", err=True)


def _bind(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, number)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, ValueError, OverflowError) as error:
        hint = "correct `listen` in server.toml, or end what has the port"
        raise ConfigurationError(f"listen = {listen!r}: cannot be bound: {error}", hint=hint) from error
    bound.setblocking(False)
    return bound


def _run(server: uvicorn.Server, bound: socket.socket, ready: str) -> None:
    """uvicorn ends as its signal would have ended it; that is caught here, so that a wished end is no failure."""

    def ended(_number: int, _frame: FrameType | None) -> None:
        return None

    before = {number: signal.signal(number, ended) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        asyncio.run(_serve(server, bound, ready))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def _serve(server: uvicorn.Server, bound: socket.socket, ready: str) -> None:
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.02)
    if server.started:
        typer.echo(ready, err=True)
    await serving
