"""common/FORMATS.md cannot rot: the program reads what it shows, and what it lists is complete."""

import ast
import json
import re
from base64 import b64decode
from datetime import datetime
from hashlib import sha256
from pathlib import Path

import pytest

from client.decisions import Approval, read_decisions
from client.deid.report import ColumnCount, DeidReport
from client.deid.rules import TableSchema, read_schema
from client.node_files import CourierSettings, NodeSettings, read_courier_settings, read_node_settings
from client.plans import read_offers
from common import errors
from common.canonical import DIGEST_PREFIX, canonical_json, digest_json
from common.crypto.keys import VerifyKey
from common.crypto.masking import mask_context
from common.enrolment import read_consortium, read_enrolment
from common.errors import FederationError
from common.journal import FIELDS
from common.plan import Manifest, TrainingPlan
from common.policy import SitePolicy
from common.privacy.entries import EntryKind, LedgerHead, parse_line
from common.privacy.high_water import decode_mark
from common.privacy.verify import verify_ledger
from common.privacy.witness import SignedHead, WitnessBook
from common.report.audit import verify_paths
from common.report.ledger_export import COLUMNS
from common.report.site_budget import budget_document
from common.report.site_ledger import read_site_ledger
from common.runplan import build_manifest
from common.settings import parse_json_settings, read_settings
from common.trust import TrustFile
from server.acts import read_acts_key
from server.checkpoints import Checkpoint
from server.outcome import read_outcome
from server.progress import read_progress
from server.proposals import Proposals
from server.rundir import RunSettings
from server.submission import read_submission
from server.upstate import UpState
from simulations.attack_bounds import Guesses
from simulations.bench.result import BenchResult, BenchRow
from simulations.scenario import load_scenario

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "common" / "FORMATS.md").read_text(encoding="utf-8")
STORED = ROOT / "tests" / "vectors" / "formats" / "v1"
BLOCKS = dict(re.findall(r"^```[a-z]+ ([a-z-]+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
SITE = "hospital-4"


def example(name):
    return BLOCKS[name].rstrip("\n").encode()


def example_file(name, directory, file_name):
    path = directory / file_name
    path.write_bytes(example(name) + b"\n")
    return path


@pytest.fixture(scope="module")
def trust():
    return parse_json_settings(example("trust"), TrustFile, source="the example")


@pytest.fixture(scope="module")
def plan():
    return parse_json_settings(example("plan"), TrainingPlan, source="the example")


@pytest.fixture(scope="module")
def manifest():
    return parse_json_settings(example("manifest"), Manifest, source="the example")


def test_every_marked_example_has_a_test():
    source = Path(__file__).read_text(encoding="utf-8")
    assert {name for name in BLOCKS if f'("{name}"' not in source} == set()


def test_the_example_scenario_is_a_scenario(tmp_path, plan):
    scenario = load_scenario(str(example_file("scenario", tmp_path, "nuclei.toml")))
    constants = scenario.plan.normalisation.model_copy(
        update={"center": plan.normalisation.center, "scale": plan.normalisation.scale}
    )
    assert scenario.plan.model_copy(update={"normalisation": constants}) == plan


def test_the_example_plan_is_in_canonical_form_with_every_default_filled_in(plan):
    assert canonical_json(plan.to_json()) == example("plan")


def test_the_example_manifest_is_in_canonical_form(manifest):
    assert canonical_json(manifest.to_json()) == example("manifest")


def test_the_example_manifest_follows_from_the_example_plan(plan, manifest):
    assert manifest == build_manifest(
        plan,
        run_id=manifest.run_id,
        roster=manifest.roster,
        coordinator_key=manifest.coordinator_key,
        noise_multiplier=manifest.noise_multiplier,
    )


def test_the_example_policy_is_a_policy(tmp_path, manifest):
    policy = read_settings(example_file("policy", tmp_path, "policy.toml"), SitePolicy)
    assert policy.minimum_cohort == manifest.minimum_cohort


def test_every_rule_of_a_policy_stands_on_the_page():
    section = PAGE.split("## `policy.toml` and `policy.sig`")[1].split("\n## ")[0]
    assert {name for name in SitePolicy.model_fields if f"`{name}" not in section} == {"version"}


def test_the_example_offer_is_signed_by_its_site_and_holds_the_example_plan(tmp_path, trust, plan, manifest):
    (tmp_path / "plans").mkdir()
    example_file("offer", tmp_path / "plans", f"{plan.digest.removeprefix(DIGEST_PREFIX)}.json")
    (offer,) = read_offers(tmp_path, trust.site_key(SITE)).offers
    assert (offer.plan, offer.manifest) == (plan, manifest)


def test_the_example_decisions_are_signed_by_their_site(tmp_path, trust, plan):
    example_file("decisions", tmp_path, "approvals.json")
    decisions = read_decisions(tmp_path, trust.site_key(SITE))
    approval = Approval(population="nuclei", runs_left=0, begun=("nuclei-0064e53aeb09",))
    assert (dict(decisions.approved), len(decisions.rejected)) == ({plan.digest: approval}, 1)


def test_the_example_decisions_of_version_two_hold_for_every_run(tmp_path, trust, plan):
    example_file("decisions-before", tmp_path, "approvals.json")
    approval = Approval(population="nuclei", runs_left=None)
    assert read_decisions(tmp_path, trust.site_key(SITE)).approved == {plan.digest: approval}


def test_the_example_node_and_courier_agree_on_their_socket(tmp_path):
    example_file("node", tmp_path, "node.toml")
    example_file("courier", tmp_path, "courier.toml")
    node, courier = read_node_settings(tmp_path), read_courier_settings(tmp_path)
    assert node.socket == courier.agent


def test_every_key_of_node_and_courier_stands_on_the_page():
    section = PAGE.split("## `node.toml` and `courier.toml`")[1].split("\n## ")[0]
    keys = {*NodeSettings.model_fields, *CourierSettings.model_fields} - {"version"}
    assert {key for key in keys if f"`{key}`" not in section} == set()


def test_the_example_trust_file_pins_the_keys_of_the_example_manifest(trust, manifest):
    assert trust.coordinator == manifest.coordinator_key
    assert trust.sites == {entry.name: entry.identity_key for entry in manifest.roster}


def test_the_example_ledger_verifies_against_pinned_key_and_witness(trust):
    heads = [SignedHead.from_json(fields) for fields in witness_fields()]
    report = verify_ledger(example("ledger") + b"\n", key=trust.site_key(SITE), heads=heads)
    assert report.witnessed_seq == report.entries == 5


def test_the_example_ledger_shows_every_kind_of_entry():
    assert {parse_line(line)[0].kind for line in example("ledger").splitlines()} == set(EntryKind)


def test_the_example_ledger_is_about_the_example_manifest(manifest):
    reserved = [json.loads(line)["event"] for line in example("ledger").splitlines() if b'"reserve"' in line]
    assert {event["manifest_digest"] for event in reserved} == {manifest.digest}


def witness_fields():
    lines = [json.loads(line) for line in example("witness").splitlines()]
    return [{name: value for name, value in fields.items() if name != "held_by"} for fields in lines]


def test_the_example_witness_lines_are_read_and_signed_by_the_pinned_key(tmp_path, trust):
    book = WitnessBook(example_file("witness", tmp_path, "witnesses.jsonl"), holder="reader")
    heads = book.heads(SITE)
    for head in heads:
        head.verify(trust.site_key(SITE))
    assert len(heads) == len(example("witness").splitlines())


def test_the_example_high_water_mark_is_the_end_of_the_example_ledger():
    report = verify_ledger(example("ledger") + b"\n", key=None)
    assert decode_mark(example("high-water")) == LedgerHead(seq=report.entries, digest=report.head.digest)


def test_the_example_mask_context_has_the_digest_that_is_shown():
    fields = json.loads(example("mask-context"))
    context = mask_context(
        manifest_digest=fields["manifest"],
        kind=fields["kind"],
        round_number=fields["round"],
        attempt=fields["attempt"],
        cohort=fields["cohort"],
        model_digest=fields["model"],
    )
    assert canonical_json(fields) == example("mask-context")
    assert f"`{DIGEST_PREFIX}{context.hex()}`" in PAGE


def test_the_example_schema_is_the_one_that_the_example_report_names(tmp_path):
    schema = read_schema(example_file("deid-schema", tmp_path, "schema.toml"))
    assert schema.digest == json.loads(example("deid"))["schema_digest"]


def test_a_schemas_digest_is_over_what_the_page_says(tmp_path):
    schema: TableSchema = read_schema(example_file("deid-schema", tmp_path, "schema.toml"))
    columns = [
        [name, {key: getattr(rule, key) for key in ("action", "kind", "type", "role")} | {"values": list(rule.values)}]
        for name, rule in schema.rules.items()
    ]
    assert schema.digest == digest_json(
        "deid-schema", {"mode": schema.mode, "as_of_year": schema.as_of_year, "columns": columns}
    )


def test_the_example_deid_report_has_the_fields_of_version_one():
    fields = json.loads(example("deid"))
    columns = tuple(ColumnCount(**column, unreadable=0) for column in fields["columns"])
    report = DeidReport(
        mode=fields["mode"],
        records_in=fields["in"],
        released=fields["released"],
        quarantined=fields["quarantined"],
        rejected=fields["rejected"],
        columns=columns,
        undeclared_columns=fields["undeclared_columns"],
        alarms=fields["alarms"],
        schema_digest=fields["schema_digest"],
        output_digest=fields["output_digest"],
    )
    assert canonical_json(report.to_json()) == example("deid")


def test_the_example_model_card_is_signed_by_the_pinned_coordinator(trust):
    signature = json.loads((STORED / "model" / "signature.json").read_bytes())["signature"]
    trust.coordinator_key.verify("model-card", example("model-card"), b64decode(signature))


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("site", "sites/hospital-4/site.json"),
        ("approvals", "sites/hospital-4/approvals.json"),
        ("result", "result.json"),
        ("trust", "trust.json"),
        ("deid", "sites/hospital-4/deid.json"),
        ("model-card", "model/card.json"),
        ("scenario", "scenario.toml"),
        ("policy", "sites/hospital-4/policy.toml"),
        ("ledger", "sites/hospital-4/ledger.jsonl"),
        ("enrolment", "enrolments/hospital-4.json"),
        ("consortium", "coordinator/consortium.json"),
        ("server", "coordinator/server.toml"),
        ("members", "coordinator/members.json"),
        ("tokens", "coordinator/tokens.json"),
        ("acts", "coordinator/acts.jsonl"),
        ("acts-key", "coordinator/acts.pub"),
        ("acts-head", "coordinator/acts.head"),
    ],
)
def test_an_example_is_the_stored_file(name, place):
    assert example(name) == (STORED / place).read_bytes().rstrip(b"\n")


