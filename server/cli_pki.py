"""`fedward server renew | client-certificate`: certificates of the transport."""

from pathlib import Path
from typing import Annotated

import typer

from server.cli_options import Home, Output, OutputFormat, open_home_with_passphrase, person, print_result, tell

_Pem = Annotated[Path | None, typer.Option(metavar="FILE", help="With certificates of one's own (PEM): all three.")]


def add_to(server: typer.Typer) -> None:
    """Give the group its commands."""
    server.command()(renew)
    server.command("client-certificate")(client_certificate)


def renew(
    home: Home = Path(),
    new_key: Annotated[bool, typer.Option("--new-key", help="Make a new private key, too.")] = False,
    ca: _Pem = None,
    certificate: _Pem = None,
    key: _Pem = None,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Issue the server's certificate anew, before it expires; or put new ones of your own in place.

    Sites pin the authority, so they notice nothing unless --ca brings another one: then write consortium.json anew and
    read its fingerprint to every site.
    """
    from common.errors import ConfigurationError
    from server.actlog import ActLog
    from server.certificates import place_own
    from server.moments import time_text, utc_now
    from server.pki import (
        TlsFiles,
        check_in_force,
        host_of,
        loopback_files,
        read_certificate,
        renew_server,
        server_files,
    )

    (opened, passphrase), now = open_home_with_passphrase(home), utc_now()
    log = ActLog.open(home)
    if certificate is not None or key is not None or ca is not None:
        if certificate is None or key is None or ca is None:
            raise ConfigurationError("own certificates are three files", hint="give --ca, --certificate and --key")
        log.append("renew", actor=person(), subject="own")
        given = TlsFiles(authority=ca, certificate=certificate, key=key)
        place_own(opened.pki, given, address=opened.settings.address, passphrase=passphrase, now=now)
    else:
        authority = server_files(opened.pki).authority
        if authority.exists():
            check_in_force(authority, now)
        hosts = [host_of(opened.settings.address)]
        log.append("renew", actor=person(), subject="authority", detail={"new_key": int(new_key)})
        renew_server(opened.pki, hosts=hosts, passphrase=passphrase, now=now, new_key=new_key)
    if loopback_files(opened.pki) != server_files(opened.pki):
        local = ("localhost", "127.0.0.1")
        renew_server(opened.pki, hosts=local, passphrase=passphrase, now=now, new_key=new_key, prefix="loopback-")
    expires = time_text(read_certificate(server_files(opened.pki).certificate).not_valid_after_utc)
    print_result({"version": 1, "expires": expires}, f"the server's certificate is valid until {expires}", output)
    tell("Gateway and API take it from their next connection on; SuperLink at its next start.")


def client_certificate(
    name: Annotated[str, typer.Argument(metavar="SITE", help="A member.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to write SITE.crt, and SITE.client.key.")],
    home: Home = Path(),
    request: Annotated[
        Path | None, typer.Option("--request", metavar="FILE", help="The courier's PKCS#10 request; better than a key.")
    ] = None,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Issue a courier's client certificate, for a gateway with client_certificates = true.

    Without --request a private key is made here and must travel to the courier in secret.
    """
    from common.errors import ConfigurationError
    from common.files import write_atomic
    from server.actlog import ActLog
    from server.members import read_members
    from server.moments import utc_now
    from server.pki import PUBLIC, issue_client

    opened, passphrase = open_home_with_passphrase(home)
    if name not in read_members(home, opened.key.public_key).active:
        raise ConfigurationError(f"{name[:63]!r} is no member", hint="enrol it first: fedward server enrol")
    try:
        content = None if request is None else request.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{request}: cannot be read: {error.strerror}") from error
    made, private = issue_client(opened.pki, name=name, request=content, passphrase=passphrase, now=utc_now())
    detail = {"request": "given" if content is not None else "none"}
    ActLog.open(home).append("client certificate", actor=person(), subject=name, detail=detail)
    written = [out / f"{name}.crt"]
    write_atomic(written[0], made.encode(), mode=PUBLIC)
    if private:
        written.append(out / f"{name}.client.key")
        write_atomic(written[1], private.encode())
    print_result({"version": 1, "files": list(map(str, written))}, "\n".join(map(str, written)), output)
    if private:
        tell(f"{written[1].name} is secret: hand it to the courier's machine alone, then delete it here.")
