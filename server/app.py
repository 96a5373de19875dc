"""The Flower ServerApp: finds what the coordinator prepared and runs it over Flower's Grid."""

import os
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.errors import ConfigurationError
from common.journal import Journal
from common.passphrase import read_passphrase
from server.exchange import GridExchange
from server.outcome import outcome_written
from server.superlink import RUN_DIRECTORY_KEY

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the prepared run, or resume it. Whatever goes wrong is raised: Flower calls a run completed otherwise."""
    from server.coordinator import run_from_directory
    from server.rundir import LOG_FILE, load_run

    run_dir = run_directory(context)
    with outcome_written(run_dir), (run_dir / LOG_FILE).open("a", encoding="utf-8") as log:
        passphrase = read_passphrase(os.environ)
        settings = load_run(run_dir, passphrase=passphrase).settings
        exchange = GridExchange(grid, resend_after_s=settings.resend_after_s)
        run_from_directory(run_dir, exchange, passphrase=passphrase, journal=Journal(log))


def run_directory(context: Context) -> Path:
    """The run's directory on the coordinator's machine; the only thing that the run config says.

    Raises:
        ConfigurationError: If the run config does not name an existing directory.
    """
    named = context.run_config.get(RUN_DIRECTORY_KEY)
    if not isinstance(named, str) or not named or not Path(named).is_dir():
        raise ConfigurationError(f"the run config's {RUN_DIRECTORY_KEY!r} does not name a directory")
    return Path(named)
