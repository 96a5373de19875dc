"""Options, the passphrase and the actor, which the commands of `fedward server` share."""

import json
import os
import pwd
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from server.acts import Actor
    from server.home import ServerHome


class OutputFormat(StrEnum):
    """How the result is printed."""

    TEXT = "text"
    JSON = "json"


Home = Annotated[
    Path,
    typer.Option(
        "--home", metavar="DIR", envvar="FEDWARD_SERVER_HOME", help="The coordinator's directory.", show_default="here"
    ),
]
Output = Annotated[OutputFormat, typer.Option("--format", help="How to print the result.")]


def print_result(document: dict[str, Any], text: str, output: OutputFormat) -> None:
    """The result on stdout: one JSON document, or text in which nobody else's signs do harm."""
    if output is OutputFormat.JSON:
        typer.echo(json.dumps(document))  # ASCII: a terminal obeys some signs that JSON leaves raw
        return
    from common.terminal import one_line

    typer.echo("\n".join(map(one_line, text.split("\n"))))


def tell(text: str) -> None:
    """A word to the person at the terminal, on stderr."""
    typer.echo(text, err=True)


def table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Columns of equal width."""
    from common.terminal import one_line

    cells = [headings, *(tuple(map(one_line, row)) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)


def passphrase_of_old() -> bytes:
    """The passphrase of keys that exist: from the environment, else asked for on a terminal."""
    from common.passphrase import PASSPHRASE_FILE_VARIABLE, PASSPHRASE_VARIABLE, read_passphrase

    given = os.environ.get(PASSPHRASE_FILE_VARIABLE) or os.environ.get(PASSPHRASE_VARIABLE)
    if given or not sys.stdin.isatty():
        return read_passphrase(os.environ)
    return str(typer.prompt("Passphrase", hide_input=True, err=True)).encode()


def passphrase_of_new() -> bytes:
    """The passphrase for keys that are to be made; on a terminal it is asked for twice."""
    from common.passphrase import PASSPHRASE_FILE_VARIABLE, PASSPHRASE_VARIABLE, read_passphrase

    given = os.environ.get(PASSPHRASE_FILE_VARIABLE) or os.environ.get(PASSPHRASE_VARIABLE)
    if given or not sys.stdin.isatty():
        return read_passphrase(os.environ)
    prompt = "Passphrase for the keys (at least 16 characters; keep it, nothing opens them without it)"
    return str(typer.prompt(prompt, hide_input=True, confirmation_prompt="Once more", err=True)).encode()


def open_home(root: Path) -> "ServerHome":
    """The coordinator's directory with its keys."""
    return open_home_with_passphrase(root)[0]


def open_home_with_passphrase(root: Path) -> "tuple[ServerHome, bytes]":
    """The same, and what opened it; asked for once."""
    from server.home import open_server, read_public_key

    read_public_key(root)  # so that nobody types a passphrase for a directory that is none
    passphrase = passphrase_of_old()
    return open_server(root, passphrase=passphrase), passphrase


def person() -> "Actor":
    """Who runs this command, as the system knows it; not what the environment claims."""
    from server.acts import Actor

    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = f"uid {os.getuid()}"
    return Actor(name=name, role="coordinator")
