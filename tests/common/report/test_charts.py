import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from common.report.charts import MAXIMUM_SITES_DRAWN, TEXT_PX, accuracy_chart, comparison_chart, epsilon_chart

HISTORY = [{"round": number, "accuracy": 0.6 + 0.01 * number, "loss": 0.5} for number in range(1, 31)]


def site(name, spent=2.9):
    return {
        "name": name,
        "epsilon": spent,
        "epsilon_alone": 2 * spent,
        "epsilon_limit": 3.0,
        "epsilon_alone_limit": 6.0,
    }


SITES = [site("north"), site("south", 1.5)]
ROWS = [
    {"key": "federated", "label": "This run", "accuracy": 0.96},
    {"key": "pooled_dp", "label": "Data pooled, private", "accuracy": 0.97},
]
INTERVALS = {"federated": [0.9, 0.98]}
CHARTS = {
    "accuracy": lambda: accuracy_chart(HISTORY, pooled=0.97),
    "epsilon": lambda: epsilon_chart(SITES),
    "comparison": lambda: comparison_chart(ROWS, INTERVALS),
}


def points(svg, gid):
    """The path points of one drawn thing, in data units."""
    found = re.search(rf'<g id="{re.escape(gid)}"><path d="([^"]*)"', svg)
    axes = json.loads(re.search(r"data-axes='([^']*)'", svg)[1])
    pairs = re.findall(r"[ML] (\S+) (\S+)", found[1])
    return [((float(x) - axes["x"][0]) / axes["x"][1], (float(y) - axes["y"][0]) / axes["y"][1]) for x, y in pairs]


@pytest.mark.parametrize("name", CHARTS)
def test_the_same_numbers_give_the_same_bytes(name):
    assert CHARTS[name]() == CHARTS[name]()


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_is_one_well_formed_picture_with_words(name):
    root = ElementTree.fromstring(CHARTS[name]())
    assert root.get("role") == "img"
    assert root.get("aria-labelledby") == f"{name}-title {name}-desc"
    assert [child.tag.rpartition("}")[2] for child in root[:2]] == ["title", "desc"]
    assert all(child.text for child in root[:2])


@pytest.mark.parametrize("name", CHARTS)
def test_text_is_readable_and_in_the_fonts_of_the_page(name):
    svg = CHARTS[name]()
    sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", svg)]
    assert sizes
    assert min(sizes) >= TEXT_PX
    assert "font-family" not in svg


@pytest.mark.parametrize("name", CHARTS)
def test_every_colour_is_one_of_the_page(name):
    colours = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", CHARTS[name]())) - {"none"}
    assert colours
    assert all(re.fullmatch(r"var\(--chart-[a-z]+, #[0-9a-f]{6}\)", colour) for colour in colours)


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_asks_for_nothing(name):
    svg = CHARTS[name]()
    assert set(re.findall(r"https?://[^\"]*", svg)) == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert re.findall(r"url\((?!#)", svg) == []
    assert "<style" not in svg


def test_ids_of_all_charts_differ():
    ids = [found for chart in CHARTS.values() for found in re.findall(r'\bid="([^"]*)"', chart())]
    assert len(ids) == len(set(ids))


def test_references_inside_a_chart_lead_somewhere():
    for chart in CHARTS.values():
        svg = chart()
        wanted = set(re.findall(r'(?:url\(|href=")#([^")]*)', svg))
        assert wanted <= set(re.findall(r'\bid="([^"]*)"', svg))


def test_the_drawn_line_is_the_history():
    drawn = points(accuracy_chart(HISTORY, pooled=None), "accuracy-line")
    assert [x for x, _ in drawn] == pytest.approx([row["round"] for row in HISTORY], abs=1e-3)
    assert [y for _, y in drawn] == pytest.approx([100 * row["accuracy"] for row in HISTORY], abs=1e-3)


def test_bars_are_as_long_as_what_was_spent():
    svg = epsilon_chart(SITES)
    for place, row in enumerate(SITES):
        for key in ("epsilon", "epsilon_alone"):
            assert max(x for x, _ in points(svg, f"epsilon-{key}-{place}")) == pytest.approx(row[key], abs=1e-3)


def test_intervals_are_drawn_from_end_to_end():
    drawn = points(comparison_chart(ROWS, INTERVALS), "comparison-interval-federated")
    assert [x for x, _ in drawn] == pytest.approx([90, 98], abs=1e-3)


def test_of_many_sites_those_nearest_to_a_limit_are_drawn():
    many = [site(f"s{number}", 0.1 + 0.01 * number) for number in range(60)]
    svg = epsilon_chart(many)
    drawn = {int(place) for place in re.findall(r'id="epsilon-epsilon-(\d+)"', svg)}
    assert drawn == set(range(60 - MAXIMUM_SITES_DRAWN, 60))


def test_what_is_unknown_is_not_drawn_and_said_to_be_unknown():
    unknown = site("north") | {"epsilon": None, "epsilon_limit": None}
    svg = epsilon_chart([unknown, site("south")])
    assert 'id="epsilon-epsilon-0"' not in svg
    assert "ε unknown" in svg


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a & b", "$x^2$", '" onload="x', "长名字" * 30])
def test_a_site_name_is_only_text(name):
    root = ElementTree.fromstring(epsilon_chart([site(name)]))
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert "script" not in tags
    assert all(not attribute.startswith("on") for element in root.iter() for attribute in element.attrib)
    assert name in root[1].text


def test_nothing_to_draw_is_no_chart():
    assert accuracy_chart([], pooled=None) == ""
    assert epsilon_chart([]) == ""
    assert comparison_chart([{"key": "federated", "label": "This run", "accuracy": None}], {}) == ""


def test_one_round_is_a_chart():
    assert "accuracy-last" in accuracy_chart(HISTORY[:1], pooled=0.97)


def test_matplotlib_is_imported_only_to_draw():
    code = "import sys, common.report.charts, common.report.page; print('matplotlib' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