def test_the_example_enrolment_is_of_the_site_whose_ledger_is_shown(tmp_path, trust):
    enrolment = read_enrolment(example_file("enrolment", tmp_path, "enrolment.json"))
    assert (enrolment.name, enrolment.identity_key) == (SITE, trust.sites[SITE])


def test_fingerprints_are_what_the_page_says():
    enrolment = read_enrolment(STORED / "enrolments" / f"{SITE}.json")
    consortium = read_consortium(STORED / "coordinator" / "consortium.json")
    parts = [enrolment.name, enrolment.identity_key, enrolment.node_key]
    sites = [[name, consortium.sites[name]] for name in sorted(consortium.sites)]
    whole = [consortium.coordinator, consortium.certificates, sites]
    for domain, content, shown in (
        ("enrolment-fingerprint", parts, enrolment.fingerprint),
        ("consortium-fingerprint", whole, consortium.fingerprint),
    ):
        digits = sha256(b"fedward/" + domain.encode() + b"\0" + canonical_json(content)).hexdigest()[:32]
        assert shown == " ".join(digits[start : start + 4] for start in range(0, 32, 4))


def test_a_tokens_digest_is_what_the_page_says():
    _, token_id, secret = (STORED / "coordinator" / "rosalind.token").read_text().strip().split("_", 2)
    raw = b64decode(secret.replace("-", "+").replace("_", "/") + "=")
    digest = DIGEST_PREFIX + sha256(b"fedward/token-secret\0" + raw).hexdigest()
    assert json.loads(example("tokens"))["tokens"]["tokens"][token_id]["digest"] == digest


