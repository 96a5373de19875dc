"""`fedward site init | trust | policy | dataset | plans`: what an administrator decides at a site."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client import cli_dataset, cli_plans
from client.cli_options import Courier, Home, Output, OutputFormat, print_json

if TYPE_CHECKING:
    from client.pinning import CourierChange, TrustChange
    from client.setup import NewSite


def add_to(site: typer.Typer) -> None:
    """Give the group its commands."""
    site.command()(init)
    site.command()(trust)
    site.command()(policy)
    site.add_typer(cli_dataset.dataset)
    site.add_typer(cli_plans.plans)


def init(
    name: Annotated[str, typer.Argument(help="The site's name in every document: a-z, 0-9 and -, such as st-anna.")],
    home: Home = Path(),
    courier: Courier = None,
    gateway: Annotated[
        str, typer.Option("--gateway", metavar="HOST:PORT", help="The coordinator's gateway, if you know it already.")
    ] = "",
    nominal_patients: Annotated[
        int, typer.Option("--nominal-patients", min=1, max=10**9, help="A public, rounded number; never a count.")
    ] = 100,
    socket: Annotated[
        str, typer.Option("--socket", metavar="PATH", help="Where the agent listens for the courier.")
    ] = "run/agent.sock",
    socket_group: Annotated[
        str, typer.Option("--socket-group", metavar="GROUP", help="Whose members may connect; empty: the agent's user.")
    ] = "",
    output: Output = OutputFormat.TEXT,
) -> None:
    """Make a site: its keys, careful rules without any budget, and the courier's directory with the node key.

    The passphrase comes from FEDWARD_PASSPHRASE_FILE or FEDWARD_PASSPHRASE, else it is asked for twice. In production
    run it as root, with both directories made for their users before: the files go to each directory's owner.
    """
    from client.node_files import NodeSettings
    from client.preflight_finding import courier_directory
    from client.setup import make_site
    from client.unlock import ask_passphrase

    made = make_site(
        home,
        name=name,
        passphrase=ask_passphrase(new=True),
        courier=courier_directory(home, courier, NodeSettings()),
        gateway=gateway,
        nominal_patients=nominal_patients,
        socket=socket,
        socket_group=socket_group,
    )
    if output is OutputFormat.JSON:
        print_json(
            {
                "version": 1,
                "site": name,
                "home": str(made.home.root),
                "courier": str(made.courier),
                "enrolment": str(made.enrolment_path),
                "fingerprint": made.enrolment.fingerprint,
                "identity_key": made.enrolment.identity_key,
                "node_key": made.enrolment.node_key,
                "nominal_patients": nominal_patients,
            }
        )
    else:
        typer.echo(_init_text(made))


def trust(
    consortium: Annotated[Path, typer.Argument(metavar="CONSORTIUM.json", help="The coordinator's file.")],
    fingerprint: Annotated[
        str, typer.Option("--fingerprint", metavar="F", help="As the coordinator read it out, in any spelling.")
    ],
    home: Home = Path(),
    courier: Courier = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Accept another coordinator, or another key of a pinned site.")
    ] = False,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Pin the keys of coordinator and sites, and tell the courier where the gateway is.

    Without a fingerprint from the telephone nothing shows that a file is the coordinator's. Exit code 12: it is not, or
    somebody's key changed.
    """
    from client.home import open_home
    from client.node_files import read_node_settings
    from client.pinning import pin_consortium, read_trusted, tell_courier
    from client.preflight_finding import courier_directory
    from client.unlock import ask_passphrase

    wanted = read_trusted(consortium, fingerprint=fingerprint)
    opened = open_home(home, passphrase=ask_passphrase())
    change = pin_consortium(opened, wanted, replace=replace)
    told = tell_courier(courier_directory(home, courier, read_node_settings(home)), wanted)
    if output is OutputFormat.JSON:
        print_json(
            {
                "version": 1,
                "site": opened.name,
                "fingerprint": wanted.fingerprint,
                **change.to_json(),
                "gateway": wanted.gateway,
                "courier": {
                    "directory": str(told.directory),
                    "written": [str(path) for path in told.written],
                    "failed": told.failed,
                },
            }
        )
    else:
        typer.echo(_trust_text(change, told, wanted.gateway, consortium))


def policy(
    home: Home = Path(),
    install: Annotated[
        Path | None, typer.Option("--install", metavar="FILE", help="Check, sign and put in force this policy.toml.")
    ] = None,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Show the rules that are in force, or put new ones in force.

    The site's rules beat every plan. They are read anew for each answer, so a new policy also binds runs that are under
    way. Exit code 12: policy.toml was edited and not signed, and every plan is refused until it is.
    """
    from client.policy_text import policy_text
    from client.site_view import SiteView

    view = SiteView.open(home)
    if install is not None:
        from client.home import open_home
        from client.policy_file import install_policy
        from client.unlock import ask_passphrase

        install_policy(open_home(home, passphrase=ask_passphrase()), install)
        typer.echo(f"{view.name}: signed and in force", err=True)
    rules = view.policy()
    if output is OutputFormat.JSON:
        print_json({"version": 1, "site": view.name, "policy": rules.model_dump(mode="json")})
    else:
        typer.echo(policy_text(rules, view.accounts(), site=view.name))


def _init_text(made: "NewSite") -> str:
    home = made.home.root
    return f"""\
site {made.home.name}
  {home}: keys, rules, ledger; nobody but the agent's user reads it
  {made.courier}: the node key; nobody but the courier's user reads it
  nominal patients {made.enrolment.nominal_patients}: public, the site's weight

Send {made.enrolment_path} to the coordinator, and read this out on the telephone:

    {made.enrolment.fingerprint}

Next
  1  edit {home / "policy.toml"}: give your data a budget; then
     fedward site policy --home {home} --install {home / "policy.toml"}
  2  fedward site dataset add TABLE.csv --home {home} --schema SCHEMA.toml --name NAME
  3  once the coordinator has enrolled you and read out its own fingerprint:
     fedward site trust consortium.json --home {home} --fingerprint '…'
  4  fedward site check --home {home}
  5  fedward site up --home {home}, for a trial; agent and courier as two users in production
Keep a backup of {home} and of the passphrase, in two places."""


def _trust_text(change: "TrustChange", told: "CourierChange", gateway: str, consortium: Path) -> str:
    lines = [f"coordinator's key: {change.coordinator}"]
    for what, names in (
        ("new", change.added),
        ("as before", change.kept),
        ("CHANGED", change.changed),
        ("gone", change.removed),
    ):
        if names:
            lines.append(f"sites {what}: {', '.join(names)}")
    if told.written:
        lines.append(f"gateway {gateway}: written to {', '.join(map(str, told.written))}")
    else:
        lines += [
            f"the courier was not told: {told.directory}: {told.failed}",
            "mend: run this command as root, or do it by hand in the courier's directory:",
            f'  courier.toml: gateway = "{gateway}"',
            f"  ca.crt: the text of the key `certificates` in {consortium}",
        ]
    return "\n".join(lines)
