"""A plan's review in plain words, at most 100 columns wide."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from client.plan_review import Subject
from common.canonical import DIGEST_PREFIX
from common.report.numbers import RELATIONS, round_up
from common.terminal import one_line

SHOWN_DIGITS = 12
_WIDTH = 98
_LONGEST_NAME = 40
_VIEWS = (("epsilon", "ε"), ("epsilon_alone", "ε alone"))
_STATES = {"waiting": "waits for a decision", "rejected": "was rejected here"}
_MEANING = (
    "ε holds if at most the plan's number of sites cheats, ε alone if all others do. Epsilons do not add up: left is "
    "what one more plan may cost by itself. Every attempt is counted, also those that may never be needed. These are "
    "the costs of one run; an approval holds for one unless it says for how many, and each is charged by itself."
)


def short(digest: str) -> str:
    """As many digits of a digest as people are shown; the commands take them."""
    return digest.removeprefix(DIGEST_PREFIX)[:SHOWN_DIGITS]


def review_text(document: dict[str, Any]) -> str:
    """The document of `review` in words and columns."""
    blocks = [
        _heading(document),
        _block("what would be computed", _computed(document["computes"])),
        _block("who takes part", _roster(document)),
        _block("what it would cost, if every attempt is used", _costs(document["populations"])),
        _block("what this site's rules say", _rules(document)),
        _block("what would leave this site", _leaves(document)),
    ]
    return "\n\n".join(blocks)


def judged_text(subject: Subject) -> str:
    """With which sites a plan is judged before it is approved; whose it is decides about ε alone."""
    sites = len(subject.manifest.roster)
    if subject.offer is None:
        said = f"not offered yet: judged as if all {sites} pinned sites took part"
    else:
        said = f"judged with the {sites} sites of run {subject.manifest.run_id}, the newest offer of this plan"
    return f"{said}; each run is checked once more, with its own sites, when it asks"


def offers_text(rows: Sequence[dict[str, Any]], *, unreadable: int) -> str:
    """The offered plans as a table, newest first."""
    cells: list[tuple[str, ...]] = [("plan", "offered", "run", "mode", "answers", "ε", "state")]
    for row in rows:
        cells.append(
            (
                short(row["digest"]),
                row["received"] or "-",
                row["run_id"] or "-",
                row["mode"] or "-",
                str(row["attempts"] or "-"),
                "-" if row["epsilon"] is None else f"{row['epsilon']:g}",
                _state(row),
            )
        )
    lines = [_columns(cells)] if rows else ["no plan was offered yet; the agent keeps each one that it is offered"]
    if unreadable:
        lines.append(f"{unreadable} files in plans/ are not offers that this site signed; delete them")
    return "\n".join(lines)


def _heading(document: dict[str, Any]) -> str:
    state = document["state"]
    said = f"is {_state(document)}" if state == "approved" else _STATES[state] + _before(document)
    lines = [f"plan {short(document['digest'])} {said}", f"  {document['digest']}"]
    offered = document["offered"]
    if offered is not None:
        lines.append(
            f"  offered by the pinned coordinator for run {offered['run_id']}, {one_line(offered['received'])}"
        )
    else:
        who = "signed by the pinned coordinator" if document["signed"] else "NOT SIGNED by anybody"
        lines.append(f"  from a file, {who}; not offered yet, so all pinned sites are taken as its roster")
    return "\n".join(lines)


def _state(row: dict[str, Any]) -> str:
    """What was decided, and for how many runs."""
    if row["state"] != "approved":
        return f"{row['state']}{_before(row)}"
    left, begun = row["runs_left"], len(row["runs_begun"])
    runs = "every run" if left is None else "1 more run" if left == 1 else f"{left} more runs"
    return f"approved for {one_line(row['population'])}: {runs}" + (f", {begun} begun" if begun else "")


def _before(row: dict[str, Any]) -> str:
    """That runs before this one were approved, where they were."""
    begun = len(row["runs_begun"])
    return f"; {begun} run{'s' * (begun > 1)} of it before" if begun else ""


def _computed(computes: dict[str, Any]) -> Iterator[str]:
    classes = ", ".join(map(_name, computes["classes"][:10]))
    yield f"{computes['task']} into {len(computes['classes'])} classes: {classes}"
    backbone = "no backbone" if computes["backbone"] == "none" else f"features of the frozen {computes['backbone']}"
    yield f"a {computes['head']} head of {computes['parameters']} numbers over {computes['inputs']}, {backbone}"
    spare = computes["attempts"] - computes["rounds"]
    yield (
        f"{computes['rounds']} rounds and {spare} spare attempts, so at most {computes['attempts']} answers; each is "
        + _steps(computes)
    )
    if computes["evaluations"]:
        yield (
            f"{100 * computes['held_out']:g} % of the patients are never trained on; on them at most "
            f"{computes['evaluations']} evaluations are counted"
        )
    else:
        yield "no evaluation; every patient is trained on"
    yield (
        f"each patient's part is cut to the norm {computes['clipping_norm']:g}, and the promised noise is "
        f"{computes['noise_multiplier']:.3g} times that"
    )


def _name(text: str) -> str:
    """A name that a coordinator chose: too short to be read as lines of this program's own."""
    shown = one_line(text)
    return shown if len(shown) <= _LONGEST_NAME else f"{shown[: _LONGEST_NAME - 1]}…"


