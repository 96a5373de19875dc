"""The Flower ServerApp: finds what the coordinator prepared and runs it over Flower's Grid."""

import os
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.errors import ConfigurationError
from common.passphrase import read_passphrase
from server.exchange import GridExchange
from server.outcome import outcome_written

RUN_DIRECTORY_KEY = "run-dir"

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the prepared run. Whatever goes wrong is raised, because Flower calls a run completed when this returns."""
    from server.coordinator import run_from_directory
    from server.rundir import load_run

    run_dir = run_directory(context)
    with outcome_written(run_dir):
        passphrase = read_passphrase(os.environ)
        run = load_run(run_dir, passphrase=passphrase)
        exchange = GridExchange(grid)
        exchange.wait_for_nodes(len(run.manifest.names), timeout_s=run.settings.setup_timeout_s)
        run_from_directory(run_dir, exchange, passphrase=passphrase)


def run_directory(context: Context) -> Path:
    """The run's directory on the coordinator's machine; the only thing that the run config says.

    Raises:
        ConfigurationError: If the run config does not name an existing directory.
    """
    named = context.run_config.get(RUN_DIRECTORY_KEY)
    if not isinstance(named, str) or not named or not Path(named).is_dir():
        raise ConfigurationError(f"the run config's {RUN_DIRECTORY_KEY!r} does not name a directory")
    return Path(named)
