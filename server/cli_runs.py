"""`fedward server up | run | runs | log | stop | resume`: the running coordinator."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli_options import (
    Home,
    Output,
    OutputFormat,
    open_home_with_passphrase,
    person,
    print_result,
    table,
    tell,
)

if TYPE_CHECKING:
    from server.submission import Draft
    from server.upstate import UpState

_Run = Annotated[str, typer.Argument(metavar="RUN", help="Its id, or how it begins.")]


def add_to(server: typer.Typer) -> None:
    """Give the group its commands."""
    for command in (up, run, runs, log, stop, resume):
        server.command()(command)
    server.command(hidden=True)(gateway)


def up(home: Home = Path(), output: Output = OutputFormat.TEXT) -> None:
    """Run the coordinator until Ctrl-C or SIGTERM: SuperLink, its executor, the gateway, the API if it is set.

    What falls is started again. The passphrase comes from FEDWARD_PASSPHRASE_FILE or FEDWARD_PASSPHRASE.
    """
    import os

    from common.passphrase import read_passphrase
    from server.home import open_server
    from server.up import run_up

    opened = open_server(home, passphrase=read_passphrase(os.environ))  # ServerApps will ask the environment, too

    def ready(state: "UpState") -> None:
        api = f"\nAPI: https://{state.api}" if state.api else ""
        text = f"coordinator is up\ncouriers call: {opened.settings.address}\ngateway: {state.gateway}{api}"
        print_result(state.model_dump(mode="json"), text, output)
        tell("Ctrl-C ends it; runs that are under way can be resumed.")

    run_up(opened, tell=lambda line: _say(f"up: {line}"), ready=ready)
    tell("coordinator is down")


def gateway(
    home: Home = Path(),
    superlink: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="SuperLink.", show_default="that of the coordinator that is up")
    ] = "",
) -> None:
    """Serve the gateway alone; `up` starts it so."""
    from server.gateway import serve_gateway
    from server.upstate import require_up

    serve_gateway(home, superlink=superlink or require_up(home).superlink)


def run(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="A plan.toml, or how a proposal's digest begins.")],
    home: Home = Path(),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would do and cost; change nothing.")] = False,
    sites: Annotated[
        str, typer.Option(metavar="A,B,…", help="Members that are to take part.", show_default="all")
    ] = "",
    setup_timeout: Annotated[float, typer.Option(min=1, metavar="S", help="Longest wait for sites to join.")] = 3600.0,
    round_timeout: Annotated[float, typer.Option(min=1, metavar="S", help="Longest wait for one attempt.")] = 600.0,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for the end.")] = False,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Train a plan over the members, and wait for the end.

    Sites that did not approve the plan yet are invited again until the set-up time is over. The exit code is that of
    the run's error. Ctrl-C leaves the run going.
    """
    from server.moments import utc_now
    from server.rundir import RunSettings
    from server.runs import hand_over, require_superlink
    from server.submission import draft_run, prepare, read_plan

    opened, passphrase = open_home_with_passphrase(home)
    name, wanted = read_plan(opened, plan)
    chosen = [site.strip() for site in sites.split(",") if site.strip()]
    draft = draft_run(opened, wanted, name=name, sites=chosen)
    if dry_run:
        document = _draft_document(draft)
        print_result(document, _draft_text(draft, document), output)
        return
    require_superlink(home)
    settings = RunSettings(setup_timeout_s=setup_timeout, round_timeout_s=round_timeout)
    run_dir = prepare(opened, draft, passphrase=passphrase, settings=settings, now=utc_now())
    tell(f"run {draft.run_id}, plan {draft.plan.digest}")
    detail: dict[str, str | int] = {"plan": draft.plan.digest, "sites": len(draft.manifest.roster)}
    hand_over(home, run_dir, act="run", actor=person(), detail=detail)
    if detach:
        print_result({"version": 1, "run_id": draft.run_id}, draft.run_id, output)
    else:
        _follow(home, run_dir, output)


def runs(home: Home = Path(), output: Output = OutputFormat.TEXT) -> None:
    """List the runs and how they fare, the oldest first. Needs no passphrase."""
    from server.run_status import asks_flower, run_status
    from server.runs import read_documents
    from server.submission import run_directories

    flower_runs = asks_flower(home)
    found = [
        (run_status(path, flower_runs=flower_runs), read_documents(home, path)[1].plan_digest)
        for path in run_directories(home)
    ]
    rows = [(status.run_id, status.words, status.plan, digest[:19], status.prepared) for status, digest in found]
    documents = [{**status.model_dump(mode="json"), "plan_digest": digest} for status, digest in found]
    print_result(
        {"version": 1, "runs": documents}, table(("run", "state", "plan", "plan digest", "started"), rows), output
    )


