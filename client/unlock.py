"""Where a command at the console gets the passphrase from: the environment, or a person who types it."""

import os
import sys

from common.errors import ConfigurationError
from common.passphrase import PASSPHRASE_FILE_VARIABLE, PASSPHRASE_VARIABLE, read_passphrase


def ask_passphrase(*, new: bool = False) -> bytes:
    """The passphrase of the site's keys.

    Args:
        new: It is chosen now, so it is asked for twice.

    Raises:
        ConfigurationError: If the environment has none and there is no terminal to ask on.
    """
    given = any(os.environ.get(name) for name in (PASSPHRASE_FILE_VARIABLE, PASSPHRASE_VARIABLE))
    if given or not sys.stdin.isatty():
        return read_passphrase(os.environ)
    import typer

    typed: str = typer.prompt(
        "New passphrase of the site's keys" if new else "Passphrase of the site's keys",
        hide_input=True,
        confirmation_prompt=new,
        err=True,
    )
    if not typed:
        raise ConfigurationError("the passphrase is empty", hint="type at least 16 signs")
    return typed.encode()
