"""Whether the gateway can be reached, is the one whose authority is known, and keeps the same time as this machine."""

import http.client
import socket
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

from cryptography import x509

from client.node_files import COURIER_FILE
from client.preflight_finding import Finding, Premises, Verdict, worst

TIMEOUT_S: Final = 10.0
DAYS_WANTED: Final = 30
# Flower takes a node's signed time only if it is at most 5 s ahead of the server's or 305 s behind it.
MOST_AHEAD_S: Final = 5.0
MOST_BEHIND_S: Final = 305.0
NOTICEABLY_AHEAD_S: Final = 2.0
NOTICEABLY_BEHIND_S: Final = 60.0
FLEET_PATH: Final = "/v1/fleet/pull-messages"
CLOSED_PATHS: Final = (("GET", "/health"), ("GET", "/docs"), ("POST", "/v1/control/list-runs"))
CLOSED: Final = frozenset({400, 403, 404, 405, 421, 503})

_MENDS: Final = {
    10: "ask the coordinator for a renewed certificate; if it is not expired, set this machine's clock",
    9: "set this machine's clock; the certificate begins in its future",
    62: "write the name into courier.toml that the certificate is for, or ask the coordinator which one that is",
    64: "write the name into courier.toml that the certificate is for, or ask the coordinator which one that is",
}
_OTHER_AUTHORITY: Final = (
    "somebody may stand between: ask the coordinator by telephone for the consortium's fingerprint"
)


def check_gateway(premises: Premises) -> Iterator[Finding]:
    """Name, connection, certificate, time and what answers, over one connection."""
    directory = premises.courier
    if not (directory / COURIER_FILE).exists():
        yield _finding("gateway", str(directory), Verdict.SKIPPED, f"without {COURIER_FILE} nobody knows where it is")
        return
    settings = premises.courier_settings
    host, _, port = settings.gateway.rpartition(":")
    host = host.strip("[]")
    yield from _authority(directory / settings.certificates)
    context = ssl.create_default_context(cafile=str(directory / settings.certificates))
    if settings.client_certificate:
        context.load_cert_chain(directory / settings.client_certificate, directory / settings.client_key)
    connection = http.client.HTTPSConnection(host, int(port), timeout=TIMEOUT_S, context=context)
    try:
        fault = _connect(connection, settings.gateway)
        if fault is not None:
            yield fault
            return
        yield _finding("gateway", settings.gateway, Verdict.FINE, "it accepts connections")
        yield from _certificate(connection, settings.gateway, premises.clock())
        yield from _answers(connection, settings.gateway)
    finally:
        connection.close()


def skew_finding(skew_s: float, *, looked_at: str) -> Finding:
    """What a clock that is `skew_s` seconds ahead of the gateway's means; negative is behind."""
    wrong = skew_s > MOST_AHEAD_S or skew_s < -MOST_BEHIND_S
    near = skew_s > NOTICEABLY_AHEAD_S or skew_s < -NOTICEABLY_BEHIND_S
    side = "ahead of" if skew_s >= 0 else "behind"
    return _finding(
        "clock",
        looked_at,
        worst((wrong, Verdict.WRONG), (near, Verdict.WARNING)),
        f"this machine is {abs(skew_s):.0f} s {side} the gateway; up to {MOST_AHEAD_S:.0f} s ahead and "
        f"{MOST_BEHIND_S:.0f} s behind are accepted",
        "set the clock: timedatectl set-ntp true" if wrong or near else "",
    )


def _authority(path: Path) -> Iterator[Finding]:
    """The authority that the gateway's certificate is checked against."""
    for certificate in x509.load_pem_x509_certificates(path.read_bytes()):
        days = (certificate.not_valid_after_utc - datetime.now(UTC)).days
        yield _finding(
            "authority",
            str(path),
            worst((days < 0, Verdict.WRONG), (days < DAYS_WANTED, Verdict.WARNING)),
            f"valid for {days} more days",
            "ask the coordinator for its new authority and compare fingerprints" if days < DAYS_WANTED else "",
        )


