"""The `fedward` command: its groups are entry points, loaded only when they are asked for."""

import errno
import os
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution
from typing import Any, Final

import click
import typer.core
import typer.main

from common.errors import ConfigurationError, FederationError
from common.terminal import one_line

ENTRY_POINT_GROUP: Final = "fedward.commands"
INTERRUPTED_EXIT_CODE: Final = 130
_SUMMARIES: Final[Mapping[str, str]] = {
    "simulate": "Train one private model over many simulated sites, on this machine.",
    "site": "Run a hospital's or bank's node: its data, its rules, its privacy budget.",
    "server": "Coordinate a consortium: enrol sites, write plans, run them, publish the model.",
    "audit": "Check what was spent, offline, from files alone.",
    "bench": "Measure Fedward beside its peers on this machine.",
}
_OWNER: Final = "run this as the user who owns the files, where they may be written"
_ROOM: Final = "free some space and run this again; what was there is whole"
_DISK_HINTS: Final[Mapping[int, str]] = {
    errno.EACCES: _OWNER,
    errno.EPERM: _OWNER,
    errno.EROFS: _OWNER,
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: _ROOM,
    errno.EIO: "the disk has an error: look into the system's log, and restore what it lost from a backup",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "a part of this path is a file",
    errno.EISDIR: "a file is wanted here",
}


class LazyGroups(typer.core.TyperGroup):
    """A group whose members are entry points: naming them costs nothing, calling one imports it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The installed groups, in the order in which people meet them."""
        found = _entry_points()
        return [name for name in _SUMMARIES if name in found] + sorted(set(found) - set(_SUMMARIES))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A shell with a summary while help is listed; the real command once its name is on the line."""
        entry_point = _entry_points().get(cmd_name)
        if entry_point is None:
            return None
        if cmd_name not in ctx.args and cmd_name not in sys.argv[1:2]:
            return click.Command(cmd_name, help=_SUMMARIES.get(cmd_name, ""))
        loaded = entry_point.load()
        command = typer.main.get_command(loaded)
        command.name = cmd_name
        return command


app = typer.Typer(
    name="fedward",
    cls=LazyGroups,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train one model across institutions that may not share data.",
)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Show the version.")) -> None:
    if version:
        typer.echo(installed_version())
        raise typer.Exit()


def main() -> None:
    """Run the command line: results on stdout, everything human on stderr, one exit code per kind of error."""
    try:
        app()
    except FederationError as error:
        _print_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _print("interrupted")
        sys.exit(INTERRUPTED_EXIT_CODE)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        refused = disk_refusal(error)
        if refused is None:
            raise
        _print_error(refused)
        sys.exit(refused.exit_code)


def disk_refusal(error: OSError) -> ConfigurationError | None:
    """What a disk that cannot be read or written is called where no command knew better; None for all else."""
    hint = _DISK_HINTS.get(error.errno or 0)
    if hint is None:
        return None
    where = f"{error.filename}: " if error.filename is not None else ""
    return ConfigurationError(f"{where}{error.strerror}", hint=hint)


def installed_version() -> str:
    """The version of the installed distribution."""
    try:
        return distribution("fedward").version
    except PackageNotFoundError:
        return "0+unknown"


def _entry_points() -> dict[str, EntryPoint]:
    try:
        found = distribution("fedward").entry_points
    except PackageNotFoundError:
        return {}
    return {point.name: point for point in found if point.group == ENTRY_POINT_GROUP}


def _print_error(error: FederationError) -> None:
    _print(f"error: {_lines(error.fact)}")
    if error.hint:
        _print(f"hint:  {_lines(error.hint)}")


def _lines(text: str) -> str:
    return "\n".join(map(one_line, text.split("\n")))


def _print(*values: Any) -> None:
    print(*values, file=sys.stderr, flush=True)
