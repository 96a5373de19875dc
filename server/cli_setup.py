"""`fedward server init | enrol | revoke | members | token | acts`: who belongs to the consortium."""

import typer


def add_to(server: typer.Typer) -> None:
    """Give the group its commands."""