def test_the_example_acts_verify_as_the_page_says():
    key = VerifyKey.parse(json.loads(example("acts-key"))["acts-key"]["key"])
    prev = DIGEST_PREFIX + "0" * 64
    for seq, line in enumerate(example("acts").splitlines(), start=1):
        fields = json.loads(line)
        key.verify(
            "act", canonical_json({name: fields[name] for name in fields if name != "sig"}), b64decode(fields["sig"])
        )
        assert (fields["seq"], fields["prev"], canonical_json(fields)) == (seq, prev, line)
        prev = DIGEST_PREFIX + sha256(b"fedward/act-line\0" + line).hexdigest()
    assert json.loads(example("acts-head"))["acts-head"] == {"version": 1, "seq": seq, "digest": prev}


def test_the_example_proposal_is_of_the_example_plan(plan):
    proposals = Proposals(STORED / "coordinator", key=read_acts_key(STORED / "coordinator"))
    assert canonical_json(json.loads(example("proposal"))) == example("proposal")
    assert json.loads(example("proposal"))["proposal"] == proposals.get(plan.digest).model_dump(mode="json")


def test_the_example_outcome_raises_its_error(tmp_path):
    example_file("outcome", tmp_path, "outcome.json")
    outcome = read_outcome(tmp_path)
    assert outcome is not None
    with pytest.raises(errors.QuorumLost, match="minimum cohort"):
        outcome.raise_error()


