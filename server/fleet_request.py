"""One request from outside: which verb it names, how long it says it is, and what the log will say of it."""

import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    FLWR_COMPONENT_NAME_METADATA_KEY,
    FLWR_PACKAGE_NAME_METADATA_KEY,
    FLWR_PACKAGE_VERSION_METADATA_KEY,
)
from starlette.types import Scope

from server.gateway_log import Entry, harmless
from server.listener import Client
from server.node_access import Caller

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
PASSED_HEADERS: Final = frozenset(
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


_PATHS: Final = {f"/v1/fleet/{verb}".encode(): verb for verb in VERBS}


@dataclass(slots=True, kw_only=True)
class Request:
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


class Refused(Exception):
    """The request goes no further."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def observe(scope: Scope) -> Request:
    """What an ASGI scope asks for; only the exact path of a verb, without a query, names that verb."""
    method, raw = str(scope["method"]), bytes(scope.get("raw_path") or b"")
    target = raw + (b"?" + scope["query_string"] if scope["query_string"] else b"")
    verb = _PATHS.get(target, "") if method == "POST" else ""
    client = scope.get("client")
    peer = (str(client[0]), int(client[1])) if client else None
    return Request(client=peer, verb=verb, shown=verb or harmless(method, target), started=time.monotonic())


def declared_length(headers: list[tuple[bytes, bytes]], limit: int) -> int:
    """How long the body is.

    Raises:
        Refused: If the request does not say so once and beforehand, or is longer than `limit`.
    """
    lengths = [value for name, value in headers if name == b"content-length"]
    if len(lengths) != 1 or not lengths[0].isdigit() or any(name == b"transfer-encoding" for name, _ in headers):
        raise Refused(HTTPStatus.LENGTH_REQUIRED, "no length")
    if len(lengths[0]) > len(str(limit)) or int(lengths[0]) > limit:
        raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body too large")
    return int(lengths[0])


def entry(request: Request) -> Entry:
    """The request as the log tells it."""
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
