"""`fedward site fingerprint | node-key`: what the coordinator enrols, once more."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.cli_options import Courier, Home, Output, OutputFormat, print_json

if TYPE_CHECKING:
    from common.enrolment import Enrolment


def add_to(site: typer.Typer) -> None:
    """Give the group its commands."""
    site.command()(fingerprint)
    site.command("node-key")(node_key)


def fingerprint(home: Home = Path(), courier: Courier = None, output: Output = OutputFormat.TEXT) -> None:
    """Print the fingerprint of this site's enrolment again, to be read out on the telephone. Needs no passphrase.

    The enrolment lies in the courier's directory. Exit code 12: it is another site's, or names another node key.
    """
    from client.node_files import read_node_settings
    from client.own_enrolment import ENROLMENT_FILE, own_enrolment
    from client.preflight_finding import courier_directory
    from client.site_view import SiteView

    view = SiteView.open(home)
    directory = courier_directory(home, courier, read_node_settings(home))
    found = own_enrolment(directory, name=view.name, key=view.key)
    _print(found, directory / ENROLMENT_FILE, output)


def node_key(
    home: Home = Path(),
    courier: Courier = None,
    nominal_patients: Annotated[
        int | None,
        typer.Option("--nominal-patients", min=1, max=10**9, help="A public, rounded number; default: as before."),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Let the node key that is there be lost.")] = False,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Make a new node key alone, and the enrolment that names it, where the old one is lost or somebody else has it.

    The site stays who it is: its identity, rules, data and ledger do not change. The gateway refuses the new key until
    the coordinator has enrolled it. In production run it as root: the files go to the owner of the courier's directory.
    """
    from client.home import open_home
    from client.node_files import read_node_settings
    from client.own_enrolment import ENROLMENT_FILE, renew_node_key
    from client.preflight_finding import courier_directory
    from client.unlock import ask_passphrase

    directory = courier_directory(home, courier, read_node_settings(home))
    opened = open_home(home, passphrase=ask_passphrase())
    made = renew_node_key(opened, directory, nominal_patients=nominal_patients, replace=replace)
    _print(made, directory / ENROLMENT_FILE, output)
    if output is OutputFormat.TEXT:
        typer.echo(_next(made), err=True)


def _print(enrolment: "Enrolment", path: Path, output: OutputFormat) -> None:
    if output is OutputFormat.JSON:
        document = {"version": 1, "site": enrolment.name, "enrolment": str(path), "fingerprint": enrolment.fingerprint}
        keys = {"identity_key": enrolment.identity_key, "node_key": enrolment.node_key}
        print_json({**document, **keys, "nominal_patients": enrolment.nominal_patients})
    else:
        typer.echo(f"site {enrolment.name}, nominal patients {enrolment.nominal_patients}: {path}\n")
        typer.echo(f"    {enrolment.fingerprint}")


def _next(enrolment: "Enrolment") -> str:
    return f"""\

Next
  1  send the file to the coordinator and read the fingerprint out on the telephone. There:
     fedward server revoke {enrolment.name}; fedward server enrol '…' --from FILE --again
  2  start the courier again
Trust stays as it is, here and at the other sites: the identity key is the same."""
