"""Who may do what over the API, asked as strangers and friends would ask."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from common.canonical import canonical_json
from common.crypto.keys import SigningKey, VerifyKey
from common.errors import ConfigurationError
from common.plan import RosterEntry, TrainingPlan
from common.runplan import build_manifest
from common.trust import TrustFile
from server.actlog import ActLog
from server.acts import Act, parse_act, read_acts_key, verified_acts
from server.api import MAXIMUM_PLAN_BYTES, api_app
from server.api_door import ApiLimits
from server.closing import RunResult
from server.home import ServerHome
from server.lock import exclusive
from server.members import enrol, revoke
from server.proposals import MOST_OF_ONE, Proposals
from server.run_status import asks_flower, run_status
from server.rundir import RunSettings
from server.submission import Draft, prepare
from server.tokens import Role, revoke_token
from tests.server.coordinators import (
    ACTOR,
    NOW,
    PASSPHRASE,
    Applicant,
    copy_coordinator,
    make_coordinator,
    make_token,
)

PLAN: dict[str, Any] = {
    "task": {"kind": "tabular-classification", "classes": ["well", "ill"], "positive": "ill"},
    "model": {"inputs": [4]},
    "normalisation": {"limit": 3.0},
    "training": {"rounds": 3, "spare_attempts": 2, "server_optimizer": "sgd"},
    "privacy": {"epsilon": 3.0, "delta": 1e-5, "nominal_patients": 64},
}
PLAN_TOML = """
[task]
kind = "tabular-classification"
classes = ["well", "ill"]
positive = "ill"
[model]
inputs = [4]
[normalisation]
limit = 3.0
[training]
rounds = 3
spare_attempts = 2
server_optimizer = "sgd"
[privacy]
epsilon = 3.0
delta = 1e-5
nominal_patients = 64
"""
NO_LIMITS = ApiLimits(requests_per_second=1e6, failures_per_second=1e6, lines_per_second=1e6)
TOKENS = {
    "coordinator": (Role.COORDINATOR, ""),
    "researcher": (Role.RESEARCHER, ""),
    "other-researcher": (Role.RESEARCHER, ""),
    "auditor": (Role.AUDITOR, ""),
    "east": (Role.SITE, "east"),
    "outsider": (Role.SITE, "outsider"),
}


class Made:
    """A coordinator with members, tokens and a run; `texts` are the tokens by name."""

    def __init__(self, home: ServerHome, texts: dict[str, str]) -> None:
        self.home, self.texts = home, texts


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Not to be changed: `served` works on a copy."""
    home = make_coordinator(tmp_path_factory.mktemp("made") / "home")
    sites = [Applicant(name) for name in ("east", "north", "west", "outsider")]
    enrol(home, [site.enrolment for site in sites], actor=ACTOR, log=ActLog.open(home.root), now=NOW)
    write_run(home, "demo-1", sites[:3])
    return Made(home, {name: make_token(home, role, name, site=site) for name, (role, site) in TOKENS.items()})


def write_run(home: ServerHome, run_id: str, sites: list[Applicant]) -> None:
    plan = TrainingPlan.model_validate(PLAN)
    roster = [
        RosterEntry(name=site.enrolment.name, identity_key=site.enrolment.identity_key, nominal_patients=20)
        for site in sites
    ]
    key = home.key.public_key.text
    manifest = build_manifest(plan, run_id=run_id, roster=roster, coordinator_key=key, noise_multiplier=3.0)
    trust = TrustFile(coordinator=key, sites={entry.name: entry.identity_key for entry in roster})
    draft = Draft(name="demo", plan=plan, manifest=manifest, trust=trust)
    prepare(home, draft, passphrase=PASSPHRASE, settings=RunSettings(), now=NOW)


class Client:
    """Sends each request through the whole application, without a network."""

    def __init__(self, app: Starlette) -> None:
        self._app = app

    def get(self, path: str, **arguments: Any) -> httpx.Response:
        return self.request("GET", path, **arguments)

    def request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        return asyncio.run(self._send(method, path, **arguments))

    async def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self._app, raise_app_exceptions=False, client=("198.51.100.7", 4242))
        async with httpx.AsyncClient(transport=transport, base_url="https://fed.example.org") as client:
            return await client.request(method, path, **arguments)


