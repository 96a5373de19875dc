"""What a released version left on disk is read for ever: each folder of tests/vectors/formats, by today's program.

A new version of a format gets a folder beside the old ones, and these tests read it too.
"""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from client.agent import SiteAgent
from client.data.registry import load_dataset
from client.deid.escrow import Escrow
from client.home import open_home
from client.runstate import Outbox, load_state
from common.canonical import digest_bytes
from common.crypto.keys import VerifyKey
from common.enrolment import read_enrolment
from common.privacy.ledger import BudgetLedger
from common.report.audit import verify_paths
from common.report.page import render_report
from common.signed import read_signed
from common.trust import read_trust
from server.actlog import ActLog
from server.acts import Actor, read_acts_key, verified_acts
from server.home import open_server, read_public_key
from server.members import current_consortium, read_members, revoke
from server.proposals import Proposals
from server.release import read_release
from server.rundir import load_run
from server.tokens import read_tokens
from simulations.scenario import load_scenario

VECTORS = Path(__file__).resolve().parents[1] / "vectors" / "formats"
VERSIONS = sorted(entry for entry in VECTORS.iterdir() if entry.is_dir())
SITE = "hospital-4"


@pytest.fixture(params=VERSIONS, ids=lambda path: path.name)
def run(request, tmp_path):
    """A copy of what a version left behind."""
    return shutil.copytree(request.param, tmp_path / "run")


@pytest.fixture
def passphrase(run):
    return (run / "passphrase").read_bytes().removesuffix(b"\n")


@pytest.fixture
def home(run, passphrase):
    return open_home(run / "sites" / SITE, passphrase=passphrase)


def test_a_stored_run_verifies(run):
    assert verify_paths([run]).words == "verified"


def test_a_stored_run_opens_at_the_coordinator(run, passphrase):
    prepared = load_run(run, passphrase=passphrase)
    assert prepared.manifest.plan_digest == prepared.plan.digest


def test_stored_documents_are_signed_by_the_pinned_coordinator(run):
    trust = read_trust(run / "trust.json")
    assert read_signed(run / "plan.json", "plan", trust.coordinator_key)["version"] == 1
    assert read_signed(run / "manifest.json", "manifest", trust.coordinator_key)["version"] == 1


def test_a_stored_model_is_read(run, passphrase):
    prepared = load_run(run, passphrase=passphrase)
    parameters = read_release(run / "model", plan=prepared.plan, key=prepared.manifest.coordinator_key)
    assert parameters.shape == (prepared.manifest.dimension,)


def test_a_stored_summary_becomes_a_report(run):
    assert "<html" in render_report(json.loads((run / "summary.json").read_bytes()))


def test_a_stored_scenario_is_read(run):
    assert load_scenario(str(run / "scenario.toml")).name == "scenario"


def test_a_stored_site_opens(home):
    assert (home.name, len(home.secret("tags")), len(home.secret("pseudonyms"))) == (SITE, 32, 32)


def test_a_stored_policy_is_signed_by_its_site(home):
    assert list(home.policy().budget) == list(home.approvals().values())


def test_a_stored_approval_without_a_number_holds_for_every_run(home):
    assert [approval.runs_left for approval in home.decisions().approved.values()] == [None]


def test_stored_pinned_keys_are_signed_by_their_site(home):
    assert home.trust().site_key(SITE) == home.identity.public_key


def test_a_stored_ledger_goes_on(home):
    with BudgetLedger.open(home.ledger_path, site=home.name, key=home.identity) as ledger:
        seq = ledger.head.seq
        account = ledger.account("nuclei")
        ledger.open_population("next", budget=account.budget, admission=account.terms.admission)
        assert ledger.head.seq == seq + 1


def test_stored_features_are_read(home):
    batch = load_dataset(home, "nuclei", classes=2)
    assert batch.features.shape == (batch.patient_count, 2)


def test_a_stored_escrow_finds_the_way_back(home):
    escrow = Escrow(
        home.root / "escrow.sealed",
        seal=lambda plain: home.seal_for("escrow", plain),
        unseal=lambda sealed: home.unseal_for("escrow", sealed),
    )
    stored = json.loads(home.unseal_for("escrow", (home.root / "escrow.sealed").read_bytes()))
    identifier, code = next(iter(stored["codes"]["patient"].items()))
    assert escrow.identifier_of("patient", code) == identifier


def test_a_stored_runs_state_holds_no_secret_once_it_is_closed(run, home):
    run_id = json.loads((run / "manifest.json").read_bytes())["manifest"]["run_id"]
    state = load_state(home, run_id)
    assert state.closed and not state.pair_secrets and not state.peers


def test_a_stored_answer_is_the_one_that_the_ledger_released(run, home):
    run_id = json.loads((run / "manifest.json").read_bytes())["manifest"]["run_id"]
    answer = Outbox(home, run_id).read()
    assert answer is not None
    assert digest_bytes("release", answer.vector).encode() in home.ledger_path.read_bytes()


def test_a_stored_site_answers_again(run, passphrase):
    with SiteAgent.open(run / "sites" / SITE, passphrase=passphrase) as agent:
        assert agent.ledger.head.seq == 5


def test_a_stored_coordinator_opens_and_goes_on(run, passphrase):
    home = open_server(run / "coordinator", passphrase=passphrase)
    assert home.settings.address == "fed.example.org:443"
    for name in ("hospital-4", "hospital-5"):
        enrolment = read_enrolment(run / "enrolments" / f"{name}.json")
        assert read_members(home.root, home.key.public_key).by_name[name].node_digest == enrolment.node_digest
    actor = Actor(name="tester", role="coordinator")
    revoke(home, "hospital-4", actor=actor, log=ActLog.open(home.root), now=datetime.now(UTC))
    assert [act.act for act, _ in verified_acts(home.root)][-2:] == ["propose", "revoke"]


def test_a_stored_consortium_names_the_stored_members(run):
    key = read_public_key(run / "coordinator")
    members = read_members(run / "coordinator", key)
    assert current_consortium(run / "coordinator" / "consortium.json", members, key=key) is not None


def test_a_stored_token_was_in_force_in_its_time(run):
    tokens = read_tokens(run / "coordinator", read_public_key(run / "coordinator"))
    text = (run / "coordinator" / "rosalind.token").read_text().strip()
    assert tokens.check(text, now=datetime(2026, 12, 24, tzinfo=UTC)).name == "rosalind"


def test_a_stored_proposal_is_the_stored_plan(run):
    proposals = Proposals(run / "coordinator", key=read_acts_key(run / "coordinator"))
    digest = json.loads((run / "manifest.json").read_bytes())["manifest"]["plan_digest"]
    assert set(proposals.get(digest).proposers) == {"rosalind"}


def test_stored_keys_are_the_pinned_ones(run, home):
    assert VerifyKey.parse(read_trust(run / "trust.json").sites[SITE]) == home.identity.public_key
