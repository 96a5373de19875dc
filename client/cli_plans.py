"""`fedward site plans list | show | approve | reject`."""

from pathlib import Path
from typing import Annotated

import typer

from client.cli_options import Home, Output, OutputFormat, print_json

plans = typer.Typer(
    name="plans",
    no_args_is_help=True,
    add_completion=False,
    help="Read the plans that were offered, and decide on them.",
)
Which = Annotated[
    str, typer.Argument(metavar="DIGEST|FILE", help="8 or more digits of a plan's digest, or a plan.json.")
]


@plans.command("list")
def list_(home: Home = Path(), output: Output = OutputFormat.TEXT) -> None:
    """Show the plans that the coordinator offered, and what was decided. Needs no passphrase."""
    from client.plan_review_text import offers_text
    from client.plans import offer_rows
    from client.site_view import SiteView

    site = SiteView.open(home)
    kept = site.offers()
    rows = offer_rows(kept.offers, site.decisions())
    if output is OutputFormat.JSON:
        print_json({"version": 1, "site": site.name, "plans": rows, "unreadable": kept.unreadable})
    else:
        typer.echo(offers_text(rows, unreadable=kept.unreadable))


@plans.command()
def show(plan: Which, home: Home = Path(), output: Output = OutputFormat.TEXT) -> None:
    """Show what a plan would compute, what it would cost, what the rules say, and what would leave.

    Needs no passphrase, takes no lock and decides nothing.
    """
    from client.plan_review import find_subject, review
    from client.plan_review_text import review_text
    from client.site_view import SiteView
    from common.policy import local_time

    site = SiteView.open(home)
    typer.echo(f"{site.name}: working out what the plan costs", err=True)
    document = review(site, find_subject(site, plan), now=local_time())
    if output is OutputFormat.JSON:
        print_json(document)
    else:
        typer.echo(review_text(document))


@plans.command()
def approve(
    plan: Which,
    home: Home = Path(),
    population: Annotated[
        str | None, typer.Option("--population", metavar="NAME", help="Whose budget it may spend, if it fits several.")
    ] = None,
    runs: Annotated[
        int, typer.Option("--runs", min=1, max=10**6, help="How many more runs of it may begin; each is charged.")
    ] = 1,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Let one run of a plan, or so many, spend a population's budget. A plan that is changed by one sign is another.

    What policy, budget or data would refuse is not approved: exit codes 5, 6, 7. A run counts from its first answer; it
    may be resumed and asked again. The coordinator asks again by itself.
    """
    from client.home import open_home
    from client.plan_decision import approve_plan
    from client.plan_review import find_subject
    from client.plan_review_text import judged_text
    from client.site_view import SiteView
    from client.unlock import ask_passphrase

    site = SiteView.open(home)
    subject = find_subject(site, plan)
    typer.echo(judged_text(subject), err=True)
    opened = open_home(home, passphrase=ask_passphrase())
    digest = subject.plan.digest
    chosen = approve_plan(opened, site.accounts(), subject, population=population, runs=runs)
    if output is OutputFormat.JSON:
        offered = None if subject.offer is None else subject.manifest.run_id
        decided = {"state": "approved", "population": chosen, "runs_left": runs, "judged_by_offer_of": offered}
        print_json({"version": 1, "site": site.name, "digest": digest, **decided})
    else:
        often = "1 run" if runs == 1 else f"{runs} runs"
        typer.echo(f"approved for population {chosen}, {often}: {digest}")


@plans.command()
def reject(plan: Which, home: Home = Path(), output: Output = OutputFormat.TEXT) -> None:
    """Refuse a plan until it is approved; a run of it that is under way gets no further answer from here."""
    from datetime import UTC, datetime

    from client.home import open_home
    from client.plan_review import decided_digest
    from client.site_view import SiteView
    from client.unlock import ask_passphrase

    site = SiteView.open(home)
    digest = decided_digest(site, plan)
    opened = open_home(home, passphrase=ask_passphrase())
    opened.reject(digest, time=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"))
    if output is OutputFormat.JSON:
        print_json({"version": 1, "site": site.name, "digest": digest, "state": "rejected"})
    else:
        typer.echo(f"rejected: {digest}")
