"""`fedward site agent | courier | up | check`: the running node."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from client.cli_options import Courier, Home, Output, OutputFormat, print_json
from common.terminal import one_line


def add_to(site: typer.Typer) -> None:
    """Give the group its commands."""
    site.command()(agent)
    site.command()(courier)
    site.command()(up)
    site.command()(check)


def agent(home: Home = Path()) -> None:
    """Run the site's agent: it holds data, keys and ledger, and answers on its Unix socket until it is ended.

    The passphrase comes from FEDWARD_PASSPHRASE_FILE or FEDWARD_PASSPHRASE. Its log, JSON lines, goes to stderr.
    """
    from client.agent_process import run_agent

    run_agent(home)


def courier(
    directory: Annotated[
        Path, typer.Option("--courier", metavar="DIR", envvar="FEDWARD_COURIER", help="The courier's directory.")
    ],
) -> None:
    """Run the courier: it carries sealed messages between the coordinator's gateway and the agent until it is ended.

    It needs no passphrase and never sees data, keys or ledger. SIGTERM signs the node off. With courier = "supernode"
    in courier.toml it becomes Flower's own SuperNode instead.
    """
    from client.courier import run_courier

    run_courier(directory)


def up(home: Home = Path(), courier: Courier = None) -> None:
    """Run agent and courier together and start again what falls; Ctrl-C ends both. For trials.

    Both run as one user, so that whoever takes over the courier reads the data. For patients give each a user of its
    own; client/deploy shows how. Exit code 13: one of them fell three times before it ever worked.
    """
    from client.node_files import read_node_settings
    from client.preflight_finding import courier_directory
    from client.up import run_node

    node = read_node_settings(home)
    run_node(home, courier_directory(home, courier, node), node, environment=os.environ, tell=_tell)


def check(home: Home = Path(), courier: Courier = None, output: Output = OutputFormat.TEXT) -> None:
    """Look at everything that a node depends on; say what is wrong and how to mend it.

    Takes no lock and writes nothing, so a node may be running. Without a passphrase it looks at what it can and names
    the rest. Exit code 3: something is wrong; warnings alone leave it 0.
    """
    from client.preflight import WRONG_EXIT_CODE, check_document, check_text, is_ready, preflight
    from client.preflight_finding import Premises

    premises = Premises(home=home, given_courier=courier, environment=os.environ, clock=lambda: datetime.now(UTC))
    findings = preflight(premises)
    if output is OutputFormat.JSON:
        print_json(check_document(premises, findings))
    else:
        typer.echo(check_text(findings))
    if not is_ready(findings):
        raise typer.Exit(WRONG_EXIT_CODE)


def _tell(line: str) -> None:
    typer.echo("\n".join(map(one_line, line.split("\n"))), err=True)
