"""`fedward audit`: check what was spent, offline, from files alone."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.report.subcommands import LazySubcommands

if TYPE_CHECKING:
    from common.report.audit import AuditVerdict, LedgerVerdict

audit = typer.Typer(
    name="audit",
    cls=LazySubcommands,
    no_args_is_help=True,
    add_completion=False,
    help="Check what was spent, offline, from files alone.",
)


class OutputFormat(StrEnum):
    """How the result is printed."""

    TEXT = "text"
    JSON = "json"


@audit.callback()
def _group() -> None:
    """Check what was spent, offline, from files alone."""


_Paths = Annotated[list[Path], typer.Argument(metavar="RUN_DIR|LEDGER...", help="Runs, and ledgers of their sites.")]
_Witness = Annotated[
    list[Path] | None,
    typer.Option("--witness", metavar="FILE", help="Heads that another party holds; besides those of the run."),
]
_Trust = Annotated[
    Path | None, typer.Option("--trust", metavar="FILE", help="Pinned keys; instead of the run's trust.json.")
]


@audit.command()
def verify(
    paths: _Paths,
    witness: _Witness = None,
    trust: _Trust = None,
    output: Annotated[OutputFormat, typer.Option("--format", help="How to print the result.")] = OutputFormat.TEXT,
) -> None:
    """Verify ledgers: signatures, chain, witnessed heads, and every epsilon anew against its limit.

    Exit codes: 0 verified, 10 self-consistent but not witnessed, 9 corrupt, 12 a false head, 7 over a limit.
    """
    from common.report.audit import verify_paths

    verdict = verify_paths(paths, witness_files=witness or (), trust_file=trust)
    if output is OutputFormat.JSON:
        import json

        typer.echo(json.dumps(verdict.to_json()))  # ASCII: a terminal obeys some signs that JSON leaves raw
    else:
        typer.echo(_as_text(verdict))
    if verdict.error is not None:
        raise verdict.error


@audit.command()
def report(
    paths: _Paths,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR|FILE", help="Where to; else audit-report.html and .json in this directory."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a report that is there.")] = False,
    witness: _Witness = None,
    trust: _Trust = None,
    output: Annotated[
        OutputFormat, typer.Option("--format", help="json: the document on stdout, files only with --out.")
    ] = OutputFormat.TEXT,
) -> None:
    """Write one HTML page and one JSON document: every event in plain words, every epsilon, who vouches for them.

    A ledger that fails is reported too. Exit codes: 0 verified, 10 self-consistent but not witnessed, 9 corrupt,
    12 a false head, 7 over a limit.
    """
    from datetime import UTC, datetime

    from common.cli import installed_version
    from common.report.audit import verify_paths
    from common.report.dossier import audit_dossier
    from common.report.writing import ReportFiles, encode_dossier

    as_json = output is OutputFormat.JSON
    files = None if as_json and out is None else ReportFiles.at(out or Path(), force=force)
    verdict = verify_paths(paths, witness_files=witness or (), trust_file=trust)
    document = audit_dossier(verdict, written=datetime.now(UTC), fedward_version=installed_version())
    if files is not None:
        files.write(document)
    if as_json:
        typer.echo(encode_dossier(document), nl=False)
    elif files is not None:
        typer.echo(f"{files.html}\n{files.json}\nverdict: {verdict.words}")
    if verdict.error is not None:
        raise verdict.error


_HEADINGS = ("site", "population", "ε", "limit", "ε alone", "limit", "δ", "unit", "entries", "witnessed", "verdict")
_MEANING = "ε holds if at most the plan's number of sites cheats, ε alone if all others do"

_KEYS = {
    "given": "keys: the ones you gave with --trust",
    "run": "keys: the run's own trust.json; to rely on nobody who could write there, give yours with --trust FILE",
}


def _as_text(verdict: "AuditVerdict") -> str:
    from common.terminal import one_line

    rows = [tuple(map(one_line, row)) for ledger in verdict.ledgers for row in _rows(ledger)]
    widths = [max(len(row[column]) for row in (_HEADINGS, *rows)) for column in range(len(_HEADINGS))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (_HEADINGS, *rows)]
    heads = [
        f"head of {one_line(ledger.site)}: {ledger.report.head.digest}" for ledger in verdict.ledgers if ledger.report
    ]
    notes = [one_line(note) for ledger in verdict.ledgers for note in _notes(ledger)]
    relations = {population.relation for ledger in verdict.ledgers for population in ledger.populations}
    notes[:0] = [f"relation {relation}; {_MEANING}" for relation in sorted(relations)]
    notes.append(_KEYS[verdict.keys])
    blocks = (lines, heads, notes, [f"verdict: {verdict.words}"])
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _rows(ledger: "LedgerVerdict") -> list[tuple[str, ...]]:
    from common.report.numbers import round_up

    report = ledger.report
    if report is None:
        return [(ledger.site, *("-" for _ in _HEADINGS[2:]), ledger.verdict)]
    witnessed = "nobody" if report.witnessed_seq is None else f"up to {report.witnessed_seq}"
    end = (str(report.entries), witnessed, ledger.verdict)
    return [
        (
            ledger.site,
            population.name,
            round_up(population.epsilon),
            f"{population.epsilon_limit:.2f}",
            round_up(population.epsilon_alone),
            f"{population.epsilon_alone_limit:.2f}",
            f"{population.delta:g}",
            population.unit,
            *end,
        )
        for population in ledger.populations
    ] or [(ledger.site, *("-" for _ in _HEADINGS[4:]), *end)]


def _notes(ledger: "LedgerVerdict") -> list[str]:
    notes = []
    if ledger.report is not None and ledger.report.key is not None and not ledger.report.key_pinned:
        notes.append(f"{ledger.site}: key {ledger.report.key.fingerprint} is taken from the ledger itself, not pinned")
    for population in ledger.populations:
        parts = [f"{population.settled} settled"]
        if population.burned:
            parts.append(f"{population.burned} burned")
        if population.unsettled:
            parts.append(f"{population.unsettled} unsettled, counted as spent")
        notes.append(f"{ledger.site}: {population.charged} answers charged in {population.name}: {', '.join(parts)}")
    return notes
