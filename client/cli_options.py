"""Options that all of `fedward site` shares."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class OutputFormat(StrEnum):
    """How the result is printed."""

    TEXT = "text"
    JSON = "json"


Home = Annotated[
    Path,
    typer.Option("--home", metavar="DIR", envvar="FEDWARD_HOME", help="The site's directory.", show_default="here"),
]
Courier = Annotated[
    Path | None,
    typer.Option(
        "--courier",
        metavar="DIR",
        envvar="FEDWARD_COURIER",
        help="The courier's directory.",
        show_default="as node.toml says, or HOME-courier",
    ),
]
Output = Annotated[OutputFormat, typer.Option("--format", help="How to print the result.")]


def print_json(document: dict[str, Any]) -> None:
    """The result on stdout as one JSON document in ASCII: a terminal obeys some signs that JSON leaves raw."""
    import json

    typer.echo(json.dumps(document).replace("\x7f", "\\u007f"))
