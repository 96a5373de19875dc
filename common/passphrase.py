"""The passphrase that opens a machine's keys, as its own environment gives it; never on a command line."""

from collections.abc import Mapping
from pathlib import Path

from common.errors import ConfigurationError

PASSPHRASE_FILE_VARIABLE = "FEDWARD_PASSPHRASE_FILE"
PASSPHRASE_VARIABLE = "FEDWARD_PASSPHRASE"


def read_passphrase(environment: Mapping[str, str]) -> bytes:
    """What stands in the file that `FEDWARD_PASSPHRASE_FILE` names, else in `FEDWARD_PASSPHRASE`.

    One newline at the end of the file is not part of it.

    Raises:
        ConfigurationError: If there is none, it is empty, or the file cannot be read.
    """
    file_name = environment.get(PASSPHRASE_FILE_VARIABLE)
    if file_name:
        try:
            passphrase = Path(file_name).read_bytes().removesuffix(b"\n")
        except OSError as error:
            raise ConfigurationError(f"the passphrase file cannot be read: {error.strerror}") from error
    else:
        passphrase = environment.get(PASSPHRASE_VARIABLE, "").encode()
    if not passphrase:
        raise ConfigurationError(
            "there is no passphrase for the keys", hint=f"Set {PASSPHRASE_FILE_VARIABLE} or {PASSPHRASE_VARIABLE}."
        )
    return passphrase
