"""`fedward server init | enrol | revoke | members | consortium`: who belongs to the consortium.

Beside them stand the commands of `cli_access` (token, acts, proposals, api) and `cli_pki` (renew, client-certificate).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server import cli_access, cli_pki
from server.cli_options import Home, Output, OutputFormat, open_home, passphrase_of_new, person, print_result, tell

if TYPE_CHECKING:
    from common.enrolment import Consortium
    from server.members import Members
    from server.pki import TlsFiles

_Pem = Annotated[Path | None, typer.Option(metavar="FILE", help="Own certificates (PEM): all three, or none.")]

_CONSORTIUM = "consortium's fingerprint"


def add_to(server: typer.Typer) -> None:
    """Give the group its commands."""
    for command in (init, enrol, revoke, members, consortium):
        server.command()(command)
    cli_access.add_to(server)
    cli_pki.add_to(server)


def init(
    address: Annotated[str, typer.Option(metavar="HOST:PORT", help="What couriers call.")],
    home: Home = Path(),
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="What the gateway binds.", show_default="0.0.0.0, that port")
    ] = "",
    api: Annotated[str, typer.Option(metavar="HOST:PORT", help="What the API binds.", show_default="no API")] = "",
    ca: _Pem = None,
    certificate: _Pem = None,
    key: _Pem = None,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Make a coordinator: its plan-signing key, its authority, its secrets, an empty consortium.

    The passphrase comes from FEDWARD_PASSPHRASE_FILE or FEDWARD_PASSPHRASE, or is asked for.
    """
    from common.settings import parse_settings
    from server.home import ServerSettings
    from server.setup import set_up

    bind = listen or f"0.0.0.0:{address.rpartition(':')[2]}"
    given = {"address": address, "listen": bind, "api": api}
    settings = parse_settings(given, ServerSettings, source="the command line")
    own = _own_certificates(ca, certificate, key)
    made = set_up(home, settings=settings, passphrase=passphrase_of_new(), actor=person(), own=own)
    fingerprint = made.key.public_key.fingerprint
    document = {
        "version": 1,
        "home": str(home),
        "coordinator": made.key.public_key.text,
        "fingerprint": fingerprint,
        "certificates": "authority" if own is None else "own",
    }
    print_result(document, f"coordinator's key: {fingerprint}", output)
    where = "" if home == Path() else f" --home {home}"
    tell("It signs plans; note it down. What sites are read on the telephone is another one, the consortium's")
    tell(f"fingerprint: enrol and revoke print it. Both are printed again by: fedward server members{where}")
    tell(f"\nA coordinator lives in {home.resolve()}. Next:")
    tell("  1. Back that directory up, and its passphrase elsewhere: nothing opens the keys without it.")
    tell("     Never put an old copy of members.json or tokens.json back: it lets in whoever was revoked since.")
    tell("  2. Every site sends its enrolment.json and reads its fingerprint to you on the telephone.")
    tell(f'  3. fedward server enrol "FINGERPRINT" … --from DIR{where}')
    tell("  4. Send consortium.json to every site, and read the consortium's fingerprint to them.")
    tell(f"  5. fedward server up{where}")