def _connect(connection: http.client.HTTPSConnection, gateway: str) -> Finding | None:
    """None once TLS stands, or what stood in the way."""
    try:
        connection.connect()
    except ssl.SSLCertVerificationError as error:
        mend = _MENDS.get(error.verify_code, _OTHER_AUTHORITY)
        return _finding("tls", gateway, Verdict.WRONG, f"its certificate is refused: {error.verify_message}", mend)
    except ssl.SSLError as error:
        mend = "see whether this is the gateway's port, and whether it asks for a client certificate"
        return _finding("tls", gateway, Verdict.WRONG, f"TLS failed: {error.reason or type(error).__name__}", mend)
    except socket.gaierror:
        mend = "correct gateway in courier.toml, or this machine's name service"
        return _finding("gateway", gateway, Verdict.WRONG, "its name cannot be resolved", mend)
    except TimeoutError:
        mend = "let the firewall pass this machine's outgoing connections to that port; none come in"
        return _finding("gateway", gateway, Verdict.WRONG, f"nothing answered within {TIMEOUT_S:.0f} s", mend)
    except OSError as error:
        mend = "ask the coordinator whether the gateway is up, and this house's network whether it lets through"
        return _finding("gateway", gateway, Verdict.WRONG, f"no connection: {error.strerror or error}", mend)
    return None


def _certificate(connection: http.client.HTTPSConnection, gateway: str, now: datetime) -> Iterator[Finding]:
    pem = ssl.DER_cert_to_PEM_cert(connection.sock.getpeercert(binary_form=True) or b"")
    days = (x509.load_pem_x509_certificate(pem.encode()).not_valid_after_utc - now).days
    yield _finding(
        "tls",
        gateway,
        worst((days < DAYS_WANTED, Verdict.WARNING)),
        f"the certificate is of the known authority, for this name, and valid for {days} more days",
        "tell the coordinator to renew it" if days < DAYS_WANTED else "",
    )


def _answers(connection: http.client.HTTPSConnection, gateway: str) -> Iterator[Finding]:
    """What the gateway answers to a stranger: these requests carry no node key, and its log shows them as refused."""
    before = time.time()
    status, headers = _request(connection, "POST", FLEET_PATH)
    after = time.time()
    if (date := headers.get("Date")) is not None:
        theirs = parsedate_to_datetime(date).timestamp() + 0.5  # the header is cut to whole seconds
        yield skew_finding((before + after) / 2 - theirs, looked_at=f"this machine's clock and the time of {gateway}")
    else:
        yield _finding("clock", gateway, Verdict.SKIPPED, "the gateway does not say what time it is")
    absent = status == http.client.NOT_FOUND
    down = status in (http.client.BAD_GATEWAY, http.client.SERVICE_UNAVAILABLE, http.client.GATEWAY_TIMEOUT)
    yield _finding(
        "fleet",
        f"POST {FLEET_PATH}",
        worst((absent, Verdict.WRONG), (down, Verdict.WARNING)),
        f"answered {status}"
        + ("; there is no Fleet API" if absent else "; not at the moment" if down else ": it asks who calls"),
        "correct gateway in courier.toml" if absent else "ask the coordinator whether its server is up" if down else "",
    )
    answered = {path: _request(connection, method, path)[0] for method, path in CLOSED_PATHS}
    opened = [f"{path} answered {status}" for path, status in answered.items() if status not in CLOSED]
    yield _finding(
        "gateway",
        ", ".join(answered),
        worst((bool(opened), Verdict.WARNING)),
        "; ".join(opened) or "closed: only what a node needs can be reached",
        "tell the coordinator: its SuperLink can be reached past the gateway" if opened else "",
    )


def _request(connection: http.client.HTTPSConnection, method: str, path: str) -> tuple[int, http.client.HTTPMessage]:
    connection.request(method, path, headers={"Content-Type": "application/x-protobuf"})
    response = connection.getresponse()
    response.read(1 << 16)
    if not response.isclosed():
        connection.close()
    return response.status, response.headers


def _finding(check: str, looked_at: str, verdict: Verdict, found: str, mend: str = "") -> Finding:
    return Finding(check=check, looked_at=looked_at, verdict=verdict, found=found, mend=mend)
