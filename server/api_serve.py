"""The API as a process: TLS, bounded, ended by SIGTERM."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

import uvicorn

from common.errors import ConfigurationError
from common.settings import read_settings
from server.api import api_app
from server.home import ServerSettings
from server.pki import host_of, server_files

_CONNECTIONS: Final = 64
_BACKLOG: Final = 64


def serve_api(root: Path, *, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, at the address that server.toml names under `api`; port 0 is any free one.

    Args:
        announce: Told the URL once the port is bound.

    Raises:
        ConfigurationError: If no address is set, or it cannot be bound, or a file cannot be read.
    """
    settings = read_settings(root / "server.toml", ServerSettings)
    if not settings.api:
        raise ConfigurationError("server.toml: api is empty, so there is no API", hint='set api = "127.0.0.1:8443"')
    app, files = api_app(root), server_files(root / "pki")
    config = uvicorn.Config(
        app,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        log_level="warning",
        lifespan="off",
        ws="none",
        http="h11",
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=16 << 10,
        ssl_certfile=files.certificate,
        ssl_keyfile=files.key,
    )
    with _bound(settings.api) as listening:
        host, port = settings.api.rpartition(":")[0], listening.getsockname()[1]
        try:
            config.load()
        except OSError as error:
            raise ConfigurationError(f"{root / 'pki'}: server.crt and server.key cannot be used: {error}") from error
        announce(f"https://{host}:{port}/api/v1")
        uvicorn.Server(config).run(sockets=[listening])


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