def test_the_example_progress_is_read_without_a_passphrase(tmp_path):
    example_file("progress", tmp_path, "progress.json")
    progress = read_progress(tmp_path)
    assert progress is not None
    assert progress.model_dump_json().encode() == example("progress")


def test_every_field_of_a_checkpoint_and_every_setting_of_a_run_is_on_the_page():
    section = PAGE.split("## `checkpoint/` and", 1)[1].split("\n## ", 1)[0]
    assert {name for name in Checkpoint.model_fields if f"`{name}`" not in section} == {"version"}
    (settings,) = re.findall(r"^\| `run\.json` \| (.*) \|$", PAGE, re.MULTILINE)
    assert settings == ", ".join(f"`{name}`" for name in RunSettings.model_fields)


def test_the_example_of_a_coordinator_that_is_up_is_in_canonical_form():
    state = parse_json_settings(example("up"), UpState, source="the example")
    assert canonical_json(state.model_dump(mode="json")) == example("up")


def test_the_example_submission_is_read(tmp_path):
    example_file("submission", tmp_path, "submission.json")
    submission = read_submission(tmp_path)
    assert canonical_json(submission.model_dump(mode="json")) == example("submission")


def test_the_example_log_has_allow_listed_fields_only():
    lines = [json.loads(line) for line in example("log").splitlines()]
    assert all(fields.keys() - {"time", "event"} <= FIELDS for fields in lines)
    assert all(datetime.fromisoformat(fields["time"]).tzinfo for fields in lines)


