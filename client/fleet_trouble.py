"""Why a courier is not connected, in words for whoever looks at its log: one fact, one hint."""

import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

import httpx

CLOCK_TOLERANCE_S: Final = 5.0  # the SuperLink takes no signature from further ahead

_STATUS: Final[Mapping[int, tuple[str, str]]] = {
    401: (
        "the coordinator does not take this node's key (401)",
        "Ask the coordinator whether the site is enrolled and not revoked; a new node key needs a new enrolment.",
    ),
    403: ("the gateway refuses this node (403)", "Ask the coordinator whether the site is enrolled and not revoked."),
    404: ("the gateway knows no such call (404)", "Check the address in courier.toml and both versions of Fedward."),
    412: (
        "the coordinator has this node as connected already (412)",
        "After a courier was killed this passes in half a minute; if it does not, another machine has the node key.",
    ),
    413: ("the gateway says that a request is too large (413)", "Tell the coordinator."),
}
_BUSY: Final = (
    "the gateway is there, the coordinator behind it is not ({status})",
    "It is tried again; nothing to do.",
)
_TLS_HINTS: Final[Mapping[str, str]] = {
    "expired": "The coordinator has to renew the gateway's certificate; check this machine's date too.",
    "not yet valid": "Check this machine's date.",
    "mismatch": "courier.toml names the gateway by a name or address that is not in its certificate.",
    "is not valid for": "courier.toml names the gateway by a name or address that is not in its certificate.",
    "issuer": "The gateway's certificate is not of the authority in ca.crt: ask the coordinator for consortium.json "
    "again and compare its fingerprint by telephone.",
    "self-signed": "The gateway's certificate is not of the authority in ca.crt: ask the coordinator for "
    "consortium.json again and compare its fingerprint by telephone.",
    "certificate required": "The gateway wants a client certificate: set client_certificate and client_key in "
    "courier.toml.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What keeps a node from its coordinator.

    Attributes:
        fact: What is so.
        hint: What to do about it.
        status: The HTTP status, or 0.
    """

    fact: str
    hint: str
    status: int = 0


def explain(error: Exception, *, gateway: str, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Trouble:
    """Why a call to the gateway failed."""
    if isinstance(error, httpx.HTTPStatusError):
        return _refused(error.response, gateway, clock())
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLError):
            return _tls(cause, gateway)
        if isinstance(cause, socket.gaierror):
            return Trouble(
                fact=f"{gateway}: the name cannot be found", hint="Check the address in courier.toml and the DNS."
            )
    if isinstance(error, httpx.ConnectTimeout):
        return Trouble(
            fact=f"{gateway} does not answer", hint="Ask whether the firewall lets this machine out to it by TCP."
        )
    if isinstance(error, httpx.ConnectError):
        return Trouble(
            fact=f"{gateway}: nobody listens there ({_last_words(error)})",
            hint="Ask the coordinator whether the gateway is up; check the address in courier.toml.",
        )
    return Trouble(
        fact=f"{gateway}: the connection broke ({type(error).__name__}: {_last_words(error)})",
        hint="It is tried again.",
    )


def _refused(response: httpx.Response, gateway: str, now: datetime) -> Trouble:
    status = response.status_code
    if status == httpx.codes.UNAUTHORIZED and abs(ahead_s := _ahead_s(response, now)) > CLOCK_TOLERANCE_S:
        way = "ahead of" if ahead_s > 0 else "behind"
        return Trouble(
            fact=f"{gateway}: this machine's clock is {abs(ahead_s):.0f} s {way} the gateway's (401)",
            hint=f"At most {CLOCK_TOLERANCE_S:.0f} s ahead are accepted: set the clock, such as with timedatectl "
            "set-ntp true.",
            status=status,
        )
    fact, hint = _STATUS.get(status, ("the gateway answers with status {status}", "Tell the coordinator."))
    if status in (502, 503, 504):
        fact, hint = _BUSY
    return Trouble(fact=f"{gateway}: {fact.format(status=status)}", hint=hint, status=status)


def _ahead_s(response: httpx.Response, now: datetime) -> float:
    """Seconds by which this clock is ahead of the one that stamped a response; 0 if it has no stamp."""
    try:
        return (now - parsedate_to_datetime(response.headers["date"])).total_seconds()
    except (KeyError, ValueError, TypeError):
        return 0.0


def _tls(error: ssl.SSLError, gateway: str) -> Trouble:
    told = getattr(error, "verify_message", "") or error.reason or str(error)
    said = told.lower().replace("_", " ")
    hint = next((hint for sign, hint in _TLS_HINTS.items() if sign in said), "Ask the coordinator; nothing was sent.")
    return Trouble(fact=f"{gateway}: the secure connection failed: {told}", hint=hint)


def _last_words(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else "no reason given"


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        yield found
        seen.add(id(found))
        found = found.__cause__ or found.__context__
