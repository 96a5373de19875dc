"""The report as a reader gets it: a file, opened offline, on a desk and on a phone, by day and by night.

Every `check_…` takes a tab and a directory with `summary.json` and `report.html`, whoever wrote them.
"""

import hashlib
import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from sklearn.datasets import load_breast_cancer

from common.report.audit import verify_paths

pytestmark = pytest.mark.browser

SMALLEST_TEXT_PX = 11
LEAST_CONTRAST = 4.5
PIXEL = 0.5

SHOWN_VALUES = """() => [...document.querySelectorAll('[data-key]')].map(found =>
    [found.dataset.key, found.dataset.value, found.textContent])"""

# What a reader sees: gridlines and tick labels, and what is drawn among them.
DRAWN = r"""name => {
  const chart = document.querySelector(`svg[data-chart="${name}"]`);
  const numbers = path => [...path.getAttribute('d').matchAll(/[ML] (\S+) (\S+)/g)].map(m => [+m[1], +m[2]]);
  const ticks = [...chart.querySelectorAll('[id*="tick_"]')].map(tick => {
    const label = tick.querySelector('text'), line = tick.querySelector('path');
    return {axis: tick.id.includes('xtick') ? 'x' : 'y', value: parseFloat(label.textContent),
            at: tick.id.includes('xtick') ? +label.getAttribute('x') : numbers(line)[0][1]};
  });
  const things = {};
  for (const group of chart.querySelectorAll('g[id]')) {
    const mark = group.querySelector(':scope > use, :scope > g > use');
    const path = group.querySelector(':scope > path');
    if (mark) things[group.id] = [[+mark.getAttribute('x'), +mark.getAttribute('y')]];
    else if (path) things[group.id] = numbers(path);
  }
  return {ticks, things, width: chart.viewBox.baseVal.width, shown: chart.getBoundingClientRect().width};
}"""

SMALL_TEXT = """limit => [...document.querySelectorAll('svg.chart text')].map(text => {
    const svg = text.ownerSVGElement;
    const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
    return [text.textContent, parseFloat(getComputedStyle(text).fontSize) * scale];
  }).filter(([, size]) => size < limit)"""

PALE_TEXT = """limit => {
  const parse = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.querySelectorAll('body *')) {
    const own = [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim());
    if (!own || node.tagName === 'title' || node.tagName === 'desc' || node.tagName === 'STYLE') continue;
    const style = getComputedStyle(node);
    const [a, b] = [light(parse(node instanceof SVGElement ? style.fill : style.color)), light(behind(node))];
    const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (contrast < limit) found.push([node.textContent.trim().slice(0, 40), contrast]);
  }
  return found;
}"""


def open_report(page, directory):
    page.goto((directory / "report.html").as_uri())
    return json.loads((directory / "summary.json").read_text(encoding="utf-8"))


def look_up(summary, key):
    """The value of a key, read by other code than the page's own; `*` stands for every element."""
    reduce, _, path = key.rpartition(":")
    nodes = [summary]
    for part in path.split("."):
        following = []
        for node in nodes:
            if part == "*":
                following += node
            elif isinstance(node, list):
                following.append(node[int(part)])
            else:
                following.append(None if node is None else node.get(part))
        nodes = following
    if reduce == "sum":
        return None if None in nodes else sum(nodes)
    if reduce == "len":
        return len(nodes[0])
    assert reduce == ""
    return nodes[0]


def check_quiet(page, directory):
    open_report(page, directory)
    page.wait_for_load_state("networkidle")
    assert page.seen == []


def check_layout(page, directory):
    open_report(page, directory)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate(SMALL_TEXT, SMALLEST_TEXT_PX) == []
    assert page.evaluate(PALE_TEXT, LEAST_CONTRAST) == []


def check_values(page, directory):
    summary = open_report(page, directory)
    shown = page.evaluate(SHOWN_VALUES)
    assert len(shown) > 100
    for key, raw, text in shown:
        assert json.loads(raw) == look_up(summary, key), key
        assert text.strip(), key


def scale(drawn, axis):
    """Pixels to values by the outermost two tick labels of an axis."""
    ticks = sorted((tick["at"], tick["value"]) for tick in drawn["ticks"] if tick["axis"] == axis)
    (first, low), (last, high) = ticks[0], ticks[-1]
    assert first != last
    return lambda at: low + (at - first) * (high - low) / (last - first), abs((high - low) / (last - first))


def check_accuracy_chart(page, directory):
    history = open_report(page, directory)["history"]
    drawn = page.evaluate(DRAWN, "accuracy")
    (x, x_pixel), (y, y_pixel) = scale(drawn, "x"), scale(drawn, "y")
    line = drawn["things"]["accuracy-line"]
    assert [x(at) for at, _ in line] == pytest.approx([row["round"] for row in history], abs=PIXEL * x_pixel)
    assert [y(at) for _, at in line] == pytest.approx([100 * row["accuracy"] for row in history], abs=PIXEL * y_pixel)


