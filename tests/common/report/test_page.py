import copy
import re
from html.parser import HTMLParser

import pytest

from common.report.numbers import Shown
from common.report.page import render_report
from common.report.sentences import attention, what_was_done


class Page(HTMLParser):
    """Tags, and the raw value by key of everything that was shown."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.shown, self.text = [], {}, []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag == "data":
            self.shown[attributes["data-key"]] = attributes["data-value"]

    def handle_data(self, data):
        self.text.append(data)


def words(summary):
    html = render_report(summary)
    return re.sub(r"\s+", " ", " ".join(Page(re.sub(r"(?s)<style>.*?</style>", "", html)).text))


def leaves(value, path=""):
    if isinstance(value, dict):
        for key, part in value.items():
            yield from leaves(part, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for place, part in enumerate(value):
            yield from leaves(part, f"{path}.{place}")
    else:
        yield path, value


# Shown as a total, as a picture, or not a fact of the run.
NOT_SHOWN_ONE_BY_ONE = re.compile(r"version$|history\.\d+\.|sites\.\d+\.(records|patients)$|secure_sum\.attempts$")


def test_every_number_of_the_summary_is_shown_with_its_key_and_raw_value(summary):
    page = Page(render_report(summary))
    for key, value in leaves(summary):
        if isinstance(value, int | float) and not NOT_SHOWN_ONE_BY_ONE.match(key):
            assert key in page.shown, key
            assert float(page.shown[key]) == value


def test_every_shown_value_is_that_of_the_summary(summary):
    shown = Shown(summary)
    for key, raw in Page(render_report(summary)).shown.items():
        value = shown.value(key)
        assert raw == ("null" if value is None else f'"{value}"' if isinstance(value, str) else repr(value))


def test_the_same_summary_gives_the_same_page(summary):
    assert render_report(summary) == render_report(copy.deepcopy(summary))


def test_the_page_asks_for_nothing_and_runs_nothing(summary):
    html = render_report(summary)
    page = Page(html)
    assert not {"script", "iframe", "img", "object", "embed", "form"} & {tag for tag, _ in page.tags}
    links = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert set(links) <= {"data:,"}
    assert "@import" not in html
    policy = [attributes["content"] for tag, attributes in page.tags if "http-equiv" in attributes]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_what_was_done_is_five_sentences(summary):
    sentences = what_was_done(Shown(summary))
    assert len(sentences) == 5
    for sentence in sentences:
        text = re.sub(r"<[^>]*>", "", sentence)
        assert text.endswith(".")
        assert not re.search(r"[.!?]\s+[A-Z]", text)


def test_every_epsilon_has_delta_unit_and_relation_beside_it(summary):
    text = words(summary)
    for match in re.finditer(r"ε = \d", text):
        assert re.search(r"δ = 10⁻⁵ , per patient , add/remove-one", text[match.start() : match.start() + 80])


def test_epsilon_alone_is_said_in_plain_words(summary):
    assert "if every other site and the coordinator conspire" in words(summary)


def test_a_hostile_name_is_inert(summary):
    hostile = "<script>alert(1)</script>\" onmouseover='x' {{ 7*7 }}"
    for site in summary["sites"]:
        site["name"] = hostile
        site["status"] = hostile
        site["ledger_head"] = hostile
        site["deid"]["undeclared_columns"] = [hostile]
        site["deid"]["alarms"] = {hostile: 1}
        site["deid"]["columns"] = [{"name": hostile, "action": hostile, "count": 1}]
    summary["title"] = summary["ledger_verdict"] = summary["run_id"] = summary["privacy"]["relation"] = hostile
    summary["comparison_notes"] = dict.fromkeys(summary["comparison_notes"], hostile)
    summary["task"] = {"classes": [hostile, hostile], "positive": hostile}
    page = Page(render_report(summary))
    assert "script" not in {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "49" not in [text.strip() for text in page.text]


def test_a_run_without_comparison_rows_says_so(summary):
    for key in summary["metrics"]:
        if key != "federated":
            summary["metrics"][key] = None
    summary["comparison_intervals"] = {}
    assert "The comparison rows were not trained in this run." in words(summary)


def test_a_single_row_that_was_not_trained_is_named(summary):
    summary["metrics"]["pooled_dp"] = None
    text = words(summary)
    assert "Not trained in this run: Data pooled, private." in text


def test_version_1_without_any_added_key_is_a_report(summary):
    added = ("title", "fedward_version", "started", "task", "residual_scan", "model", "comparison_notes")
    for key in (*added, "comparison_intervals"):
        del summary[key]
    for key in ("colluding", "noise_multiplier", "clipping_norm", "nominal_patients", "replace_one", "groups"):
        del summary["privacy"][key]
    for site in summary["sites"]:
        for key in ("unsettled", "status", "witnessed_seq"):
            del site[key]
        site["deid"] = {key: site["deid"][key] for key in ("in", "released", "quarantined", "rejected")}
    v1 = {"dropouts", "exchanges", "bytes_per_parameter", "attempts", "site_dropouts"}
    summary["secure_sum"] = {key: value for key, value in summary["secure_sum"].items() if key in v1}
    assert "unknown" in words(summary)


def test_null_in_place_of_anything_added_is_a_report(summary):
    summary["privacy"] |= dict.fromkeys(("colluding", "noise_multiplier", "replace_one", "groups"))
    summary |= dict.fromkeys(("residual_scan", "model", "task", "comparison_notes", "comparison_intervals", "title"))
    summary["metrics"] = dict.fromkeys(summary["metrics"])
    summary["history"] = []
    for site in summary["sites"]:
        site["deid"] = None
    text = words(summary)
    assert "No residual scan is recorded" in text
    assert "No de-identification is recorded" in text


def test_another_version_is_refused(summary):
    with pytest.raises(ValueError, match="version 1"):
        render_report(summary | {"version": 2})


def test_a_good_run_needs_no_attention(summary):
    assert attention(Shown(summary)) == []
    assert "All recorded checks passed." in words(summary)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.update(ledger_verdict="self-consistent, not witnessed"), "The ledgers are not verified"),
        (lambda s: s["sites"][1].update(epsilon=3.2), "over its limit"),
        (lambda s: s["sites"][1].update(epsilon_alone=6.2), "over its limit"),
        (lambda s: s["sites"][1].update(epsilon=None), "unknown, which is not zero"),
        (lambda s: s["sites"][1].update(status="refused: PrivacyBudgetExhausted"), "did not finish"),
        (lambda s: s["sites"][1].update(unsettled=2), "counts as spent"),
        (lambda s: s["residual_scan"].update(hits=1), "residual scan found"),
    ],
)
def test_what_must_not_be_missed_stands_at_the_top(summary, change, said):
    change(summary)
    text = words(summary)
    assert "All recorded checks passed." not in text
    assert said in text[: text.index("What was done")]


def test_a_hundred_sites_are_all_in_the_table(summary):
    first = summary["sites"][0]
    summary["sites"] = [copy.deepcopy(first) | {"name": f"site-{place}"} for place in range(100)]
    shown = Page(render_report(summary)).shown
    assert all(f"sites.{place}.epsilon_alone" in shown for place in range(100))
