"""The API for people with a token: researchers propose plans, auditors read, sites fetch what they pin.

| method, path under /api/v1 | coordinator | researcher | auditor | site |
|---|---|---|---|---|
| GET token | own | own | own | own |
| POST plans | yes | yes | – | – |
| GET proposals, proposals/{digest} | all | own | – | – |
| GET runs, runs/{run} | all | all | all | own |
| GET runs/{run}/files/{name} | all | – | all | – |
| GET acts | yes | – | yes | – |
| GET consortium.json | yes | – | – | yes |

Nothing here starts a run, enrols, or makes a token: that takes the passphrase, which this process does not have.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from common.errors import ConfigurationError, FederationError, PolicyRefused
from server import acts
from server.actlog import ActLog
from server.api_door import CALLER, ApiLimits, Caller, Door, Refusal
from server.api_runs import Runs
from server.home import read_public_key
from server.moments import utc_now
from server.proposals import MAXIMUM_PLAN_BYTES, Proposal, Proposals, parse_plan
from server.tokens import Role

PREFIX: Final = "/api/v1"
BODY_TIMEOUT_S: Final = 20.0
MOST_ACTS: Final = 1000
_EVERYBODY: Final = frozenset(Role)
_PLAN_TYPES: Final = {"application/json": False, "application/toml": True, "text/toml": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One thing that may be asked.

    Attributes:
        answer: Runs in a thread, with the caller, the request and its body.
        takes_body: Whether a body is read, of at most `MAXIMUM_PLAN_BYTES`.
    """

    method: str
    path: str
    roles: frozenset[Role]
    answer: Callable[[Caller, Request, bytes], Response]
    takes_body: bool = False


def api_app(root: Path, *, clock: Callable[[], datetime] = utc_now, limits: ApiLimits | None = None) -> Starlette:
    """The API of one coordinator directory; needs its files, not its passphrase.

    Raises:
        ConfigurationError: If a file is missing. TrustError: If the coordinator does not vouch for the acts' key.
    """
    log = ActLog.open(root, clock=clock)
    operations = _Answers(root, log=log, clock=clock).operations()
    routes = [Route(PREFIX + one.path, _endpoint(one), methods=[one.method]) for one in operations]
    door = Middleware(Door, root=root, log=log, clock=clock, limits=limits or ApiLimits())
    app = Starlette(routes=routes, middleware=[door], exception_handlers={HTTPException: _refuse, Exception: _fail})
    app.router.redirect_slashes = False  # a redirect would repeat the Host that the caller claims
    return app


class _Answers:
    """What each operation answers."""

    def __init__(self, root: Path, *, log: ActLog, clock: Callable[[], datetime]) -> None:
        key = read_public_key(root)
        self._root, self._log, self._clock = root, log, clock
        self._acts_key = acts.read_acts_key(root)
        self._proposals, self._runs = Proposals(root, key=self._acts_key), Runs(root, key=key)

    def operations(self) -> tuple[Operation, ...]:
        """Everything that may be asked, and by whom."""
        coordinator, researcher, auditor, site = Role.COORDINATOR, Role.RESEARCHER, Role.AUDITOR, Role.SITE
        proposers, auditors = frozenset({coordinator, researcher}), frozenset({coordinator, auditor})
        fetchers = frozenset({coordinator, site})
        return (
            Operation(method="GET", path="/token", roles=_EVERYBODY, answer=self.token),
            Operation(method="POST", path="/plans", roles=proposers, answer=self.propose, takes_body=True),
            Operation(method="GET", path="/proposals", roles=proposers, answer=self.proposals),
            Operation(method="GET", path="/proposals/{digest}", roles=proposers, answer=self.proposal),
            Operation(method="GET", path="/runs", roles=_EVERYBODY, answer=self.runs),
            Operation(method="GET", path="/runs/{run}", roles=_EVERYBODY, answer=self.run),
            Operation(method="GET", path="/runs/{run}/files/{name}", roles=auditors, answer=self.run_file),
            Operation(method="GET", path="/acts", roles=auditors, answer=self.acts),
            Operation(method="GET", path="/consortium.json", roles=fetchers, answer=self.consortium),
        )

    def token(self, caller: Caller, request: Request, body: bytes) -> Response:
        """What the caller's token is."""
        shown = caller.token.model_dump(mode="json", include={"name", "role", "site", "expires"})
        return JSONResponse({"version": 1, "id": caller.token_id, **shown})

    def propose(self, caller: Caller, request: Request, body: bytes) -> Response:
        """Keep a plan for the coordinator's people to decide on."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in _PLAN_TYPES:
            hint = f"send one of: {', '.join(_PLAN_TYPES)}"
            raise Refusal(415, f"{kind[:60]!r} is no type of a plan", error="ConfigurationError", hint=hint)
        try:
            plan = parse_plan(body, toml=_PLAN_TYPES[kind])
        except ConfigurationError as error:
            raise Refusal(422, error.fact, error="ConfigurationError", hint=error.hint) from error
        self._log.append("propose", actor=caller.actor, subject=plan.digest)
        try:
            new = self._proposals.add(plan, proposer=caller.token.name, key=self._log.key, now=self._clock())
        except PolicyRefused as error:
            raise Refusal(409, error.fact, error="PolicyRefused", hint=error.hint) from error
        return JSONResponse({"version": 1, "digest": plan.digest, "new": new}, status_code=201 if new else 200)

    def proposals(self, caller: Caller, request: Request, body: bytes) -> Response:
        """The plans that the caller may see, without their content."""
        shown = [
            {"digest": one.plan.digest, "proposers": _proposers(one, caller)}
            for one in self._proposals.all()
            if _sees(caller, one)
        ]
        return JSONResponse({"version": 1, "proposals": shown})

    def proposal(self, caller: Caller, request: Request, body: bytes) -> Response:
        """One plan."""
        try:
            found = self._proposals.get(request.path_params["digest"])
        except FederationError as error:
            raise _nothing("proposal") from error
        if not _sees(caller, found):
            raise _nothing("proposal")
        shown = {"digest": found.plan.digest, "proposers": _proposers(found, caller), "plan": found.plan.to_json()}
        return JSONResponse({"version": 1, **shown})

    def runs(self, caller: Caller, request: Request, body: bytes) -> Response:
        """Every run that the caller may see."""
        return JSONResponse({"version": 1, "runs": list(self._runs.all(site=caller.token.site))})

    def run(self, caller: Caller, request: Request, body: bytes) -> Response:
        """One run."""
        found = self._runs.one(request.path_params["run"], site=caller.token.site)
        if found is None:
            raise _nothing("run")
        return JSONResponse({"version": 1, **found})

    def run_file(self, caller: Caller, request: Request, body: bytes) -> Response:
        """One of a run's public files, byte for byte."""
        path = self._runs.file(request.path_params["run"], request.path_params["name"])
        if path is None:
            raise _nothing("file")
        return FileResponse(path, media_type="application/octet-stream")

    def acts(self, caller: Caller, request: Request, body: bytes) -> Response:
        """Acts after number `after`, at most `limit`, as they stand in the log: whoever reads them checks them."""
        after, limit = _number(request, "after", 0), min(MOST_ACTS, _number(request, "limit", MOST_ACTS))
        try:
            found = [json.loads(line) for line in islice(acts.lines(self._root), after, after + limit)]
            key = json.loads((self._root / "acts.pub").read_bytes())
            head = json.loads((self._root / "acts.head").read_bytes())
        except (FederationError, OSError, ValueError, RecursionError) as error:
            raise Refusal(503, "the log of acts cannot be read", error="ActsCorrupt") from error
        return JSONResponse({"version": 1, "acts": found, "key": key, "head": head})

    def consortium(self, caller: Caller, request: Request, body: bytes) -> Response:
        """What a site pins, signed by the coordinator."""
        path = self._root / "consortium.json"
        if not path.is_file():
            raise _nothing("consortium")
        return FileResponse(path, media_type="application/json")