def test_the_log_fields_of_the_page_are_those_of_the_program():
    listed = re.search(r"`event` and any of (.*?)\. No other", PAGE, re.DOTALL)
    assert listed is not None
    assert set(re.findall(r"`([a-z_]+)`", listed[1])) == FIELDS


def test_the_example_audit_is_what_the_program_says_of_the_stored_run():
    shown = json.loads(example("audit"))
    (entry,) = (ledger for ledger in verify_paths([STORED]).to_json()["ledgers"] if ledger["site"] == SITE)
    assert {**entry, "path": ""} == {**shown["ledgers"][0], "path": ""}
    assert shown.keys() == {"version", "verdict", "keys", "ledgers"}


def test_the_example_budget_is_what_the_program_says_of_the_stored_ledger():
    ledger = read_site_ledger(STORED / "sites" / SITE)
    assert json.loads(example("budget")) == budget_document(ledger, rounds=30)


def test_the_csv_columns_of_the_page_are_those_of_the_program():
    start = PAGE.index("    seq,time,population,kind")
    listed = PAGE[start : PAGE.index("\n\n", start)]
    assert "".join(listed.split()) == ",".join(COLUMNS)


def test_the_example_attack_is_in_canonical_form_and_its_bounds_follow_from_its_guesses():
    fields = json.loads(example("attack"))
    assert canonical_json(fields) == example("attack")
    for view in fields["canaries"]["views"]:
        guesses = Guesses(examples=fields["canaries"]["examples"], guesses=view["guesses"], correct=view["correct"])
        bound = guesses.lower_bound(delta=fields["delta"], confidence=fields["confidence"])
        assert bound == pytest.approx(view["lower_bound"], abs=1e-9)


def test_the_example_bench_has_the_fields_of_version_one():
    fields = json.loads(example("bench"))
    rows = tuple(
        BenchRow(
            **{name: value for name, value in row.items() if name not in ("goal", "ok")},
            goal_op=row["goal"]["op"],
            goal_value=row["goal"]["value"],
        )
        for row in fields["rows"]
    )
    assert BenchResult(bench=fields["bench"], machine=fields["machine"], rows=rows).to_json() == fields


def test_every_error_stands_in_the_table_with_its_exit_code():
    table = PAGE.split("## Exit codes")[1].split("## ")[0]
    rows = re.findall(r"^\| (\d+) \| (`.*?`) \| ", table, re.MULTILINE)
    listed = {name: int(code) for code, names in rows for name in re.findall(r"`(\w+)`", names)}
    raised = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FederationError)]
    assert listed == {kind.__name__: kind.exit_code for kind in raised if kind is not FederationError}


def test_every_domain_of_the_code_stands_in_the_table():
    table = PAGE.split("### Domains")[1].split("## Exit codes")[0]
    listed = set(re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE))
    assert listed == set().union(*(domains_in(path) for path in sources()))


def sources():
    return [
        path for package in ("common", "client", "server", "simulations") for path in (ROOT / package).rglob("*.py")
    ]


def domains_in(path):
    """Texts that are given as a domain: to a digest, a signature or a signed document, or named `…_DOMAIN`."""
    functions = {"digest_json": 0, "digest_bytes": 0, "domain_hash": 0, "sign": 0, "verify": 0, "write_signed": 1}
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        value = None
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            place = functions.get(name)
            value = node.args[place] if place is not None and len(node.args) > place else None
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            value = node.value if getattr(target, "id", "").endswith("_DOMAIN") else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            found.add(value.value)
    return found


def test_every_key_of_a_summary_stands_on_the_page():
    summary = json.loads((STORED / "summary.json").read_bytes())
    nested = [summary[name] for name in ("privacy", "secure_sum", "residual_scan", "task", "model", "metrics")]
    nested += [summary["sites"][0], summary["history"][0], summary["metrics"]["federated"], summary]
    named = set(re.findall(r"`([a-z_0-9]+)`", PAGE))
    assert {key for part in nested for key in part} - named == set()
