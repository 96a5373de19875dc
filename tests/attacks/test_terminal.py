"""A ledger names its populations as whoever wrote it pleased; an auditor's screen shows the verdict all the same."""

import json

import pytest
from typer.testing import CliRunner

from client.cli import site
from common.crypto.keys import SigningKey
from common.privacy.admission import AdmissionFilter
from common.privacy.budget import PrivacyBudget
from common.privacy.ledger import BudgetLedger
from common.report.cli import audit

SITE = "north\x1b[8m"
FORGED = "verdict: verified and witnessed"
NAMES = ["a\x1b[2J\x1b[H" + FORGED + "\x1b[8m", "b\r\n" + FORGED, "c\u202e", "d\x9b2J"]


@pytest.fixture(params=NAMES)
def home(tmp_path, request):
    key = SigningKey.generate()
    with BudgetLedger.open(tmp_path / "ledger.jsonl", site=SITE, key=key) as ledger:
        budget = PrivacyBudget(epsilon=3.0, epsilon_alone=6.0, delta=1e-5)
        ledger.open_population(request.param, budget=budget, admission=AdmissionFilter.gaussian())
    document = {"version": 1, "name": SITE, "public_key": key.public_key.text}
    (tmp_path / "site.json").write_text(json.dumps(document))
    return tmp_path


@pytest.mark.parametrize("command", ["verify", "ledger", "budget"])
def test_a_name_in_a_ledger_writes_no_line_and_no_escape_of_its_own(home, command):
    app, arguments = (
        (audit, ["verify", str(home / "ledger.jsonl")])
        if command == "verify"
        else (site, [command, "--home", str(home)])
    )
    shown = CliRunner().invoke(app, arguments, color=True).stdout
    assert shown
    assert all(sign.isprintable() or sign == "\n" for sign in shown)
    assert FORGED not in shown.split("\n")


@pytest.mark.parametrize("command", ["verify", "report"])
def test_the_json_of_an_audit_is_ascii_and_says_the_same_names(home, command):
    shown = CliRunner().invoke(audit, [command, str(home / "ledger.jsonl"), "--format", "json"]).stdout
    assert shown.isascii()
    assert any(json.dumps(name)[1:-1] in shown for name in NAMES)
    json.loads(shown)