def enrol(
    fingerprints: Annotated[
        list[str], typer.Argument(metavar="FINGERPRINT...", help="As each site read it to you; in quotes.")
    ],
    source: Annotated[Path, typer.Option("--from", metavar="FILE|DIR", help="Where the enrolments lie.")],
    home: Home = Path(),
    again: Annotated[bool, typer.Option("--again", help="Let revoked keys of the same site come back.")] = False,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Take sites in whose fingerprints you were read: pin their keys, write consortium.json anew."""
    from server import members as book
    from server.actlog import ActLog
    from server.enrolling import match_enrolments, read_fingerprints
    from server.moments import utc_now

    found = match_enrolments(read_fingerprints(fingerprints), source)
    opened, log = open_home(home), ActLog.open(home)
    before = book.read_members(home, opened.key.public_key).active
    changed = book.enrol(opened, found, actor=person(), log=log, now=utc_now(), again=again)
    for enrolment in found:
        known = enrolment.name in before
        tell(f"{'a member already' if known else 'enrolled'}: {enrolment.name}, {enrolment.nominal_patients} patients")
    _print_consortium(book.consortium_of(opened, changed), opened.consortium_path, output)


def revoke(
    name: Annotated[str, typer.Argument(metavar="SITE", help="Its name.")],
    home: Home = Path(),
    output: Output = OutputFormat.TEXT,
) -> None:
    """Take a site out: the gateway refuses it from now on, and no new run includes it."""
    from server import members as book
    from server.actlog import ActLog
    from server.moments import utc_now

    opened, log = open_home(home), ActLog.open(home)
    changed = book.revoke(opened, name, actor=person(), log=log, now=utc_now())
    tell(f"revoked: {name}")
    _print_consortium(book.consortium_of(opened, changed), opened.consortium_path, output)


def members(home: Home = Path(), output: Output = OutputFormat.TEXT) -> None:
    """List the sites that were ever enrolled, and print the fingerprints again. Needs no passphrase."""
    from server.cli_options import table
    from server.home import read_public_key
    from server.members import current_consortium, read_members

    key = read_public_key(home)
    found = read_members(home, key)
    current = current_consortium(home / "consortium.json", found, key=key)
    rows = [_member_row(name, found) for name in sorted(found.by_name)]
    document = {
        "version": 1,
        "members": {name: member.model_dump(mode="json") for name, member in found.by_name.items()},
        "coordinator": {"key": key.text, "fingerprint": key.fingerprint},
        "consortium": None if current is None else {"fingerprint": current.fingerprint},
    }
    listing = table(("site", "state", "patients", "enrolled", "revoked", "identity key"), rows)
    listing += f"\n\ncoordinator's key: {key.fingerprint}"
    if current is not None:
        listing += f"\n{_CONSORTIUM}: {current.fingerprint}"
    print_result(document, listing, output)
    if current is None:
        tell("consortium.json does not name these sites; write it anew with: fedward server consortium")


def consortium(home: Home = Path(), output: Output = OutputFormat.TEXT) -> None:
    """Write consortium.json anew from members and server.toml, and print its fingerprint."""
    from common.enrolment import write_consortium
    from server.actlog import ActLog
    from server.lock import exclusive
    from server.members import consortium_of, read_members

    opened, log = open_home(home), ActLog.open(home)
    with exclusive(home / "members.lock"):
        current = consortium_of(opened, read_members(home, opened.key.public_key))
        log.append("consortium", actor=person(), detail={"fingerprint": current.fingerprint})
        write_consortium(opened.consortium_path, current, opened.key)
    _print_consortium(current, opened.consortium_path, output)


def _own_certificates(ca: Path | None, certificate: Path | None, key: Path | None) -> "TlsFiles | None":
    from common.errors import ConfigurationError
    from server.pki import TlsFiles

    if ca is None and certificate is None and key is None:
        return None
    if ca is None or certificate is None or key is None:
        raise ConfigurationError("own certificates are three files", hint="give --ca, --certificate and --key")
    return TlsFiles(authority=ca, certificate=certificate, key=key)


def _member_row(name: str, found: "Members") -> tuple[str, ...]:
    member = found.by_name[name]
    state = "member" if member.revoked is None else "revoked"
    return name, state, str(member.nominal_patients), member.enrolled, member.revoked or "-", member.identity_key


def _print_consortium(current: "Consortium", path: Path, output: OutputFormat) -> None:
    document: dict[str, Any] = {"version": 1, "sites": sorted(current.sites), "fingerprint": current.fingerprint}
    sites = ", ".join(sorted(current.sites)) or "none"
    print_result(document, f"sites: {sites}\n{_CONSORTIUM}: {current.fingerprint}", output)
    if current.sites:
        tell(f"Send {path} to every site, and read them the consortium's fingerprint on the telephone.")