def check_epsilon_chart(page, directory):
    sites = open_report(page, directory)["sites"]
    drawn = page.evaluate(DRAWN, "epsilon")
    x, pixel = scale(drawn, "x")
    for place, site in enumerate(sites):
        for key in ("epsilon", "epsilon_alone"):
            bar = [x(at) for at, _ in drawn["things"][f"epsilon-{key}-{place}"]]
            assert (min(bar), max(bar)) == pytest.approx((0, site[key]), abs=PIXEL * pixel)
            limit = [x(at) for at, _ in drawn["things"][f"epsilon-{key}_limit-{place}"]]
            assert limit == pytest.approx([site[f"{key}_limit"]] * 2, abs=PIXEL * pixel)


def check_comparison_chart(page, directory):
    summary = open_report(page, directory)
    drawn = page.evaluate(DRAWN, "comparison")
    x, pixel = scale(drawn, "x")
    for key, measured in summary["metrics"].items():
        if measured is None:
            assert f"comparison-dot-{key}" not in drawn["things"]
            continue
        ((at, _),) = drawn["things"][f"comparison-dot-{key}"]
        assert x(at) == pytest.approx(100 * measured["accuracy"], abs=PIXEL * pixel)
        if ends := (summary.get("comparison_intervals") or {}).get(key):
            interval = [x(at) for at, _ in drawn["things"][f"comparison-interval-{key}"]]
            assert interval == pytest.approx([100 * end for end in ends], abs=PIXEL * pixel)


def check_ledgers(directory):
    """The summary's epsilons and heads, derived again from the ledgers that the run left."""
    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    verdict = verify_paths([directory])
    assert verdict.words == summary["ledger_verdict"]
    ledgers = {ledger.site: ledger for ledger in verdict.ledgers}
    for site in summary["sites"]:
        ledger = ledgers[site["name"]]
        assert ledger.report.entries == site["ledger_entries"]
        assert ledger.report.head.digest == site["ledger_head"]
        (population,) = ledger.populations
        for key in ("epsilon", "epsilon_alone", "epsilon_limit", "epsilon_alone_limit", "delta"):
            assert getattr(population, key) == pytest.approx(site[key], rel=1e-9), key


def check_report(page, directory):
    """Everything above."""
    for check in (check_quiet, check_layout, check_values, check_accuracy_chart, check_epsilon_chart):
        check(page, directory)
    check_comparison_chart(page, directory)


by_day_and_night = pytest.mark.parametrize("colours", ["light", "dark"], indirect=True)


@by_day_and_night
def test_the_report_asks_for_nothing_and_reports_no_error(page, report_directory):
    check_quiet(page, report_directory)


@by_day_and_night
def test_the_page_never_scrolls_sideways_and_its_text_is_large_and_dark_enough(page, report_directory):
    check_layout(page, report_directory)


def test_every_shown_value_is_that_of_summary_json(page, report_directory):
    check_values(page, report_directory)


def test_the_drawn_accuracy_is_that_of_summary_json(page, report_directory):
    check_accuracy_chart(page, report_directory)


def test_the_drawn_epsilons_are_those_of_summary_json(page, report_directory):
    check_epsilon_chart(page, report_directory)


def test_the_drawn_comparison_is_that_of_summary_json(page, report_directory):
    check_comparison_chart(page, report_directory)


def test_the_epsilons_of_a_real_run_follow_from_its_ledgers(real_run):
    check_ledgers(real_run)


def test_the_accuracy_of_a_real_run_follows_from_its_model(real_run):
    """Worked out from the released files and scikit-learn's data, without the code that wrote the summary."""
    card = json.loads((real_run / "model" / "card.json").read_text(encoding="utf-8"))
    tensors = load_file(real_run / "model" / "model.safetensors")
    data = load_breast_cancer()
    test_rows = []
    for label, tuning, public in ((0, 16, 53), (1, 27, 90)):
        rows = [row for row in range(569) if data.target[row] == label]
        rows.sort(key=lambda row: hashlib.sha256(f"fedward-breast-public-v1:{row}".encode()).digest())
        test_rows += rows[tuning:public]
    constants = card["normalisation"]
    inputs = (data.data[test_rows].astype(np.float32) - np.array(constants["center"])) / np.array(constants["scale"])
    inputs = inputs.clip(-constants["limit"], constants["limit"])
    inputs *= np.minimum(1, constants["record_norm"] / np.linalg.norm(inputs, axis=1, keepdims=True))
    logits = inputs @ tensors["head.weight"].T + tensors["head.bias"]
    names = np.array(card["task"]["classes"])[logits.argmax(axis=1)]
    summary = json.loads((real_run / "summary.json").read_text(encoding="utf-8"))
    assert (names == data.target_names[data.target[test_rows]]).mean() == summary["metrics"]["federated"]["accuracy"]


def test_the_wide_tables_scroll_inside_themselves(page, report_directory, width_px):
    open_report(page, report_directory)
    inside = page.evaluate("[...document.querySelectorAll('.scroll')].some(box => box.scrollWidth > box.clientWidth)")
    assert inside == (width_px == 390)


def test_a_closed_list_of_columns_opens_without_a_script(page, report_directory):
    open_report(page, report_directory)
    first = page.locator("details").first
    if first.count() == 0:
        pytest.skip("this run has no table to de-identify")
    first.locator("summary").click()
    assert first.locator("table").is_visible()
