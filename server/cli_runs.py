"""`fedward server up | run | runs | log | stop | resume`: the running coordinator."""

import typer


def add_to(server: typer.Typer) -> None:
    """Give the group its commands."""
