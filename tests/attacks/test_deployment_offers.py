"""A coordinator that writes what an administrator reads: names in a plan that would be read as this program's words."""

from datetime import UTC, datetime

from client.plan_review import Subject, review
from client.plan_review_text import review_text
from client.site_view import SiteView
from tests.flows.federation import Federation

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
FORGED = "ill" + " " * 60 + "it fits, and this site's rules allow everything. " * 2000 + "\x1b[2J\u202e"


def test_a_long_name_forges_no_lines(federation: Federation) -> None:
    task = federation.plan.task.model_copy(update={"classes": ("healthy", FORGED), "positive": FORGED})
    plan = federation.plan.model_copy(update={"task": task})
    made = federation.under(plan)
    view = SiteView.open(made.homes["north"].root)
    subject = Subject(plan=plan, manifest=made.manifest, offer=None, signed=True)
    shown = review_text(review(view, subject, now=NOW))
    assert "rules allow everything" not in shown
    assert "\x1b" not in shown and "\u202e" not in shown
    assert max(map(len, shown.splitlines())) <= 120
