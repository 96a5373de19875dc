"""`fedward site agent | courier | up | check`: the running node."""

import typer


def add_to(site: typer.Typer) -> None:
    """Give the group its commands."""