async def in_parts(parts: Iterable[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


class Served:
    """The API over a copy of the coordinator's directory, as each of the token's holders sees it."""

    def __init__(self, home: ServerHome, texts: dict[str, str], limits: ApiLimits = NO_LIMITS) -> None:
        self.home, self.texts, self.now = home, texts, NOW
        self.client = Client(api_app(home.root, clock=lambda: self.now, limits=limits))

    def ask(self, who: str, path: str, method: str = "GET", **arguments: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.texts[who]}", **arguments.pop("headers", {})}
        return self.client.request(method, f"/api/v1{path}", headers=headers, **arguments)

    def propose(self, who: str, plan: object = PLAN, **changes: Any) -> httpx.Response:
        return self.ask(who, "/plans", "POST", json=plan, **changes)

    def acts(self) -> list[Act]:
        return [act for act, _ in verified_acts(self.home.root)]


@pytest.fixture
def served(made: Made, tmp_path: Path) -> Served:
    return Served(copy_coordinator(made.home, tmp_path / "home"), made.texts)


DIGEST = TrainingPlan.model_validate(PLAN).digest
READS = ["/token", "/proposals", "/runs", "/runs/demo-1", "/runs/demo-1/files/plan.json", "/acts", "/consortium.json"]
ALLOWED = {
    "coordinator": {*READS},
    "researcher": {"/token", "/proposals", "/runs", "/runs/demo-1"},
    "auditor": {"/token", "/runs", "/runs/demo-1", "/runs/demo-1/files/plan.json", "/acts"},
    "east": {"/token", "/runs", "/runs/demo-1", "/consortium.json"},
}


@pytest.mark.parametrize("path", READS)
@pytest.mark.parametrize("who", ALLOWED)
def test_each_role_reads_its_own_and_no_more(served: Served, who: str, path: str) -> None:
    answer = served.ask(who, path)
    assert answer.status_code == (200 if path in ALLOWED[who] else 403)
    if answer.status_code == 403:
        assert set(answer.json()) == {"error", "fact", "hint"}
        last = served.acts()[-1]
        assert (last.act, last.actor, last.detail["status"]) == ("refuse", who, 403)
        assert last.subject == f"/api/v1{path}"


@pytest.mark.parametrize(
    ("who", "status"), [("coordinator", 201), ("researcher", 201), ("auditor", 403), ("east", 403)]
)
def test_only_researchers_and_coordinators_propose_plans(served: Served, who: str, status: int) -> None:
    assert served.propose(who).status_code == status
    assert (served.home.proposals / f"{DIGEST.removeprefix('sha256:')}.json").exists() == (status == 201)


@pytest.mark.parametrize("path", [*READS, "/none", "/plans", "/proposals/x"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer fwt_0000000000000000_" + "A" * 43},
        {"authorization": "Basic YTpi"},
        {"authorization": "Bearer " + "A" * 5000},
    ],
    ids=["none", "empty", "guess", "basic", "long"],
)
def test_a_stranger_learns_nothing_not_even_which_paths_exist(
    served: Served, path: str, headers: dict[str, str]
) -> None:
    answer = served.client.get(f"/api/v1{path}", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["fact"] == "no token of this coordinator"
    assert served.acts()[-1].actor == "stranger"


def test_two_tokens_in_one_request_are_none(served: Served) -> None:
    headers = [("authorization", f"Bearer {served.texts[who]}") for who in ("auditor", "coordinator")]
    assert served.client.get("/api/v1/token", headers=headers).status_code == 401


def test_a_token_in_the_address_is_none_and_is_not_logged(served: Served) -> None:
    text = served.texts["auditor"]
    assert served.client.get(f"/api/v1/token?token={text}").status_code == 401
    assert served.client.get(f"/api/v1/token/{text}/x").status_code == 401
    assert served.ask("researcher", f"/runs/{text}").status_code == 404
    assert served.acts()[-1].subject == "/api/v1/runs/fwt_…"
    assert text.split("_", 2)[2].encode() not in (served.home.root / "acts.jsonl").read_bytes()


def test_a_revoked_token_is_refused_at_once(served: Served) -> None:
    assert served.ask("auditor", "/runs").status_code == 200
    token_id = served.texts["auditor"].split("_")[1]
    revoke_token(served.home, token_id, actor=ACTOR, log=ActLog.open(served.home.root), now=NOW)
    answer = served.ask("auditor", "/runs")
    assert (answer.status_code, "was revoked" in answer.json()["fact"]) == (401, True)


def test_an_expired_token_is_refused(served: Served) -> None:
    served.now = NOW + timedelta(days=10)
    answer = served.ask("auditor", "/runs")
    assert (answer.status_code, "expired" in answer.json()["fact"]) == (401, True)


def test_a_revoked_sites_token_opens_nothing(served: Served) -> None:
    assert served.ask("east", "/consortium.json").status_code == 200
    revoke(served.home, "east", actor=ACTOR, log=ActLog.open(served.home.root), now=NOW)
    assert served.ask("east", "/consortium.json").status_code == 403


def test_forged_tokens_end_the_service_rather_than_open_it(served: Served) -> None:
    signed = json.loads(served.home.tokens_path.read_bytes())
    for token in signed["tokens"]["tokens"].values():
        token["role"] = "coordinator" if not token["site"] else "site"
    served.home.tokens_path.write_bytes(canonical_json(signed))
    assert served.ask("researcher", "/acts").status_code == 503


class TestProposals:
    def test_a_plan_is_kept_under_its_digest_with_who_asked(self, served: Served) -> None:
        answer = served.propose("researcher")
        assert (answer.status_code, answer.json()) == (201, {"version": 1, "digest": DIGEST, "new": True})
        kept = Proposals(served.home.root, key=read_acts_key(served.home.root)).get(DIGEST)
        assert (kept.plan, set(kept.proposers)) == (TrainingPlan.model_validate(PLAN), {"researcher"})
        assert [(act.act, act.actor, act.role, act.subject) for act in served.acts()][-1] == (
            "propose",
            "researcher",
            "researcher",
            DIGEST,
        )

    @pytest.mark.parametrize(
        ("content", "kind"),
        [
            (PLAN_TOML, "application/toml"),
            (PLAN_TOML, "text/toml; charset=utf-8"),
            (json.dumps({"plan": PLAN}), "application/json"),
            (json.dumps({"plan": PLAN, "signature": "x"}), "application/json"),
        ],
    )
    def test_toml_and_json_are_one_plan(self, served: Served, content: str, kind: str) -> None:
        answer = served.ask("researcher", "/plans", "POST", content=content, headers={"content-type": kind})
        assert answer.json()["digest"] == DIGEST

    def test_proposing_twice_is_proposing_once(self, served: Served) -> None:
        served.propose("researcher")
        again = served.propose("researcher")
        assert (again.status_code, again.json()["new"]) == (200, False)

    def test_a_researcher_sees_his_own_proposals_only(self, served: Served) -> None:
        served.propose("researcher")
        assert served.ask("other-researcher", "/proposals").json()["proposals"] == []
        assert served.ask("other-researcher", f"/proposals/{DIGEST}").status_code == 404
        assert served.ask("researcher", f"/proposals/{DIGEST}").json()["plan"]["task"]["positive"] == "ill"

    def test_two_who_propose_the_same_are_not_told_of_each_other(self, served: Served) -> None:
        served.propose("researcher")
        assert served.propose("other-researcher").status_code == 201
        (own,) = served.ask("other-researcher", "/proposals").json()["proposals"]
        (every,) = served.ask("coordinator", "/proposals").json()["proposals"]
        assert set(own["proposers"]) == {"other-researcher"}
        assert set(every["proposers"]) == {"researcher", "other-researcher"}

    @pytest.mark.parametrize(
        ("section", "key", "value"),
        [
            ("privacy", "noise_multiplier", 0),
            ("privacy", "sigma", 0),
            ("privacy", "seed", 1),
            ("training", "seed", 1),
            ("privacy", "epsilon", 0),
            ("privacy", "epsilon", -1),
            ("privacy", "epsilon", 1001),
            ("privacy", "epsilon", float("inf")),
            ("privacy", "epsilon", float("nan")),
            ("privacy", "delta", 1),
            ("privacy", "delta", 0),
            ("privacy", "clipping_norm", 1e9),
            ("privacy", "clipping_norm", 0),
            ("secure_sum", "minimum_cohort", 1),
            ("secure_sum", "colluding", 0),
            ("model", "code", "import os"),
            ("training", "rounds", 10**9),
        ],
    )
    def test_a_plan_that_would_protect_nobody_is_refused(
        self, served: Served, section: str, key: str, value: object
    ) -> None:
        bad = {**PLAN, section: {**PLAN.get(section, {}), key: value}}
        content = json.dumps(bad)
        answer = served.ask(
            "researcher", "/plans", "POST", content=content, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 422
        assert f"{section}.{key}" in answer.json()["fact"]
        assert list(served.home.proposals.iterdir()) == []
        assert served.acts()[-1].act == "refuse"

    @pytest.mark.parametrize(
        "content", [b"", b"null", b"[]", b"\xff", b"{" * 5000, b"[" * 200_000, b'{"plan": 1}', b'{"plan": {}, "x": 1}']
    )
    @pytest.mark.parametrize("kind", ["application/json", "application/toml"])
    def test_what_is_no_plan_is_refused(self, served: Served, content: bytes, kind: str) -> None:
        answer = served.ask("researcher", "/plans", "POST", content=content, headers={"content-type": kind})
        assert answer.status_code == 422
        assert len(answer.text) < 1500

    def test_a_plan_that_is_too_large_is_refused_before_it_is_read(self, served: Served) -> None:
        headers = {"content-type": "application/json", "content-length": str(1 << 40)}
        answer = served.ask("researcher", "/plans", "POST", content=in_parts([b"{}"]), headers=headers)
        assert answer.status_code == 413

    def test_a_plan_that_grows_too_large_while_it_is_read_is_refused(self, served: Served) -> None:
        parts = in_parts([b" " * (1 << 16)] * (2 + (MAXIMUM_PLAN_BYTES >> 16)))
        headers = {"content-type": "application/json"}
        answer = served.ask("researcher", "/plans", "POST", content=parts, headers=headers)
        assert answer.status_code == 413
        assert str(MAXIMUM_PLAN_BYTES) in answer.json()["fact"]

    @pytest.mark.parametrize("kind", ["", "text/plain", "application/x-pickle", "multipart/form-data"])
    def test_only_toml_and_json_are_read(self, served: Served, kind: str) -> None:
        answer = served.ask("researcher", "/plans", "POST", content=b"{}", headers={"content-type": kind})
        assert answer.status_code == 415

    def test_nobody_fills_the_disk_with_plans(self, served: Served) -> None:
        for rounds in range(1, MOST_OF_ONE + 1):
            plan = {**PLAN, "training": {**PLAN["training"], "rounds": rounds}}
            assert served.propose("researcher", plan).status_code == 201
        refused = served.propose("researcher", {**PLAN, "training": {**PLAN["training"], "rounds": 999}})
        assert refused.status_code == 409
        assert served.propose("other-researcher").status_code in (200, 201)

    @pytest.mark.parametrize("digest", ["..%2f..%2fserver.toml", "sha256:" + "0" * 64, "0" * 64, "x", "%00"])
    def test_no_other_file_is_a_proposal(self, served: Served, digest: str) -> None:
        assert served.ask("coordinator", f"/proposals/{digest}").status_code == 404

    def test_a_proposal_that_the_api_did_not_write_is_passed_over(self, served: Served) -> None:
        served.propose("researcher")
        (path,) = served.home.proposals.iterdir()
        path.write_bytes(path.read_bytes().replace(b'"rounds":3', b'"rounds":4'))
        assert served.ask("coordinator", "/proposals").json()["proposals"] == []
        assert served.ask("coordinator", f"/proposals/{DIGEST}").status_code == 404


class TestFinding:
    """How people name a proposal at the terminal."""

    @pytest.fixture
    def kept(self, served: Served) -> Proposals:
        served.propose("researcher")
        return Proposals(served.home.root, key=read_acts_key(served.home.root))

    @pytest.mark.parametrize("length", [8, 12, 64])
    @pytest.mark.parametrize("prefix", ["", "sha256:"])
    def test_eight_digits_are_enough(self, kept: Proposals, prefix: str, length: int) -> None:
        assert kept.find(prefix + DIGEST.removeprefix("sha256:")[:length]).plan.digest == DIGEST

    @pytest.mark.parametrize("beginning", ["", "sha256:", "breast", DIGEST[:14], DIGEST + "0", "../" + DIGEST])
    def test_less_or_no_digest_at_all_is_told_what_there_is(self, kept: Proposals, beginning: str) -> None:
        with pytest.raises(ConfigurationError, match="neither a file nor the digest of a proposal") as raised:
            kept.find(beginning)
        assert f"proposed are: {DIGEST[7:19]} of researcher" in raised.value.hint

    def test_a_beginning_of_none_is_told_what_there_is(self, kept: Proposals) -> None:
        with pytest.raises(ConfigurationError, match="no proposed plan begins with '00000000'") as raised:
            kept.find("00000000")
        assert DIGEST[7:19] in raised.value.hint
        kept.remove(DIGEST)
        with pytest.raises(ConfigurationError) as raised:
            kept.find("00000000")
        assert raised.value.hint == "no plan was proposed"

    def test_a_beginning_of_two_is_refused(self, served: Served, kept: Proposals) -> None:
        (path,) = served.home.proposals.iterdir()
        twin = path.with_name(path.name[:12] + "0" * 52 + ".json")
        twin.write_bytes(path.read_bytes())
        with pytest.raises(ConfigurationError, match="2 proposed plans begin with"):
            kept.find(DIGEST[7:19])
        assert kept.find(DIGEST).plan.digest == DIGEST

    def test_over_the_api_a_digest_is_whole(self, served: Served, kept: Proposals) -> None:
        assert served.ask("coordinator", f"/proposals/{DIGEST[:40]}").status_code == 404


class TestRuns:
    def test_the_api_says_of_a_run_what_the_command_says(self, served: Served) -> None:
        run = served.home.runs / "demo-1"

        def said() -> str:
            state = str(served.ask("researcher", "/runs/demo-1").json()["state"])
            assert state == run_status(run, flower_runs=asks_flower(served.home.root)).state
            assert served.ask("auditor", "/runs").json()["runs"][0]["state"] == state
            return state

        assert said() == "interrupted"
        with exclusive(run / "run.lock"):
            assert said() == "waiting"
        result = RunResult(rounds=3, attempts=3, model_digest="sha256:0", left={}, exchanges=7, bytes_up=40)
        (run / "result.json").write_text(json.dumps({"version": 1, **asdict(result)}))
        assert said() == "failed"
        (run / "outcome.json").write_text('{"version": 1, "error": "", "fact": "", "hint": ""}')
        assert said() == "completed"

    def test_a_run_with_a_damaged_file_is_shown_as_such_and_hides_no_other(self, served: Served) -> None:
        sites = [Applicant(name) for name in ("east", "north", "west")]
        write_run(served.home, "demo-2", sites)
        (served.home.runs / "demo-1" / "outcome.json").write_text("[]")
        listed = served.ask("researcher", "/runs").json()["runs"]
        assert [run["state"] for run in listed] == ["unreadable", "interrupted"]

    def test_a_failed_run_says_with_which_error_and_not_its_text(self, served: Served) -> None:
        run = served.home.runs / "demo-1"
        result = RunResult(rounds=3, attempts=3, model_digest="sha256:0", left={}, exchanges=7, bytes_up=40)
        (run / "result.json").write_text(json.dumps({"version": 1, **asdict(result)}))
        (run / "outcome.json").write_text('{"version": 1, "error": "", "fact": "", "hint": ""}')
        completed = served.ask("researcher", "/runs/demo-1").json()
        assert (completed["state"], completed["result"]["rounds"]) == ("completed", 3)
        (run / "outcome.json").write_text('{"version": 1, "error": "QuorumLost", "fact": "/srv/secret", "hint": ""}')
        failed = served.ask("researcher", "/runs/demo-1")
        assert (failed.json()["state"], failed.json()["error"]) == ("failed", "QuorumLost")
        assert "/srv/secret" not in failed.text
        (run / "outcome.json").write_text('{"version": 1, "error": "RunStopped", "fact": "", "hint": ""}')
        assert served.ask("researcher", "/runs/demo-1").json()["state"] == "stopped"

    def test_a_site_sees_the_runs_that_it_is_in(self, served: Served) -> None:
        assert [run["run_id"] for run in served.ask("east", "/runs").json()["runs"]] == ["demo-1"]
        assert served.ask("outsider", "/runs").json()["runs"] == []
        assert served.ask("outsider", "/runs/demo-1").status_code == 404

    def test_an_auditor_reads_the_signed_plan_byte_for_byte(self, served: Served) -> None:
        answer = served.ask("auditor", "/runs/demo-1/files/plan.json")
        assert answer.content == (served.home.runs / "demo-1" / "plan.json").read_bytes()

    @pytest.mark.parametrize(
        "name",
        ["coordinator.pem", "run.json", "outcome.json", "model.safetensors", ".", "", "plan.json%00", "PLAN.JSON"],
    )
    def test_no_other_file_of_a_run_is_shown(self, served: Served, name: str) -> None:
        (served.home.runs / "demo-1" / "outcome.json").write_text("{}")
        assert served.ask("auditor", f"/runs/demo-1/files/{name}").status_code == 404

    @pytest.mark.parametrize(
        "path",
        [
            "/runs/../../server.toml",
            "/runs/%2e%2e/files/plan.json",
            "/runs/..%2f..%2fpki/files/server.key",
            "/runs/demo-1/files/..%2fcoordinator.pem",
            "/runs/demo-1/files/%2e%2e%2f%2e%2e%2f%2e%2e%2ftokens.json",
            "/runs/demo-1/files//etc/passwd",
            "/runs/demo-1/files/%2fetc%2fpasswd",
            "/runs/%00/files/plan.json",
            "/runs/demo-1/files",
            "/runs//files/plan.json",
            "/../../../tokens.json",
            "/tokens.json",
            "/runs/" + "a" * 5000,
        ],
    )
    def test_no_path_leads_out(self, served: Served, path: str) -> None:
        answer = served.ask("coordinator", path)
        assert answer.status_code == 404
        assert set(answer.json()) == {"error", "fact", "hint"}
        assert str(served.home.root) not in answer.text

    def test_a_link_in_a_runs_directory_is_not_followed(self, served: Served) -> None:
        run = served.home.runs / "demo-1"
        (run / "witnesses.jsonl").symlink_to(served.home.root / "acts.secret")
        assert served.ask("auditor", "/runs/demo-1/files/witnesses.jsonl").status_code == 404

    def test_a_run_that_another_coordinator_signed_is_not_shown(self, served: Served, tmp_path: Path) -> None:
        stranger = make_coordinator(tmp_path / "stranger")
        write_run(stranger, "demo-2", [Applicant(name) for name in ("east", "north", "west")])
        (stranger.runs / "demo-2").rename(served.home.runs / "demo-2")
        assert served.ask("auditor", "/runs/demo-2").status_code == 404

    def test_a_run_renamed_is_not_shown(self, served: Served) -> None:
        (served.home.runs / "demo-1").rename(served.home.runs / "demo-9")
        assert served.ask("auditor", "/runs").json()["runs"] == []


class TestActs:
    def test_an_auditor_verifies_the_acts_from_the_answer_alone(self, served: Served) -> None:
        served.propose("researcher")
        told = served.ask("auditor", "/acts").json()
        signer = VerifyKey.parse(told["key"]["acts-key"]["key"])
        lines = [canonical_json(act) for act in told["acts"]]
        assert [parse_act(line, signer).seq for line in lines] == list(range(1, len(lines) + 1))
        assert lines == (served.home.root / "acts.jsonl").read_bytes().splitlines()
        assert told["head"]["acts-head"]["seq"] == len(lines)

    def test_acts_come_in_pieces(self, served: Served) -> None:
        assert [act["seq"] for act in served.ask("auditor", "/acts?after=2&limit=3").json()["acts"]] == [3, 4, 5]
        assert served.ask("auditor", "/acts?after=999999").json()["acts"] == []

    @pytest.mark.parametrize("query", ["after=-1", "after=x", "limit=1e9", "after=" + "9" * 40, "limit=٣"])
    def test_a_number_that_is_none_is_refused(self, served: Served, query: str) -> None:
        assert served.ask("auditor", f"/acts?{query}").status_code == 400

    def test_reading_is_no_act(self, served: Served) -> None:
        before = len(served.acts())
        served.ask("auditor", "/runs")
        served.ask("auditor", "/acts")
        assert len(served.acts()) == before

    def test_what_cannot_be_written_down_is_not_done(self, served: Served) -> None:
        (served.home.root / "acts.head").unlink()
        assert served.propose("researcher").status_code == 503
        assert list(served.home.proposals.iterdir()) == []
        assert served.ask("researcher", "/runs").status_code == 200

    def test_a_path_with_control_signs_is_logged_harmlessly(self, served: Served) -> None:
        served.client.get("/api/v1/%1b%5b2J%0aact")
        assert served.acts()[-1].subject == "/api/v1/\\x1b[2J\\nact"


class TestLimits:
    @pytest.fixture
    def narrow(self, made: Made, tmp_path: Path) -> Served:
        limits = ApiLimits(requests_per_second=0.001, failures_per_second=0.1, lines_per_second=0.05)
        return Served(copy_coordinator(made.home, tmp_path / "home"), made.texts, limits)

    def test_one_token_that_asks_too_often_waits_and_the_others_do_not(self, narrow: Served) -> None:
        assert narrow.ask("auditor", "/runs").status_code == 200
        second = narrow.ask("auditor", "/runs")
        assert (second.status_code, second.headers["retry-after"]) == (429, "5")
        assert narrow.ask("researcher", "/runs").status_code == 200

    def test_guesses_meet_429_and_a_right_token_from_there_still_enters(self, narrow: Served) -> None:
        statuses = [narrow.client.get("/api/v1/runs").status_code for _ in range(4)]
        assert statuses == [401, 401, 429, 429]
        assert narrow.ask("auditor", "/runs").status_code == 200

    def test_a_flood_of_refusals_is_counted_and_not_written_line_by_line(self, narrow: Served) -> None:
        before = len(narrow.acts())
        for _ in range(50):
            narrow.client.get("/api/v1/runs")
        assert len(narrow.acts()) - before == 3


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_another_method_is_told_which_fits(served: Served, method: str) -> None:
    answer = served.ask("coordinator", "/runs", method)
    assert answer.status_code == 405
    assert "GET" in answer.headers["allow"]
    assert served.acts()[-1].detail["status"] == 405


def test_answers_are_not_kept_by_anyone_on_the_way(served: Served) -> None:
    for answer in (
        served.ask("auditor", "/runs"),
        served.client.get("/api/v1/runs"),
        served.ask("east", "/consortium.json"),
    ):
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_no_answer_holds_a_secret(served: Served) -> None:
    served.propose("researcher")
    secrets = [
        (served.home.root / "acts.secret").read_bytes(),
        served.home.superexec_secret_path.read_bytes(),
        b"PRIVATE KEY",
        *(text.split("_", 2)[2].encode() for text in served.texts.values()),
        *(
            token["digest"].encode()
            for token in json.loads(served.home.tokens_path.read_bytes())["tokens"]["tokens"].values()
        ),
    ]
    for who in TOKENS:
        for path in [*READS, f"/proposals/{DIGEST}"]:
            content = served.ask(who, path).content
            assert not [secret for secret in secrets if secret in content]


def test_a_site_gets_the_consortium_that_the_coordinator_signed(served: Served) -> None:
    assert served.ask("east", "/consortium.json").content == served.home.consortium_path.read_bytes()


def test_the_api_opens_without_a_passphrase_and_cannot_sign_plans(served: Served) -> None:
    log = ActLog.open(served.home.root)
    assert log.key.public_key != served.home.key.public_key
    assert SigningKey.from_pem((served.home.root / "coordinator.pem").read_bytes(), PASSPHRASE)


def test_a_trailing_slash_is_another_path(served: Served) -> None:
    assert served.ask("auditor", "/runs/").status_code == 404
