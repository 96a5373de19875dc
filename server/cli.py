"""`fedward server`: the coordinator of a consortium."""

import typer

from server import cli_runs, cli_setup

server = typer.Typer(
    name="server",
    no_args_is_help=True,
    add_completion=False,
    help="Coordinate a consortium: enrol sites, write plans, run them, publish the model.",
)


@server.callback()
def _group() -> None:
    """Coordinate a consortium: enrol sites, write plans, run them, publish the model."""


cli_setup.add_to(server)
cli_runs.add_to(server)
