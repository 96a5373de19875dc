import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from common.canonical import canonical_json
from common.crypto.keys import SigningKey
from common.errors import ConfigurationError, LedgerCorrupt, LedgerNotWitnessed
from common.privacy.admission import AdmissionFilter
from common.privacy.budget import PrivacyBudget
from common.privacy.ledger import BudgetLedger
from common.privacy.witness import WitnessBook
from common.report.cli import audit


@pytest.fixture
def run(tmp_path):
    """A run directory of one site that opened a population and spent nothing yet."""
    key = SigningKey.generate()
    path = tmp_path / "run" / "sites" / "north" / "ledger.jsonl"
    with BudgetLedger.open(path, site="north", key=key) as ledger:
        budget = PrivacyBudget(epsilon=3.0, epsilon_alone=6.0, delta=1e-5)
        ledger.open_population("patients", budget=budget, admission=AdmissionFilter.gaussian())
        WitnessBook(tmp_path / "run" / "witnesses.jsonl", holder="coordinator").record(ledger.signed_head("demo"))
    trust = {
        "version": 1,
        "coordinator": SigningKey.generate().public_key.text,
        "sites": {"north": key.public_key.text},
    }
    (tmp_path / "run" / "trust.json").write_bytes(canonical_json(trust))
    return tmp_path / "run"


def invoke(*arguments):
    return CliRunner().invoke(audit, ["verify", *map(str, arguments)])


def test_text_names_the_numbers_with_their_guarantee_and_the_verdict(run):
    result = invoke(run)
    assert result.exit_code == 0
    for words in ("north", "patients", "0.00", "3.00", "6.00", "1e-05", "patient", "add_remove_one", "sha256:"):
        assert words in result.stdout
    assert result.stdout.endswith("verdict: verified\n")


def test_json_is_one_document_on_stdout(run):
    result = invoke(run, "--format", "json")
    assert json.loads(result.stdout)["verdict"] == "verified"


def test_a_corrupt_ledger_prints_the_result_and_raises(run):
    path = run / "sites" / "north" / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b"3", b"4", 1))
    result = invoke(run, "--format", "json")
    assert json.loads(result.stdout)["ledgers"][0]["error"]["name"] == "LedgerCorrupt"
    assert isinstance(result.exception, LedgerCorrupt)


def test_an_unwitnessed_ledger_says_whose_key_it_was_read_with(run):
    (run / "trust.json").unlink()
    result = invoke(run)
    assert "taken from the ledger itself, not pinned" in result.stdout
    assert isinstance(result.exception, LedgerNotWitnessed)


def test_files_from_elsewhere_can_be_given(run, tmp_path):
    (run / "trust.json").rename(tmp_path / "trust.json")
    (run / "witnesses.jsonl").rename(tmp_path / "heads.jsonl")
    result = invoke(run, "--trust", tmp_path / "trust.json", "--witness", tmp_path / "heads.jsonl")
    assert result.exit_code == 0


def test_a_directory_without_ledgers_is_refused(tmp_path):
    assert isinstance(invoke(tmp_path).exception, ConfigurationError)


def test_the_command_line_is_read_without_the_parts_that_verify():
    code = """
import sys, common.report.cli
print([name for name in ("numpy", "cryptography", "matplotlib", "dp_accounting", "jinja2") if name in sys.modules])
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
