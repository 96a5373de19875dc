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
    dirichlet: Annotated[
        float | None, typer.Option(help="Deal each class out by shares from a Dirichlet distribution of this alpha.")
    ] = None,
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
        load_scenario(scenario),
        sites=sites,
        dirichlet=dirichlet,
        rounds=rounds,
        epsilon=epsilon,
        mode=None if mode is None else mode.value,
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


@bench.command("accounting")
def bench_accounting(
    output_format: Annotated[Format, typer.Option("--format", help="What stands on stdout.")] = Format.TEXT,
) -> None:
    """Deriving epsilon: time and tightness beside dp-accounting's and Opacus' accountants."""
    from simulations.bench.accounting import run_bench

    with _progress() as progress:
        result = run_bench(_reporter(progress))
    _print_bench(result, output_format)


@bench.command("accuracy")
def bench_accuracy(
    scenario: Annotated[str, typer.Argument(help="A scenario's name.")] = DEFAULT_SCENARIO,
    epsilon: Annotated[
        str | None,
        typer.Option(help="Epsilons, separated by commas; mnist has its own.", show_default="1,3,8; heart: 0.1,1"),
    ] = None,
    sites: Annotated[int | None, typer.Option(help="Number of sites instead of the scenario's.")] = None,
    dirichlet: Annotated[
        float | None, typer.Option(help="Deal each class out by shares from a Dirichlet distribution of this alpha.")
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=2, help="Fewest seeds of partition and noise.", show_default=f"{DEFAULT_SEEDS}; mnist: 5"),
    ] = None,
    precision: Annotated[
        float,
        typer.Option(min=0.01, help="Add seeds until the paired interval is this narrow, in points; inf: do not."),
    ] = DEFAULT_PRECISION_POINTS,
    data: Annotated[Path | None, typer.Option(help="Data directory, for scenarios that need one.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights of the backbone, for scenarios that need one.")] = None,
    output_format: Annotated[Format, typer.Option("--format", help="What stands on stdout.")] = Format.TEXT,
) -> None:
    """Accuracy of the federation beside the tuned private pool: means and paired 95 % intervals over seeds.

    `heart` and `mnist` have no pool beside them but published numbers: for 66/34 splits of four real hospitals, and for
    the MNIST example of Opacus (--data mnist.npz).
    """
    from simulations.bench import accuracy, hospitals, mnist

    epsilons = None if epsilon is None else _numbers(epsilon)
    if scenario == mnist.MNIST:
        with _progress() as progress:
            result = mnist.run_bench(data, progress=_reporter(progress), seeds=seeds or mnist.DEFAULT_SEEDS)
        _print_bench(result, output_format)
        return
    seeds = seeds or DEFAULT_SEEDS
    if scenario == hospitals.HEART:
        with _progress() as progress:
            result = hospitals.run_bench(
                data=data, progress=_reporter(progress), epsilons=epsilons or hospitals.EPSILONS, seeds=seeds
            )
        _print_bench(result, output_format)
        return
    with _progress() as progress:
        result = accuracy.run_bench(
            scenario,
            epsilons=epsilons or accuracy.EPSILONS,
            sites=sites,
            dirichlet=dirichlet,
            seeds=seeds,
            data=data,
            weights=weights,
            progress=_reporter(progress),
            precision_points=precision,
        )
    _print_bench(result, output_format)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in text.split(","))
    except ValueError as error:
        raise ConfigurationError(f"--epsilon {text!r} is no list of numbers") from error


@bench.command("dp")
def bench_dp(
    case: Annotated[list[str] | None, typer.Option(help="Only this case; may be given several times.")] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="Measurements, instead of each case's own number.")] = None,
    output_format: Annotated[Format, typer.Option("--format", help="What stands on stdout.")] = Format.TEXT,
) -> None:
    """A private training step beside plain SGD and Opacus: time with one thread and with all, and memory."""
    from simulations.bench.dp import run_bench
    from simulations.bench.dp_cases import CASES

    with _progress() as progress:
        result = run_bench(_reporter(progress), cases=case or tuple(CASES), repeats=repeats)
    _print_bench(result, output_format)


@bench.command("deployment")
def bench_deployment(
    case: Annotated[list[str] | None, typer.Option(help="Only this case; may be given several times.")] = None,
    rounds: Annotated[int, typer.Option(min=2, help="Exchanges, and rounds of the small head.")] = 12,
    weights: Annotated[Path | None, typer.Option(help="Weights of SqueezeNet 1.1, for the case `agent`.")] = None,
    output_format: Annotated[Format, typer.Option("--format", help="What stands on stdout.")] = Format.TEXT,
) -> None:
    """Real processes on loopback: seconds an exchange beside stock Flower, memory of agent, courier and coordinator.

    Cases: exchange, head, updates, sums, coordinator, agent, many. All of them take minutes and several GB of memory.
    """
    from simulations.bench.deployment import run_bench

    signal.signal(signal.SIGTERM, _interrupt)
    with _progress() as progress:
        result = run_bench(_reporter(progress), cases=case or (), rounds=rounds, weights=weights)
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
