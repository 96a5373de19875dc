"""How a population's epsilon grew with every charged answer, against its two limits."""

from collections.abc import Mapping, Sequence
from typing import Any

from common.report.drawing import ALONE, GRID, INK, MUTED, TEXT_PX, TRUSTED, ChartWords, blank_figure, ticks, to_svg
from common.report.numbers import round_up

HEIGHT_PX = 230
# A limit this many times what was spent would press the curve flat: it is said below the chart, not drawn.
_FARTHEST_LIMIT = 8.0


def spending_chart(name: str, curve: Sequence[Mapping[str, Any]], limits: Mapping[str, float]) -> str:
    """Two lines, ε and ε alone, over the number of charged answers, their limits dashed. "" without known rows.

    Args:
        name: Names the chart on its page; letters, digits and dashes.
        curve: Rows with `charged`, `epsilon`, `epsilon_alone` (None: unknown, not drawn), ascending.
        limits: By `epsilon` and `epsilon_alone`.
    """
    curve = [row for row in curve if None not in (row["epsilon"], row["epsilon_alone"])]
    if not curve:
        return ""
    figure, axes = blank_figure(HEIGHT_PX, left=40, right=18, top=14, bottom=42)
    answers = [row["charged"] for row in curve]
    most = max(row[view] for row in curve for view in limits)
    drawn = {view: limit for view, limit in limits.items() if limit <= _FARTHEST_LIMIT * most}
    axes.set_xlim(0, answers[-1])
    axes.set_ylim(0, 1.14 * max(most, *drawn.values()) if drawn else 1.14 * most)
    axes.grid(axis="y", color=GRID, linewidth=1)
    axes.set_xlabel("answers charged", color=MUTED)
    axes.xaxis.set_major_locator(ticks(6, integer=True))
    axes.yaxis.set_major_locator(ticks(5))
    for view, colour, label, side, away in (
        ("epsilon", TRUSTED, "limit of ε", "top", -5),
        ("epsilon_alone", ALONE, "limit of ε alone", "bottom", 2),
    ):
        if view in drawn:
            axes.axhline(drawn[view], color=colour, linewidth=1.5, dashes=(4, 3), gid=f"{view}_limit")
            axes.annotate(label, (0.01, drawn[view]), (0, away), color=INK, va=side, fontsize=TEXT_PX, parse_math=False,
                          xycoords=axes.get_yaxis_transform(), textcoords="offset points")  # fmt: skip
        spent = [row[view] for row in curve]
        axes.plot([0, *answers], [0.0, *spent], color=colour, linewidth=2.25, gid=view, clip_on=False)
        axes.plot(answers[-1:], spent[-1:], "o", color=colour, markersize=7, gid=f"{view}-last", clip_on=False)
    last = curve[-1]
    words = ChartWords(
        name=name,
        title="Privacy spent with every charged answer",
        description=f"After {answers[-1]} answers ε is {round_up(last['epsilon'])} of {limits['epsilon']:.4g} and ε "
        f"alone {round_up(last['epsilon_alone'])} of {limits['epsilon_alone']:.4g}.",
    )
    return to_svg(figure, axes, words)
