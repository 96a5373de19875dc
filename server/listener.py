"""Connections from outside: counted before TLS, secured within a deadline, dropped when no request comes.

uvicorn bounds neither a handshake nor the time that a request's headers may take, and logs no failed handshake. So
each connection of gateway and API is accepted by a protocol of ours, which hands it to uvicorn's once TLS stands.
"""

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, Protocol, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

from server.gateway_log import Entry
from server.gateway_tls import Certificates
from server.limits import Buckets, Counter, Limits, network

Client = tuple[str, int]
LONGEST_REASON = 80
SHUTDOWN_S = 2.0


class ConnectionLog(Protocol):
    """Where it is written what became of connections without a request."""

    def write(self, entry: Entry) -> None:
        """Take one line."""
        ...


class Listener:
    """All connections of one port.

    The app says with `begin` and `end` when a request of a client runs; in between the connection's deadline rests.
    """

    def __init__(self, *, certificates: Certificates, limits: Limits, log: ConnectionLog) -> None:
        self._certificates, self._limits, self._log = certificates, limits, log
        self._open: dict[Client, _Connection] = {}
        self._counts = Counter()
        self._rates = Buckets(rate=limits.connections_per_second, burst=4 * limits.connections_per_second)

    def protocol(self, **arguments: Any) -> asyncio.Protocol:
        """What uvicorn makes for each connection."""
        return _Connection(self, lambda client: _Http(self._log, client, **arguments))

    def begin(self, client: Client | None) -> bool:
        """A request has come; False if its connection is one too many and should be closed after an answer."""
        connection = self._open.get(client) if client else None
        if connection is None:
            return True
        connection.rest()
        return not connection.crowded

    def end(self, client: Client | None) -> None:
        """The request is answered; the next one has `header_s` to come."""
        connection = self._open.get(client) if client else None
        if connection is not None:
            connection.expect(self._limits.header_s)

    def abort(self, client: Client | None) -> None:
        """Drop the connection at once: the answer that began cannot be completed."""
        connection = self._open.get(client) if client else None
        if connection is not None:
            connection.drop()

    def admit(self, connection: "_Connection", client: Client) -> bool:
        """Take a new connection in; False if it must be closed at once."""
        together, limits = network(client[0]), self._limits
        every, same = self._counts.total, self._counts.of(together)
        connection.crowded = every >= limits.connections or same >= limits.connections_per_address
        too_many = every * 4 >= limits.connections * 5 or same * 4 >= limits.connections_per_address * 5
        if too_many or not self._rates.take(together):
            self.refuse(client, "too many connections")
            return False
        self._counts.add(together)
        self._open[client] = connection
        return True

    def forget(self, client: Client, connection: "_Connection") -> None:
        """The connection is gone."""
        if self._open.get(client) is connection:
            del self._open[client]
            self._counts.remove(network(client[0]))

    def refuse(self, client: Client, reason: str) -> None:
        """Log a connection that ended without a request."""
        self._log.write(Entry(address=client[0], reason=reason[:LONGEST_REASON]))

    async def secure(self, connection: "_Connection", transport: asyncio.Transport, client: Client) -> None:
        """Do the TLS handshake and let uvicorn begin."""
        try:
            secured = await asyncio.get_running_loop().start_tls(
                transport,
                connection,
                self._certificates.context(),
                server_side=True,
                ssl_handshake_timeout=self._limits.handshake_s,
                ssl_shutdown_timeout=SHUTDOWN_S,
            )
        except OSError as error:
            self.refuse(client, f"TLS: {_tls_fault(error)}")
            transport.abort()
            self.forget(client, connection)
            return
        if secured is not None:
            connection.secured(secured)
            connection.expect(self._limits.header_s)


class _Http(H11Protocol):
    """uvicorn's protocol, and what is no HTTP is logged."""

    def __init__(self, log: ConnectionLog, client: Client, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._log, self._peer = log, client

    def send_400_response(self, msg: str) -> None:
        self._log.write(Entry(address=self._peer[0], status=400, reason="malformed request"))
        super().send_400_response(msg)


class _Connection(asyncio.Protocol):
    """One connection: raw, then in its handshake, then uvicorn's."""

    def __init__(self, owner: Listener, make_http: Callable[[Client], H11Protocol]) -> None:
        self.crowded = False
        self._owner, self._make_http = owner, make_http
        self._client: Client = ("", 0)
        self._transport: asyncio.Transport | None = None
        self._http: H11Protocol | None = None
        self._early = bytearray()
        self._timer: asyncio.TimerHandle | None = None
        self._handshake: asyncio.Task[None] | None = None
        self._asked = self._lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        raw = cast(asyncio.Transport, transport)
        peer = raw.get_extra_info("peername")
        if not peer:  # gone already
            raw.abort()
            self._lost = True
            return
        self._client, self._transport = (str(peer[0]), int(peer[1])), raw
        if not self._owner.admit(self, self._client):
            raw.abort()
            return
        raw.pause_reading()  # nothing may be read before TLS does
        self._handshake = asyncio.get_running_loop().create_task(self._owner.secure(self, raw, self._client))

    def secured(self, transport: asyncio.Transport) -> None:
        """TLS stands: uvicorn takes over, beginning with what came in the handshake's last flight."""
        if self._lost:
            return
        self._transport = transport
        self._http = self._make_http(self._client)
        self._http.connection_made(transport)
        if self._early:
            self._http.data_received(bytes(self._early))
            self._early.clear()

    def data_received(self, data: bytes) -> None:
        if self._http is None:
            self._early += data
        else:
            self._http.data_received(data)

    def eof_received(self) -> None:
        if self._http is not None:
            self._http.eof_received()

    def pause_writing(self) -> None:
        if self._http is not None:
            self._http.pause_writing()

    def resume_writing(self) -> None:
        if self._http is not None:
            self._http.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._stop_timer()
        self._owner.forget(self._client, self)
        if self._http is not None:
            self._http.connection_lost(exc)

    def rest(self) -> None:
        """A request runs: no deadline of the connection."""
        self._asked = True
        self._stop_timer()

    def expect(self, within_s: float) -> None:
        """A request's headers have to come within this time."""
        self._stop_timer()
        if not self._lost:
            self._timer = asyncio.get_running_loop().call_later(within_s, self._expire)

    def drop(self) -> None:
        """End it without a farewell."""
        if self._transport is not None:
            self._transport.abort()

    def _expire(self) -> None:
        if not self._asked:
            self._owner.refuse(self._client, "no request in time")
        self.drop()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _tls_fault(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return (error.reason or "handshake failed").replace("_", " ").lower()
    return "no handshake in time" if isinstance(error, ConnectionAbortedError) else "closed in the handshake"
