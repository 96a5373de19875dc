"""The API's door: who is asking, whether they may, how often, and what is written down of it.

Nobody gets past it without a token that is in force now, not even to learn which paths exist.
"""

import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.errors import FederationError, TrustError
from common.journal import Journal
from server.actlog import ActLog
from server.acts import Actor
from server.fresh import Fresh
from server.home import read_public_key
from server.limits import Buckets, network
from server.members import Members, read_members
from server.tokens import Role, Token, Tokens, read_tokens

CALLER: Final = "fedward.caller"
STRANGER: Final = Actor(name="stranger", role="none")
_HEADERS: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
_LONGEST_HEADER: Final = 200
_TOKEN: Final = re.compile(r"fwt_[^/]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiLimits:
    """How much one may ask.

    Attributes:
        requests_per_second: Of one token; six times as many at once.
        failures_per_second: Of one address without a token in force; beyond them it is told 429, not 401.
        lines_per_second: Acts written about the refusals of one token, or of all strangers; the rest are counted.
    """

    requests_per_second: float = 10.0
    failures_per_second: float = 1.0
    lines_per_second: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who holds the token that came with a request."""

    token_id: str
    token: Token
    address: str

    @property
    def actor(self) -> Actor:
        """As the log of acts names it."""
        return Actor(name=self.token.name, role=self.token.role.value)


class Refusal(Exception):
    """An answer that is no; the fact and hint are for the caller, so they hold no path and no secret."""

    def __init__(self, status: int, fact: str, *, error: str, hint: str = "", headers: Mapping[str, str] | None = None):
        super().__init__(fact)
        self.status, self.fact, self.error, self.hint, self.headers = status, fact, error, hint, dict(headers or {})

    def response(self) -> Response:
        """`{"error", "fact", "hint"}`."""
        content = {"error": self.error, "fact": self.fact, "hint": self.hint}
        return JSONResponse(content, status_code=self.status, headers=self.headers)


class Door:
    """Middleware: lets callers through with who they are in the scope, and answers everybody else."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        root: Path,
        log: ActLog,
        clock: Callable[[], datetime],
        limits: ApiLimits,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        key = read_public_key(root)
        self._app, self._log, self._clock = app, log, clock
        self._tokens: Fresh[Tokens] = Fresh(root / "tokens.json", lambda: read_tokens(root, key))
        self._members: Fresh[Members] = Fresh(root / "members.json", lambda: read_members(root, key))
        rate = limits.requests_per_second
        self._requests = Buckets(rate=rate, burst=6 * rate, clock=monotonic)
        self._failures = Buckets(
            rate=limits.failures_per_second, burst=20 * limits.failures_per_second, clock=monotonic
        )
        self._lines = Buckets(rate=limits.lines_per_second, burst=60 * limits.lines_per_second, clock=monotonic)
        self._unwritten: dict[str, int] = {}
        self._journal = Journal(sys.stderr, clock=clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        caller: Caller | None = None
        try:
            caller = scope[CALLER] = self._enter(scope)
            await self._app(scope, receive, send_safely)
        except Refusal as refusal:
            await self._write_down(refusal, scope, caller)
            await refusal.response()(scope, receive, send_safely)

    def _enter(self, scope: Scope) -> Caller:
        address = network(scope["client"][0]) if scope.get("client") else ""
        try:
            tokens, members = self._tokens.get(), self._members.get()
        except FederationError as error:
            raise Refusal(503, "the coordinator's files cannot be read", error=type(error).__name__) from error
        presented = _bearer(Headers(scope=scope))
        try:
            token = tokens.check(presented, now=self._clock())
        except TrustError as error:
            if not self._failures.take(address):
                raise _too_often() from error
            challenge = {"WWW-Authenticate": "Bearer"}
            hint = "send the header Authorization: Bearer fwt_…"
            raise Refusal(401, error.fact, error="TrustError", hint=hint, headers=challenge) from error
        caller = Caller(token_id=presented.split("_")[1], token=token, address=address)
        scope[CALLER] = caller
        if not self._requests.take(caller.token_id):
            raise _too_often()
        if token.role is Role.SITE and token.site not in members.active:
            raise Refusal(403, f"{token.site} is no member any more", error="PolicyRefused")
        return caller

    async def _write_down(self, refusal: Refusal, scope: Scope, caller: Caller | None) -> None:
        """Record a refusal. One that cannot be recorded stays a refusal, and the program's log says so."""
        caller = caller or scope.get(CALLER)
        line_of = caller.token_id if caller else "strangers"
        if not self._lines.take(line_of):
            self._unwritten[line_of] = self._unwritten.get(line_of, 0) + 1
            return
        detail: dict[str, Any] = {
            "status": refusal.status,
            "error": refusal.error,
            "method": scope["method"][:10],
            "address": caller.address if caller else network(scope["client"][0]) if scope.get("client") else "",
        }
        if unwritten := self._unwritten.pop(line_of, 0):
            detail["more"] = unwritten
        actor, subject = caller.actor if caller else STRANGER, _TOKEN.sub("fwt_…", scope["path"])
        try:
            await run_in_threadpool(self._log.append, "refuse", actor=actor, subject=subject, detail=detail)
        except FederationError as error:
            self._journal.write("act not written", error=type(error).__name__)


def _bearer(headers: Headers) -> str:
    """The one token of a request; empty if there is none, more than one, or none that could be ours."""
    given = headers.getlist("authorization")
    if len(given) != 1 or len(given[0]) > _LONGEST_HEADER:
        return ""
    scheme, _, presented = given[0].partition(" ")
    return presented if scheme.lower() == "bearer" else ""


def _too_often() -> Refusal:
    return Refusal(429, "too many requests", error="TooOften", hint="wait a little", headers={"Retry-After": "5"})
