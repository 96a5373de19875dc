"""The out directory of a simulation: never overwritten by accident, never anything else deleted."""

import shutil
from pathlib import Path

from common.errors import ConfigurationError, OutputExists
from common.files import write_atomic

MARKER = ".fedward-run"


def claim_out_directory(path: Path, *, force: bool) -> None:
    """Make the directory, empty but for a marker.

    Raises:
        OutputExists: If it is there with something in it, without `force`.
        ConfigurationError: If `force` would delete what no simulation made.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise ConfigurationError(f"{path}: is there and is no directory")
    if path.exists() and any(path.iterdir()):
        if not force:
            raise OutputExists(f"{path}: is there already", hint="choose another --out, or replace it with --force")
        if not (path / MARKER).is_file():
            raise ConfigurationError(
                f"{path}: was not made by a simulation, so --force leaves it alone", hint="choose another --out"
            )
        shutil.rmtree(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_atomic(path / MARKER, b"made by fedward simulate\n")
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be written: {error.strerror}", hint="choose another --out") from error
