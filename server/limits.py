"""How much one stranger, one node and all together may ask of the gateway.

Every limit is answered 503 or, before TLS, with a closed connection: Flower's client waits and asks again after a 503,
but ends for good after 401, 403 or 429.
"""

import ipaddress
import time
from collections.abc import Callable
from dataclasses import dataclass

MAXIMUM_BODY_BYTES = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the gateway bears.

    Bodies pass through in pieces and are never held whole, so memory grows with `in_flight`, not with `body_bytes`.

    Attributes:
        body_bytes: Of one request; Flower cuts arrays into 5 MiB objects and sends one a request.
        header_bytes: Of one request, its first line included.
        requests_per_second: Of one node; twice as many may come at once.
        address_requests_per_second: Of one address, behind which several sites may be; twice as many at once.
        connections: Open at one time; more are answered 503, and a quarter more are closed before TLS.
        connections_per_address: The same for one address.
        connections_per_second: New ones of one address, for their handshakes cost; four times as many at once.
        in_flight: Requests being answered at one time.
        in_flight_per_node: Of one node; Flower's client uses up to four.
        handshake_s: For TLS.
        header_s: From handshake or last answer until the next request's headers are here.
        request_s: For a whole request, body and answer.
        upstream_s: Of silence from SuperLink; below the 30 s after which Flower's client asks again.
    """

    body_bytes: int = MAXIMUM_BODY_BYTES
    header_bytes: int = 16 << 10
    requests_per_second: float = 200.0
    address_requests_per_second: float = 2000.0
    connections: int = 512
    connections_per_address: int = 128
    connections_per_second: float = 50.0
    in_flight: int = 128
    in_flight_per_node: int = 16
    handshake_s: float = 10.0
    header_s: float = 15.0
    request_s: float = 120.0
    upstream_s: float = 28.0


class Buckets:
    """One token bucket a key: `rate` tokens a second, at most `burst` saved.

    Memory is bounded: beyond `keep` keys the one that asked longest ago is forgotten, which fills its bucket.
    """

    def __init__(
        self, *, rate: float, burst: float, clock: Callable[[], float] = time.monotonic, keep: int = 4096
    ) -> None:
        self._rate, self._burst, self._clock, self._keep = rate, max(1.0, burst), clock, keep
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, key: str) -> bool:
        """Whether there was a token for `key`; if so, it is gone."""
        now = self._clock()
        tokens, then = self._buckets.pop(key, (self._burst, now))
        tokens = min(self._burst, tokens + (now - then) * self._rate)
        allowed = tokens >= 1
        self._buckets[key] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > self._keep:
            del self._buckets[next(iter(self._buckets))]
        return allowed


class Counter:
    """How many of each key there are now, and of all."""

    def __init__(self) -> None:
        self.total = 0
        self._counts: dict[str, int] = {}

    def of(self, key: str) -> int:
        """How many of `key`."""
        return self._counts.get(key, 0)

    def add(self, key: str) -> None:
        """One more."""
        self.total += 1
        self._counts[key] = self.of(key) + 1

    def remove(self, key: str) -> None:
        """One less; a key without any is forgotten."""
        self.total -= 1
        left = self._counts.pop(key) - 1
        if left:
            self._counts[key] = left


def network(address: str) -> str:
    """What is limited together: an IPv4 address, or the /64 that one subscriber of IPv6 has to himself."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        mapped = parsed.ipv4_mapped
        return str(mapped) if mapped else str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
