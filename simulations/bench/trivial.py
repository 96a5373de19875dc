"""Run the trivial job as one command: python -m simulations.bench.trivial --backend inline|ray --sites N --rounds N.

Both backends run the same ServerApp and ClientApp. The result, one JSON document, goes to stdout.
"""

import argparse
import json
import sys
import tempfile
from functools import partial
from importlib import resources
from pathlib import Path

from flwr.app import Context, RecordDict

from simulations.bench.trivial_app import TrivialJob, client_app, read_result, server_app, write_job

SIZE_BYTES = 1024
_RAY_TIMEOUT_S = 300.0
_LONGEST_PAUSE_S = 0.1  # what Flower's own in-memory Grid waits between two looks


def run_trivial(backend: str, *, sites: int, rounds: int) -> dict[str, float]:
    """Run the job over a backend, `inline` or `ray`, and return `exchanges` and the `seconds` they took."""
    with tempfile.TemporaryDirectory() as directory:
        run_dir = Path(directory)
        job = TrivialJob(sites=sites, rounds=rounds, size_bytes=SIZE_BYTES, longest_pause_s=_LONGEST_PAUSE_S)
        write_job(run_dir, job)
        if backend == "inline":
            _run_inline(run_dir, sites)
        else:
            _run_ray(run_dir, sites)
        return read_result(run_dir)


def _run_inline(run_dir: Path, sites: int) -> None:
    from simulations.inline_grid import run_inline

    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
    handlers = {node_id: partial(client_app, context=context) for node_id in range(1, sites + 1)}
    run_inline(server_app, handlers, run_config={"run-dir": str(run_dir)})


def _run_ray(run_dir: Path, sites: int) -> None:
    from simulations.ray_backend import run_flower_app

    bundle = resources.files("simulations") / "bench" / "fab" / "pyproject.toml"
    run_flower_app(
        bundle.read_text(encoding="utf-8"),
        run_dir=run_dir,
        nodes=sites,
        environment={},
        secrets={},
        timeout_s=_RAY_TIMEOUT_S,
        gpus=0.0,
    )


def main() -> None:
    """Read the command line, run the job, print its result."""
    parser = argparse.ArgumentParser(description="Move bytes through a simulation backend.")
    parser.add_argument("--backend", choices=["inline", "ray"], required=True)
    parser.add_argument("--sites", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    arguments = parser.parse_args()
    result = run_trivial(arguments.backend, sites=arguments.sites, rounds=arguments.rounds)
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