def _endpoint(operation: Operation) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        caller: Caller = request.scope[CALLER]
        if caller.token.role not in operation.roles:
            fact = f"a token of role {caller.token.role.value} may not do this"
            raise Refusal(403, fact, error="PolicyRefused", hint=f"roles: {', '.join(sorted(operation.roles))}")
        body = await _body(request) if operation.takes_body else b""
        try:
            return await run_in_threadpool(operation.answer, caller, request, body)
        except FederationError as error:  # its fact may name paths of this machine
            raise Refusal(503, "the coordinator cannot do this now", error=type(error).__name__) from error

    return endpoint


async def _body(request: Request) -> bytes:
    """The body, if it comes in time and is not too large; what is announced too large is not read at all."""
    too_large = Refusal(413, f"a plan has at most {MAXIMUM_PLAN_BYTES} bytes", error="ConfigurationError")
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced[:20]) > MAXIMUM_PLAN_BYTES:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for part in request.stream():
                body += part
                if len(body) > MAXIMUM_PLAN_BYTES:
                    raise too_large
    except TimeoutError as error:
        raise Refusal(408, f"the body did not come within {BODY_TIMEOUT_S:g} s", error="TooSlow") from error
    except ClientDisconnect as error:
        raise Refusal(400, "the body ended early", error="ConfigurationError") from error
    return bytes(body)


async def _refuse(request: Request, error: Exception) -> Response:
    """The router knows no such path or method."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    fact = {404: "there is nothing here", 405: "not with this method"}.get(status, "the request cannot be answered")
    raise Refusal(status, fact, error="NotFound" if status == 404 else "BadRequest", headers=headers) from error


async def _fail(request: Request, error: Exception) -> Response:
    """A fault of the program; what it was stands in the program's own log."""
    return Refusal(500, "a fault in the coordinator", error="Fault").response()


def _sees(caller: Caller, proposal: Proposal) -> bool:
    return caller.token.role is Role.COORDINATOR or caller.token.name in proposal.proposers


def _proposers(proposal: Proposal, caller: Caller) -> dict[str, str]:
    """A researcher is not told who else asked for the same plan."""
    own = caller.token.role is Role.RESEARCHER
    return {name: moment for name, moment in proposal.proposers.items() if not own or name == caller.token.name}


def _nothing(what: str) -> Refusal:
    return Refusal(404, f"no such {what}", error="NotFound")


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not text.isascii() or not text.isdecimal() or len(text) > 12:
        raise Refusal(400, f"{name} is a whole number, not {text[:20]!r}", error="ConfigurationError")
    return int(text)
