"""`fedward site init | trust | policy | dataset | plans`: what an administrator decides at a site."""

import typer


def add_to(site: typer.Typer) -> None:
    """Give the group its commands."""