def _steps(computes: dict[str, Any]) -> str:
    if computes["mode"] == "pooled":
        return "one step over all patients, the noise shared by the sites (pooled)"
    return (
        f"{computes['steps']} local steps, each patient in each with chance {computes['sampling_rate']:g}, all noise "
        "made here (local)"
    )


def _roster(document: dict[str, Any]) -> Iterator[str]:
    roster, site = document["roster"], document["site"]
    yield (
        f"{len(roster)} sites; a sum opens over {document['minimum_cohort']} or more, and {document['colluding']} of "
        "them may cheat"
    )
    names = [f"{entry['name']} (weight {entry['nominal_patients']})" for entry in roster if entry["name"] != site]
    yield f"beside this one: {', '.join(names[:40])}{' …' if len(names) > 40 else ''}"


def _costs(populations: Sequence[dict[str, Any]]) -> Iterator[str]:
    if not populations:
        yield "no data is registered here, so nothing can be computed"
    for population in populations:
        name = one_line(population["name"])
        if population["views"] is None:
            yield f"population {name}: {population['refused']}"
            continue
        relation = RELATIONS[population["relation"]]
        yield f"population {name}: δ = {population['delta']:g}, per {population['unit']}, {relation}"
        rows: list[tuple[str, ...]] = [("", "this plan", "spent", "then spent", "limit", "left", "then left")]
        for key, label in _VIEWS:
            view = population["views"][key]
            up = (view["cost"], view["spent"], view["after"], view["limit"])
            rows.append((label, *map(_up, up), _down(view["left"]), _down(view["left_after"])))
        yield from _columns(rows).split("\n")
        reserved = population["answers"]["reserved"]
        if reserved:
            yield f"{reserved} answers are reserved and not settled; they count as spent"
        yield "it fits" if population["fits"] else f"REFUSED: {population['refused']}"
    yield _MEANING


def _rules(document: dict[str, Any]) -> Iterator[str]:
    for rule in document["rules"]:
        yield f"{'ok ' if rule['allowed'] else 'NO '} {rule['rule']}: {rule['text']}"
    if not document["hours"]:
        yield "ok  hours: always"


def _leaves(document: dict[str, Any]) -> Iterator[str]:
    computes = document["computes"]
    meant = {(row["message"], row["field"]): row for row in document["leaves"]}
    masked, counts = meant["Masked", "vector"], meant["Histogram", "vector"]
    sent = f"at most {computes['attempts']} vectors of {computes['parameters']} numbers"
    yield f"{sent}: {masked['what']}; {masked['why']}"
    if computes["evaluations"]:
        yield f"at most {computes['evaluations']} vectors of {computes['counts']} counts: {counts['what']}"
    yield (
        f"names, digests, signatures, fresh public keys and the end of the ledger: {len(meant)} fields in all, each "
        "with its bound in the JSON of this command; nothing else can leave"
    )


def _block(title: str, lines: Iterator[str]) -> str:
    filled = [
        line if line.startswith("  ") else textwrap.fill(line, _WIDTH, initial_indent="  ", subsequent_indent="    ")
        for line in lines
    ]
    return "\n".join([title, *filled])


def _columns(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("    " + "   ".join(cells).rstrip())
    return "\n".join(lines)


def _up(value: float | None) -> str:
    return "unbounded" if value is None else round_up(value)


def _down(value: float | None) -> str:
    return "-" if value is None else f"{int(value * 100 + 1e-9) / 100:.2f}"
