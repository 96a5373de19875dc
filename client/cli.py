"""`fedward site`: a hospital's or bank's own node."""

from pathlib import Path
from typing import Annotated

import typer

from client import cli_enrolment, cli_node, cli_setup
from client.cli_options import Home, Output, OutputFormat, print_json

site = typer.Typer(
    name="site",
    no_args_is_help=True,
    add_completion=False,
    help="Run a hospital's or bank's node: its data, its rules, its privacy budget.",
)


@site.callback()
def _group() -> None:
    """Run a hospital's or bank's node: its data, its rules, its privacy budget."""


@site.command()
def budget(
    home: Home = Path(),
    rounds: Annotated[int, typer.Option(min=1, max=10**6, help="Forecast so many more rounds.")] = 30,
    plan: Annotated[
        Path | None, typer.Option("--plan", metavar="FILE", help="Forecast this plan (plan.json) as a whole.")
    ] = None,
    sites: Annotated[
        int | None, typer.Option("--sites", min=3, help="Sites that would take part in --plan; default: as last time.")
    ] = None,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Show what is spent, reserved and left, per population, and what still fits.

    Needs no passphrase, takes no lock and writes nothing, so an agent may be running. Exit code 9: the ledger does not
    verify.
    """
    from common.report.plan_forecast import read_plan
    from common.report.site_budget import budget_document
    from common.report.site_ledger import read_site_ledger

    wanted = None if plan is None else read_plan(plan)
    document = budget_document(read_site_ledger(home), rounds=rounds, plan=wanted, sites=sites)
    if output is OutputFormat.JSON:
        print_json(document)
    else:
        from common.report.site_budget_text import budget_text

        typer.echo(budget_text(document))


@site.command()
def ledger(
    home: Home = Path(),
    last: Annotated[int, typer.Option(min=0, help="Show so many of the newest entries; 0: all.")] = 20,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="FILE", help="Write all entries to FILE.json or FILE.csv.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Let --export replace a file.")] = False,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Show or export what was charged, entry by entry, newest last.

    Needs no passphrase, takes no lock and writes nothing but the export. Exit code 9: the ledger does not verify.
    """
    from common.report.ledger_export import export_document, write_export
    from common.report.site_ledger import read_site_ledger

    found = read_site_ledger(home)
    if export is not None:
        write_export(found, export, force=force)
        typer.echo(f"{found.site}: {found.head.seq} entries written to {export}", err=True)
    elif output is OutputFormat.JSON:
        print_json(export_document(found))
    else:
        from common.report.ledger_text import ledger_text

        typer.echo(ledger_text(found, last=last))


cli_setup.add_to(site)
cli_enrolment.add_to(site)
cli_node.add_to(site)