def log(
    run: _Run,
    home: Home = Path(),
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the run ends.")] = False,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Show what happened in a run, line by line. Needs no passphrase."""
    from common.terminal import one_line
    from server.run_log import log_lines, log_text
    from server.submission import find_run

    for line in log_lines(home, find_run(home, run), follow=follow):
        typer.echo(one_line(line) if output is OutputFormat.JSON else log_text(line))


def stop(
    run: _Run,
    home: Home = Path(),
    timeout: Annotated[
        float | None,
        typer.Option(min=1, metavar="S", help="Longest wait for it.", show_default="one attempt and 150 s"),
    ] = None,
    output: Output = OutputFormat.TEXT,
) -> None:
    """End a run cleanly: the model so far is released, and every site is told that it is over.

    What was charged stays charged. A run that is ended so cannot be resumed.
    """
    from server.runs import result_document, stop_run
    from server.submission import find_run

    run_dir = find_run(home, run)
    status = stop_run(home, run_dir, actor=person(), timeout_s=timeout, tell=_say)
    document = result_document(home, run_dir, status)
    print_result(document, _result_text(document), output)


def resume(
    run: _Run,
    home: Home = Path(),
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for the end.")] = False,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Go on with a run whose process died, from its last checkpoint and to the same result."""
    from server.runs import hand_over
    from server.submission import find_run

    run_dir = find_run(home, run)
    hand_over(home, run_dir, act="resume", actor=person(), detail={})
    if detach:
        print_result({"version": 1, "run_id": run_dir.name}, run_dir.name, output)
    else:
        _follow(home, run_dir, output)


def _follow(home: Path, run_dir: Path, output: OutputFormat) -> None:
    """Wait for the end and say it; a Ctrl-C leaves the run going."""
    from server.runs import raise_if_failed, result_document, wait_for_end

    try:
        status = wait_for_end(home, run_dir, tell=_say)
    except KeyboardInterrupt:
        tell(f"\n{run_dir.name} goes on. To end it: fedward server stop {run_dir.name}")
        raise
    if status.closed:
        document = result_document(home, run_dir, status)
        print_result(document, _result_text(document), output)
    raise_if_failed(home, run_dir, status)


def _draft_document(draft: "Draft") -> dict[str, Any]:
    from server.cost import round_bytes, run_cost

    plan, manifest = draft.plan, draft.manifest
    return {
        "version": 1,
        "plan": draft.name,
        "plan_digest": plan.digest,
        "mode": manifest.mode,
        "rounds": manifest.rounds,
        "spare_attempts": manifest.spare_attempts,
        "evaluations": manifest.evaluation_attempts,
        "sites": {entry.name: entry.nominal_patients for entry in manifest.roster},
        "minimum_cohort": manifest.minimum_cohort,
        "colluding": manifest.colluding,
        "nominal_patients": manifest.nominal_patients,
        "dimension": manifest.dimension,
        "noise_multiplier": manifest.noise_multiplier,
        "evaluation_noise_multiplier": manifest.evaluation_noise_multiplier,
        "bytes_a_round": round_bytes(manifest),
        "privacy": run_cost(plan, manifest, attempts=plan.attempts, evaluations=plan.evaluation_attempts),
        "target_epsilon": plan.privacy.epsilon,
    }


def _draft_text(draft: "Draft", document: dict[str, Any]) -> str:
    from server.cost import cost_text

    sizes, moved = document["sites"], document["bytes_a_round"]
    rounds = f"{document['rounds']} rounds, {document['spare_attempts']} spare attempts"
    if document["evaluations"]:
        rounds += f", at most {document['evaluations']} evaluations"
    lines = [
        f"plan: {draft.name}, {document['plan_digest']}",
        f"sites: {', '.join(f'{name} ({size})' for name, size in sizes.items())}; {sum(sizes.values())} patients "
        f"as published, {document['nominal_patients']} in the plan",
        f"each round: at least {document['minimum_cohort']} sites, at most {document['colluding']} of them may cheat",
        f"{document['mode']}: {rounds}; noise multiplier {document['noise_multiplier']:.4g}",
        f"{document['dimension']} parameters; {moved['site_up']} bytes up and {moved['site_down']} down a site and "
        f"attempt, {moved['all']} in all",
        f"all of it would cost each site at most {cost_text(document['privacy'], colluding=document['colluding'])}",
    ]
    return "\n".join(lines)


def _result_text(document: dict[str, Any]) -> str:
    from server.cost import cost_text

    left = ", ".join(f"{site} ({why})" for site, why in sorted(document["left"].items()))
    lines = [
        f"{document['run_id']}: {document['state']} {document['error']}".rstrip()
        + f", {document['rounds']} of {document['of']} rounds in {document['attempts']} attempts",
        f"it cost each site at most {cost_text(document['privacy'], colluding=document['colluding'])}",
    ]
    lines += [f"away at the end: {left}"] if left else []
    lines += [f"model: {document['model']}"] if document["model"] else ["no model: no round was completed"]
    lines += [f"evaluation: {document['evaluation']}"] if document["evaluation"] else []
    return "\n".join([*lines, f"everything else: {document['directory']}"])


def _say(line: str) -> None:
    from common.terminal import one_line

    tell(one_line(line))
