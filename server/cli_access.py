"""`fedward server token | acts | proposals | api`: who may do what, and who did what."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli_options import Home, Output, OutputFormat, open_home, person, print_result, table, tell

if TYPE_CHECKING:
    from server.acts import ActHead, Detail

token = typer.Typer(name="token", no_args_is_help=True, add_completion=False, help="Tokens for the API.")


def add_to(server: typer.Typer) -> None:
    """Give the group its commands."""
    server.add_typer(token)
    server.command()(acts)
    server.command()(proposals)
    server.command(hidden=True)(api)


@token.command("create")
def token_create(
    role: Annotated[str, typer.Option(help="coordinator, researcher, auditor or site.")],
    name: Annotated[str, typer.Option(help="Whose it is; every act names it.")],
    home: Home = Path(),
    site: Annotated[str, typer.Option(help="With role site: which one.")] = "",
    days: Annotated[int, typer.Option(help="How long it lasts, 1 to 366.")] = 90,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Make a token and show it, this once."""
    from common.errors import ConfigurationError
    from server.actlog import ActLog
    from server.moments import utc_now
    from server.tokens import Role, create_token

    if role not in set(Role):
        raise ConfigurationError(f"{role[:40]!r} is no role", hint=f"roles: {', '.join(Role)}")
    opened, log = open_home(home), ActLog.open(home)
    token_id, text = create_token(
        opened, role=Role(role), name=name, site=site, days=days, actor=person(), log=log, now=utc_now()
    )
    print_result({"version": 1, "id": token_id, "token": text}, text, output)
    tell(f"Token {token_id} of {name}, {role}, for {days} days. It is not kept here and cannot be shown again.")


@token.command("list")
def token_list(home: Home = Path(), output: Output = OutputFormat.TEXT) -> None:
    """List all tokens, without what opens anything. Needs no passphrase."""
    from server.home import read_public_key
    from server.moments import utc_now
    from server.tokens import read_tokens

    now = utc_now()
    found = {
        token_id: {
            **one.model_dump(mode="json", exclude={"digest"}),
            "state": "in force" if one.is_live(now) else "revoked" if one.revoked else "expired",
        }
        for token_id, one in read_tokens(home, read_public_key(home)).by_id.items()
    }
    columns = ("name", "role", "site", "state", "created", "expires")
    rows = [(token_id, *(str(fields[column]) or "-" for column in columns)) for token_id, fields in found.items()]
    print_result({"version": 1, "tokens": found}, table(("id", *columns), rows), output)


@token.command("revoke")
def token_revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="As `token list` shows it.")],
    home: Home = Path(),
    output: Output = OutputFormat.TEXT,
) -> None:
    """End a token at once."""
    from server.actlog import ActLog
    from server.moments import utc_now
    from server.tokens import revoke_token

    opened, log = open_home(home), ActLog.open(home)
    ended = revoke_token(opened, token_id, actor=person(), log=log, now=utc_now())
    document = {"version": 1, "id": token_id, "name": ended.name, "revoked": ended.revoked}
    print_result(document, f"{token_id} of {ended.name} is revoked", output)


def acts(
    home: Home = Path(),
    last: Annotated[int, typer.Option(min=0, help="Show so many of the newest; 0: all.")] = 20,
    head: Annotated[
        str, typer.Option("--head", metavar="NUMBER:DIGEST", help="An end of the log that you noted down earlier.")
    ] = "",
    output: Output = OutputFormat.TEXT,
) -> None:
    """Verify the log of acts and show its end. Exit code 16: it was changed, cut or reordered.

    Needs no passphrase. Whoever holds this machine could write the log anew; note the head down elsewhere, and give it
    with --head.
    """
    from collections import deque

    from server.acts import Act, ActHead, verified_acts

    shown: deque[Act] = deque(maxlen=last or None)
    end = ActHead()
    for act, digest in verified_acts(home, held=_head(head) if head else None):
        shown.append(act)
        end = ActHead(seq=act.seq, digest=digest)
    rows = [
        (str(act.seq), act.time, act.actor, act.role, act.act, act.subject or "-", _detail(act.detail)) for act in shown
    ]
    document = {
        "version": 1,
        "verdict": "verified",
        "head": {"seq": end.seq, "digest": end.digest},
        "acts": [act.to_json() for act in shown],
    }
    listing = table(("act", "time", "who", "role", "what", "to what", "more"), rows)
    print_result(document, f"{listing}\n\nverified: {end.seq} acts\nhead: {end.seq}:{end.digest}", output)


def proposals(
    home: Home = Path(),
    show: Annotated[str, typer.Option("--show", metavar="DIGEST", help="Print this plan as JSON.")] = "",
    remove: Annotated[str, typer.Option("--remove", metavar="DIGEST", help="Forget this one.")] = "",
    output: Output = OutputFormat.TEXT,
) -> None:
    """List the plans that came over the API; `fedward server run DIGEST` runs one. Needs no passphrase.

    Of a digest the first 8 digits are enough.
    """
    import json

    from server.actlog import ActLog
    from server.acts import read_acts_key
    from server.proposals import Proposals

    kept = Proposals(home, key=read_acts_key(home))
    if show:
        typer.echo(json.dumps(kept.find(show).plan.to_json()))
        return
    if remove:
        digest = kept.find(remove).plan.digest
        ActLog.open(home).append("proposal remove", actor=person(), subject=digest)
        kept.remove(digest)
        tell(f"removed: {digest}")
    found = {one.plan.digest: dict(one.proposers) for one in kept.all()}
    rows = [(digest, ", ".join(f"{name} ({moment})" for name, moment in by.items())) for digest, by in found.items()]
    print_result({"version": 1, "proposals": found}, table(("plan", "proposed by"), rows), output)


def api(home: Home = Path()) -> None:
    """Serve the API; `fedward server up` starts this. Has no use for the passphrase, and drops it if it is given."""
    import os

    from common.passphrase import PASSPHRASE_FILE_VARIABLE, PASSPHRASE_VARIABLE
    from server.api_serve import serve_api

    for variable in (PASSPHRASE_FILE_VARIABLE, PASSPHRASE_VARIABLE):
        os.environ.pop(variable, None)
    serve_api(home, announce=typer.echo)


def _head(text: str) -> "ActHead":
    import re

    from common.errors import ConfigurationError
    from server.acts import ActHead

    form = re.fullmatch(r"([1-9][0-9]{0,14}):(sha256:[0-9a-f]{64})", text)
    if form is None:
        raise ConfigurationError(f"{text[:90]!r} is no head", hint="NUMBER:sha256:…, as this command prints it")
    return ActHead(seq=int(form[1]), digest=form[2])


def _detail(detail: "Detail") -> str:
    return " ".join(f"{name}={value}" for name, value in detail.items() if value != "")
