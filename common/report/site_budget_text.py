"""`fedward site budget` for people, at most 100 columns wide."""

import textwrap
from collections.abc import Sequence
from typing import Any

from common.report.numbers import RELATIONS, round_up
from common.terminal import one_line

_VIEWS = (("epsilon", "ε"), ("epsilon_alone", "ε alone"))
_WIDTH = 98
_FILTERS = {
    "gaussian": (
        "The filter adds up steps / z² of every charged answer, settled or not. That total bounds any sequence of full-"
        "batch plans, also of plans that were chosen after seeing earlier answers."
    ),
    "rdp": (
        "The filter adds up Rényi divergences at one order, {order}, of every charged answer, settled or not. That "
        "total bounds also plans that were chosen after seeing earlier answers; the ε above holds for plans that were "
        "fixed beforehand and is smaller. So the filter may refuse before the ε above reaches its limit."
    ),
}
_MEANING = (
    "ε holds if at most the plan's number of sites cheats, ε alone if all others do. Epsilons do not add up: left for "
    "a plan is what one more plan may cost by itself. Room is the filter's own sum, which adds up."
)


def budget_text(document: dict[str, Any]) -> str:
    """The document of `budget_document` in words and columns."""
    blocks = [
        f"{one_line(document['site'])}: {_count(document['entries'], 'entry', 'entries')}, "
        f"verified with the key in site.json\n"
        f"head {document['head']}"
    ]
    for population in document["populations"]:
        blocks += _population(population)
    if len(document["populations"]) > 1:
        blocks.append(_whole(document["site_as_a_whole"]))
    if not document["populations"]:
        blocks.append("no population is open: register a data set")
    blocks.append(_wrapped(_MEANING))
    return "\n\n".join(blocks)


def _population(population: dict[str, Any]) -> list[str]:
    relation = RELATIONS[population["relation"]]
    heading = (
        f"population {one_line(population['name'])}: δ = {population['delta']:g}, per {population['unit']}, {relation}"
    )
    views = population["views"]
    rows = [("", "spent", "limit", "left for a plan", "room used")]
    for key, name in _VIEWS:
        view = views[key]
        rows.append(
            (name, _epsilon(view["spent"]), f"{view['limit']:.2f}", _down(view["left"]), _share(view["room_used"]))
        )
    blocks = [heading + "\n" + _table(rows), _answers(population["answers"])]
    kind = population["filter"]
    blocks.append(_wrapped(_FILTERS[kind["kind"]].format(order=kind["order"])))
    blocks.append(_forecast(population["forecast"]))
    if population["plan"] is not None:
        blocks.append(_plan(population["plan"]))
    return blocks


def _answers(answers: dict[str, Any]) -> str:
    rows: list[tuple[str, ...]] = [("answers", "", "of the room", "alone")]
    for state in ("settled", "burned", "reserved"):
        part = answers[state]
        shares = [_share(part["room_used"][key]) for key, _ in _VIEWS]
        rows.append((state, str(part["answers"]), *shares))
    rows.append(("charged", str(answers["charged"]), "", ""))
    return _table(rows)


def _forecast(forecast: dict[str, Any] | None) -> str:
    if forecast is None:
        return "forecast: nothing was charged yet; --plan FILE says what a plan would cost"
    event = forecast["event"]
    like = (
        f"forecast, for rounds like that of run {one_line(forecast['run'])}, round {forecast['round']}: "
        f"{event['mode']}, z = {event['noise_multiplier']:.3g}, {event['cohort_size']} sites, "
        f"{event['colluding']} may cheat; {_evaluated(forecast['evaluation'])}"
    )
    more = _wrapped(f"{_more(forecast['fits'])}{_then(forecast['then'])}", indent="  ")
    verdict = "fit" if forecast["rounds_fit"] else "do NOT fit"
    rounds = f"{forecast['rounds']} more rounds {verdict}{_then(forecast['after_rounds'])}"
    lines = [_wrapped(like), more]
    if forecast["rounds"] != forecast["fits"]:
        lines.append(_wrapped(rounds, indent="  "))
    return "\n".join(lines)


def _evaluated(evaluation: dict[str, Any] | None) -> str:
    """What the forecast counts beside the rounds."""
    if evaluation is None:
        return "that run was charged no evaluation so far, and none is counted"
    every = evaluation["every"]
    after = "each round" if every == 1 else f"every {every} rounds"
    return f"an evaluation after {after} counted too, z = {evaluation['event']['noise_multiplier']:.3g}"


def _plan(plan: dict[str, Any]) -> str:
    evaluations = f" and {_count(plan['evaluations'], 'evaluation')}" if plan["evaluations"] else ""
    lines = [
        _wrapped(
            f"plan {plan['digest'][:19]}…: {_count(plan['attempts'], 'attempt')}{evaluations} with "
            f"{plan['sites']} sites of which {plan['colluding']} may cheat, z = {plan['noise_multiplier']:.4g}"
        )
    ]
    rows = [("", "the plan costs", "and in all")]
    rows += [(name, _epsilon(plan["cost"][key]), _epsilon(plan["after"][key])) for key, name in _VIEWS]
    lines.append(_table(rows))
    if plan["fits"]:
        lines.append("it fits")
    else:
        lines += [_wrapped(f"it would be refused: {reason}") for reason in plan["refused"]]
    return "\n".join(lines)


def _whole(whole: dict[str, Any]) -> str:
    shown = []
    for key, words in (("composed", "a person in every population"), ("largest", "a person in one of them")):
        values = ", ".join(f"{name} {_epsilon(whole[key][view])}" for view, name in _VIEWS)
        shown.append(f"{words}: {values}" + (f", {whole['largest_holds']}" if key == "largest" else ""))
    guarantee = f"δ = {whole['delta']:g}, per {whole['unit'] or 'patient or record'}, {RELATIONS[whole['relation']]}"
    lines = [f"the site as a whole ({guarantee}):", *(_wrapped(line, indent="  ") for line in shown)]
    return "\n".join(lines)


def _more(count: int) -> str:
    if count == 0:
        return "no more fits; now"
    return f"{count} more {'fits' if count == 1 else 'fit'}"


def _then(after: dict[str, float | None] | None) -> str:
    if after is None:
        return ""
    return ": " + ", ".join(f"{name} {_epsilon(after[key])}" for key, name in _VIEWS)


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(map(str.rjust, others, widths[1:]))]
        lines.append(("  " + "   ".join(cells)).rstrip())
    return "\n".join(lines)


def _wrapped(text: str, *, indent: str = "") -> str:
    return textwrap.fill(text, _WIDTH, initial_indent=indent, subsequent_indent=2 * indent)


def _count(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def _epsilon(value: float | None) -> str:
    return "unknown" if value is None else round_up(value)


def _down(value: float) -> str:
    """Two decimals, never above the value: what is left is not made larger by rounding."""
    return f"{int(value * 100 + 1e-9) / 100:.2f}"


def _share(value: float | None) -> str:
    return "no room" if value is None else f"{100 * value:.1f} %"
