"""`fedward simulate` and `fedward bench`: the command lines of the researcher."""

import json
import signal
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress

    from simulations.bench.result import BenchResult

DEFAULT_SCENARIO = "breast"
DEFAULT_OUT = Path("fedward-run")
DEFAULT_SEEDS = 40
DEFAULT_PRECISION_POINTS = 0.125


class Mode(StrEnum):
    """Where the noise comes from."""

    POOLED = "pooled"
    LOCAL = "local"


class Backend(StrEnum):
    """What carries the messages."""

    INLINE = "inline"
    RAY = "ray"


class Device(StrEnum):
    """Where features are computed."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Format(StrEnum):
    """What stands on stdout."""

    TEXT = "text"
    JSON = "json"


simulate = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)
bench = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Measure Fedward beside its peers on this machine, in the same run.",
)


@simulate.command()
def simulate_command(
    scenario: Annotated[str, typer.Argument(help="A scenario's name, or the path of a scenario.toml.")] = (
        DEFAULT_SCENARIO
    ),
    sites: Annotated[int | None, typer.Option(help="Number of sites, at least 3.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of training.")] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Epsilon of the whole run, while at most c sites cheat.")
    ] = None,
    mode: Annotated[Mode | None, typer.Option(help="pooled: noise in shares. local: every site its own.")] = None,
    backend: Annotated[Backend, typer.Option(help="inline: one process. ray: Flower's simulation engine.")] = (
        Backend.INLINE
    ),
    device: Annotated[Device, typer.Option(help="Where a backbone computes features.")] = Device.AUTO,
    data: Annotated[Path | None, typer.Option(help="Data directory, for scenarios that need one.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights of the backbone, for scenarios that need one.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Fixes data split and first model; never noise or keys.")] = 0,
    comparison: Annotated[bool, typer.Option(help="Train the comparison rows too.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier run in --out.")] = False,
    out: Annotated[Path, typer.Option(help="Where the results go.")] = DEFAULT_OUT,
    output_format: Annotated[Format, typer.Option("--format", help="What stands on stdout.")] = Format.TEXT,
) -> None:
    """Train one private model over many simulated sites, on this machine.

    Leaves summary.json, report.html, the signed model, every site's ledger, and the witnesses and keys that verify
    them. The result stands on stdout, all else on stderr.
    """
    from simulations.outcome import simulate_to_directory
    from simulations.run import SimulationOptions
    from simulations.scenario import load_scenario, with_overrides

    chosen = with_overrides(
        load_scenario(scenario), sites=sites, rounds=rounds, epsilon=epsilon, mode=None if mode is None else mode.value
    )
    options = SimulationOptions(
        out=out, backend=backend.value, device=device.value, data=data, weights=weights, seed=seed, force=force
    )
    signal.signal(signal.SIGTERM, _interrupt)
    with _progress() as progress:
        try:
            summary = simulate_to_directory(chosen, options, comparison=comparison, report=_reporter(progress))
        except KeyboardInterrupt:
            progress.stop()
            _say_what_stays(out)
            raise
    if output_format is Format.JSON:
        typer.echo(json.dumps(summary, indent=2))
    else:
        from simulations.outcome import summary_text

        typer.echo(summary_text(summary, out))


@bench.command("simulation")
def bench_simulation(
    output_format: Annotated[Format, typer.Option("--format", help="What stands on stdout.")] = Format.TEXT,
) -> None:
    """A 100-site, 30-round job of trivial work, inline and through Flower and Ray."""
    from simulations.bench.simulation import run_bench

    with _progress() as progress:
        result = run_bench(_reporter(progress))
    _print_bench(result, output_format)


@bench.command("accuracy")
def bench_accuracy(
    scenario: Annotated[str, typer.Argument(help="A scenario's name.")] = DEFAULT_SCENARIO,
    epsilon: Annotated[str, typer.Option(help="Epsilons, separated by commas.")] = "1,3,8",
    seeds: Annotated[int, typer.Option(min=2, help="Fewest seeds of partition and noise.")] = DEFAULT_SEEDS,
    precision: Annotated[
        float,
        typer.Option(min=0.01, help="Add seeds until the paired interval is this narrow, in points; inf: do not."),
    ] = DEFAULT_PRECISION_POINTS,
    data: Annotated[Path | None, typer.Option(help="Data directory, for scenarios that need one.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights of the backbone, for scenarios that need one.")] = None,
    output_format: Annotated[Format, typer.Option("--format", help="What stands on stdout.")] = Format.TEXT,
) -> None:
    """Accuracy of the federation beside the tuned private pool: means and paired 95 % intervals over seeds."""
    from simulations.bench.accuracy import run_bench

    try:
        epsilons = tuple(float(value) for value in epsilon.split(","))
    except ValueError as error:
        raise ConfigurationError(f"--epsilon {epsilon!r} is no list of numbers") from error
    with _progress() as progress:
        result = run_bench(
            scenario,
            epsilons=epsilons,
            seeds=seeds,
            data=data,
            weights=weights,
            progress=_reporter(progress),
            precision_points=precision,
        )
    _print_bench(result, output_format)


def _print_bench(result: "BenchResult", output_format: Format) -> None:
    if output_format is Format.JSON:
        typer.echo(json.dumps(result.to_json(), indent=2))
    else:
        typer.echo(result.to_text())
    if not result.ok:
        raise typer.Exit(1)


def _progress() -> "Progress":
    """A spinner with the running stage and the time so far, on stderr."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    return Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True
    )


def _reporter(progress: "Progress") -> "Callable[[str], None]":
    task: Any = progress.add_task("starting", total=None)

    def report(stage: str) -> None:
        if progress.console.is_terminal:
            progress.update(task, description=stage)
        else:
            progress.console.print(stage, highlight=False)

    return report


def _say_what_stays(out: Path) -> None:
    if (out / "sites").is_dir():
        typer.echo(
            f"interrupted: what the sites reserved stays charged; check with `fedward audit verify {out}`", err=True
        )


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
