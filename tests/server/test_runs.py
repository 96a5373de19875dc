import json
import shutil
import threading
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner, Result

from common.crypto.keys import SigningKey
from common.enrolment import Enrolment
from common.errors import BackendFailed, ConfigurationError, QuorumLost, RunStopped
from common.journal import Journal
from common.plan import TrainingPlan
from server.actlog import ActLog
from server.acts import Actor, read_acts_key, verified_acts
from server.cli import server as server_commands
from server.closing import RunResult
from server.flower_control import FlowerRun
from server.home import ServerHome, ServerSettings
from server.lock import exclusive
from server.members import enrol, revoke
from server.moments import time_text, utc_now
from server.outcome import outcome_written
from server.progress import Progress, Stage, write_progress
from server.proposals import Proposals
from server.run_log import log_lines, log_text
from server.run_status import RunStatus, run_status
from server.rundir import RunSettings, load_run
from server.runs import hand_over, raise_if_failed, refuse_unless_resumable, stop_run
from server.setup import set_up
from server.submission import draft_run, find_run, note_hand_over, prepare, read_plan
from server.superlink import FlowerDirectory, free_port
from server.upstate import UpState, read_up, require_up, write_up

PASSPHRASE = b"a passphrase for tests only"
ACTOR = Actor(name="tester", role="coordinator")
PLAN = """
[task]
kind = "tabular-classification"
classes = ["healthy", "ill"]
positive = "ill"
[model]
inputs = [4]
[training]
rounds = 6
spare_attempts = 4
[privacy]
epsilon = 1.0
delta = 1e-5
nominal_patients = 120
"""


def _enrolment(name: str) -> Enrolment:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    text = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    identity = SigningKey.generate().public_key.text
    return Enrolment(name=name, identity_key=identity, node_key=text, nominal_patients=40)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> ServerHome:
    """A coordinator with four members and one that was revoked; nothing of it is up."""
    settings = ServerSettings(address="localhost:9092", listen="127.0.0.1:9092")
    made = set_up(tmp_path_factory.mktemp("server") / "home", settings=settings, passphrase=PASSPHRASE, actor=ACTOR)
    log = ActLog.open(made.root)
    names = ("east", "gone", "north", "south", "west")
    enrol(made, [_enrolment(name) for name in names], actor=ACTOR, log=log, now=utc_now())
    revoke(made, "gone", actor=ACTOR, log=log, now=utc_now())
    return made


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    path = tmp_path / "Breast Study.toml"
    path.write_text(PLAN)
    return path


@pytest.fixture
def run_dir(home: ServerHome, plan_file: Path) -> Path:
    name, plan = read_plan(home, str(plan_file))
    draft = draft_run(home, plan, name=name)
    return prepare(home, draft, passphrase=PASSPHRASE, settings=RunSettings(), now=utc_now())


def _fedward(home: ServerHome, *arguments: str | Path) -> Result:
    environment = {"FEDWARD_PASSPHRASE": PASSPHRASE.decode(), "FEDWARD_SERVER_HOME": str(home.root)}
    return CliRunner().invoke(server_commands, [str(argument) for argument in arguments], env=environment)


def _nobody_asks() -> dict[str, FlowerRun]:
    raise BackendFailed("nobody is up")


def _flower_says(status: str) -> dict[str, FlowerRun]:
    return {"17": FlowerRun(status=status, sub_status="", details="")}


def _begin(run_dir: Path, stage: Stage, *, rounds: int = 0, time: datetime | None = None) -> None:
    progress = Progress(
        run_id=run_dir.name,
        time=time_text(time or utc_now()),
        stage=stage,
        rounds=rounds,
        of=6,
        attempts=rounds,
        attempts_planned=10,
        present=("east", "north", "south"),
        left={"west": "NoReply"},
        waiting_for={"west": "PlanNotApproved"} if stage == "join" else {},
    )
    write_progress(run_dir, progress)


def _close(run_dir: Path, rounds: int) -> None:
    result = RunResult(rounds=rounds, attempts=rounds, model_digest="", left={}, exchanges=9, bytes_up=40)
    (run_dir / "result.json").write_text(json.dumps({"version": 1, **asdict(result)}))


@pytest.fixture
def at_work(run_dir: Path) -> Iterator[Path]:
    """A run whose lock somebody holds, as a ServerApp does."""
    with exclusive(run_dir / "run.lock"):
        yield run_dir


# Drafts


def test_a_draft_takes_every_member_and_no_revoked_one(home: ServerHome, plan_file: Path) -> None:
    name, plan = read_plan(home, str(plan_file))
    draft = draft_run(home, plan, name=name)
    assert draft.manifest.names == ("east", "north", "south", "west")
    assert set(draft.trust.sites) == {"east", "north", "south", "west"}
    assert draft.run_id.startswith("breast-study-")


def test_named_sites_alone_take_part_and_a_stranger_is_named(home: ServerHome, plan_file: Path) -> None:
    name, plan = read_plan(home, str(plan_file))
    assert draft_run(home, plan, name=name, sites=["west", "east", "north"]).manifest.names == ("east", "north", "west")
    with pytest.raises(ConfigurationError, match="no such member: gone") as raised:
        draft_run(home, plan, name=name, sites=["east", "gone"])
    assert "east, north, south, west" in raised.value.hint


def test_too_few_sites_are_refused(home: ServerHome, plan_file: Path) -> None:
    name, plan = read_plan(home, str(plan_file))
    with pytest.raises(ConfigurationError, match="2 sites are fewer than the minimum cohort of 3"):
        draft_run(home, plan, name=name, sites=["east", "west"])


def test_a_proposal_is_a_plan_too(home: ServerHome) -> None:
    plan = TrainingPlan.model_validate(tomllib.loads(PLAN))
    log_key = SigningKey.from_pem((home.root / "acts.key").read_bytes(), (home.root / "acts.secret").read_bytes())
    proposals = Proposals(home.root, key=read_acts_key(home.root))
    proposals.add(plan, proposer="ada", key=log_key, now=utc_now())
    assert read_plan(home, plan.digest)[1].digest == plan.digest


@pytest.mark.parametrize("named", ["missing.toml", "sha256:" + "0" * 64, "../up"])
def test_a_plan_that_does_not_exist_is_refused(home: ServerHome, named: str) -> None:
    with pytest.raises(ConfigurationError):
        read_plan(home, named)


def test_the_first_digits_of_a_proposal_are_enough(home: ServerHome) -> None:
    plan = TrainingPlan.model_validate(tomllib.loads(PLAN))
    log_key = SigningKey.from_pem((home.root / "acts.key").read_bytes(), (home.root / "acts.secret").read_bytes())
    proposals = Proposals(home.root, key=read_acts_key(home.root))
    proposals.add(plan, proposer="grace", key=log_key, now=utc_now())
    assert read_plan(home, plan.digest[7:15])[1].digest == plan.digest
    shown = _fedward(home, "proposals", "--show", plan.digest[7:15])
    assert json.loads(shown.stdout) == plan.to_json()


def test_a_run_that_cannot_be_prepared_leaves_nothing(home: ServerHome, plan_file: Path) -> None:
    name, plan = read_plan(home, str(plan_file))
    draft = draft_run(home, plan, name=name)
    with pytest.raises(ValueError, match="passphrase"):
        prepare(home, draft, passphrase=b"short", settings=RunSettings(), now=utc_now())
    assert not (home.runs / draft.run_id).exists()


def test_nothing_is_prepared_while_superlink_does_not_answer(home: ServerHome, plan_file: Path) -> None:
    before = sorted(home.runs.iterdir())
    authority = (home.pki / "ca.crt").resolve()
    FlowerDirectory(root=home.flower).prepare(address=f"127.0.0.1:{free_port()}", authority=authority)
    write_up(home.root, UpState(pid=1, superlink="127.0.0.1:1", gateway="127.0.0.1:2", api=""))
    try:
        with exclusive(home.root / "up.lock"):
            said = _fedward(home, "run", plan_file)
    finally:
        (home.root / "up.json").unlink()
    assert isinstance(said.exception, BackendFailed)
    assert "its SuperLink is not: SuperLink does not answer on 127.0.0.1:" in said.exception.fact
    assert sorted(home.runs.iterdir()) == before


def test_an_error_in_a_plan_names_its_file_and_key(home: ServerHome, plan_file: Path) -> None:
    plan_file.write_text(PLAN.replace("rounds = 6", "round = 6"))
    with pytest.raises(ConfigurationError, match=r"Breast Study\.toml: .*unknown key 'training\.round'"):
        read_plan(home, str(plan_file))


def test_a_prepared_run_opens_with_the_coordinators_passphrase(run_dir: Path) -> None:
    assert load_run(run_dir, passphrase=PASSPHRASE).manifest.run_id == run_dir.name
    assert run_dir.stat().st_mode & 0o777 == 0o700


def test_a_dry_run_says_the_cost_and_changes_nothing(home: ServerHome, plan_file: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in home.root.rglob("*"))
    said = _fedward(home, "run", plan_file, "--dry-run", "--sites", "east,north,west", "--format", "json")
    assert said.exit_code == 0
    document = json.loads(said.stdout)
    assert document["sites"] == {"east": 40, "north": 40, "west": 40}
    assert (document["dimension"], document["bytes_a_round"]["all"]) == (10, 240)
    privacy = document["privacy"]
    assert 0.9 < privacy["epsilon"] <= document["target_epsilon"] < privacy["epsilon_alone"]
    assert (privacy["delta"], privacy["unit"], privacy["relation"]) == (1e-5, "patient", "add_remove_one")
    assert sorted((path, path.stat().st_mtime_ns) for path in home.root.rglob("*")) == before


def test_a_dry_run_in_words_shows_each_epsilon_with_delta_unit_and_relation(home: ServerHome, plan_file: Path) -> None:
    text = _fedward(home, "run", plan_file, "--dry-run").stdout
    assert "while at most 1 site cheats" in text
    assert "(delta 1e-05, per patient, add or remove one)" in text


def test_nothing_is_prepared_while_no_coordinator_is_up(home: ServerHome, plan_file: Path) -> None:
    before = sorted(home.runs.iterdir())
    said = _fedward(home, "run", plan_file)
    assert isinstance(said.exception, BackendFailed)
    assert "fedward server up" in said.exception.hint
    assert sorted(home.runs.iterdir()) == before


# How a run fares


def test_a_run_that_was_never_handed_over_can_be_resumed(home: ServerHome, run_dir: Path) -> None:
    status = run_status(run_dir, flower_runs=_nobody_asks)
    assert (status.state, status.words) == ("interrupted", "never begun: resume")
    refuse_unless_resumable(home.root, run_dir)


@pytest.mark.parametrize(
    ("flower", "state"), [("pending", "starting"), ("running", "starting"), ("finished", "interrupted")]
)
def test_until_the_server_app_is_at_work_flower_is_asked(run_dir: Path, flower: str, state: str) -> None:
    note_hand_over(run_dir, flower_run="17", now=utc_now())
    assert run_status(run_dir, flower_runs=lambda: _flower_says(flower)).state == state


def test_a_run_at_work_waits_for_sites_and_then_runs(home: ServerHome, at_work: Path) -> None:
    assert run_status(at_work, flower_runs=_nobody_asks).state == "waiting"
    _begin(at_work, "join")
    waiting = run_status(at_work, flower_runs=_nobody_asks)
    assert (waiting.words, waiting.waiting_for) == ("waiting for sites", {"west": "PlanNotApproved"})
    _begin(at_work, "train", rounds=2)
    running = run_status(at_work, flower_runs=_nobody_asks)
    assert (running.words, running.present, running.left) == (
        "running 2/6",
        ("east", "north", "south"),
        {"west": "NoReply"},
    )
    with pytest.raises(ConfigurationError, match=r"is at work \(running 2/6\)"):
        refuse_unless_resumable(home.root, at_work)


def test_a_server_app_that_died_is_seen_though_flower_believes_in_it(run_dir: Path) -> None:
    note_hand_over(run_dir, flower_run="17", now=utc_now() - timedelta(minutes=1))
    _begin(run_dir, "train", rounds=3)
    status = run_status(run_dir, flower_runs=lambda: _flower_says("running"))
    assert (status.state, status.rounds, status.closed) == ("interrupted", 3, False)


def test_after_a_resume_the_old_progress_does_not_count(run_dir: Path) -> None:
    _begin(run_dir, "train", rounds=3, time=utc_now() - timedelta(minutes=1))
    note_hand_over(run_dir, flower_run="17", now=utc_now())
    assert run_status(run_dir, flower_runs=lambda: _flower_says("pending")).state == "starting"


def test_a_last_word_that_comes_a_moment_after_the_lock_was_let_go_is_heard(run_dir: Path) -> None:
    _begin(run_dir, "finish", rounds=6)
    _close(run_dir, 6)

    def last_word() -> None:
        with outcome_written(run_dir):
            pass

    timer = threading.Timer(0.2, last_word)
    timer.start()
    try:
        assert run_status(run_dir, flower_runs=_nobody_asks, patience_s=60).state == "completed"
    finally:
        timer.join()


def _ended(run_dir: Path, error: Exception | None) -> RunStatus:
    _close(run_dir, 0 if error else 6)
    with suppress(QuorumLost, RunStopped), outcome_written(run_dir):
        if error is not None:
            raise error
    return run_status(run_dir, flower_runs=_nobody_asks)


def test_a_server_app_that_died_between_result_and_last_word_did_not_complete(home: ServerHome, run_dir: Path) -> None:
    _close(run_dir, 6)
    status = run_status(run_dir, flower_runs=_nobody_asks)
    assert (status.words, status.closed) == ("failed Unknown", True)
    with pytest.raises(BackendFailed):
        raise_if_failed(home.root, run_dir, status)


def test_a_failed_run_raises_its_very_error_again(home: ServerHome, run_dir: Path) -> None:
    status = _ended(run_dir, QuorumLost("2 of 4 sites are left", hint="wait"))
    assert (status.state, status.words) == ("failed", "failed QuorumLost")
    with pytest.raises(QuorumLost, match="2 of 4 sites are left"):
        raise_if_failed(home.root, run_dir, status)


def test_a_fault_of_the_program_leaves_a_run_that_can_be_resumed_and_says_so(home: ServerHome, run_dir: Path) -> None:
    note_hand_over(run_dir, flower_run="17", now=utc_now())
    with suppress(ZeroDivisionError), outcome_written(run_dir):
        raise ZeroDivisionError
    status = run_status(run_dir, flower_runs=_nobody_asks)
    assert status.words == "failed ZeroDivisionError: resume"
    refuse_unless_resumable(home.root, run_dir)
    with pytest.raises(BackendFailed) as raised:
        raise_if_failed(home.root, run_dir, status)
    assert f"fedward server resume {run_dir.name}" in raised.value.hint


def test_a_stopped_run_is_no_failure_of_its_own_kind(home: ServerHome, run_dir: Path) -> None:
    status = _ended(run_dir, RunStopped("the run was stopped after 2 of 6 rounds"))
    assert status.state == "stopped"
    with pytest.raises(RunStopped):
        raise_if_failed(home.root, run_dir, status)


def test_a_run_that_is_over_is_neither_resumed_nor_stopped(home: ServerHome, run_dir: Path) -> None:
    status = _ended(run_dir, None)
    assert status.state == "completed"
    raise_if_failed(home.root, run_dir, status)
    with pytest.raises(ConfigurationError, match=r"is over \(completed\)"):
        refuse_unless_resumable(home.root, run_dir)


def test_a_run_that_ended_well_without_a_round_is_a_failure_all_the_same(home: ServerHome, run_dir: Path) -> None:
    _close(run_dir, 0)
    with outcome_written(run_dir):
        pass
    with pytest.raises(QuorumLost, match="no round was completed"):
        raise_if_failed(home.root, run_dir, run_status(run_dir, flower_runs=_nobody_asks))


def test_a_run_whose_process_died_is_a_backend_failure_that_says_how_to_go_on(home: ServerHome, run_dir: Path) -> None:
    _begin(run_dir, "train", rounds=3)
    with pytest.raises(BackendFailed, match="after 3 rounds") as raised:
        raise_if_failed(home.root, run_dir, run_status(run_dir, flower_runs=_nobody_asks))
    assert f"fedward server resume {run_dir.name}" in raised.value.hint


# Commands without a coordinator that is up


def test_runs_are_listed_and_found_by_the_beginning_of_their_id(home: ServerHome, run_dir: Path) -> None:
    _begin(run_dir, "train", rounds=3)
    listed = json.loads(_fedward(home, "runs", "--format", "json").stdout)["runs"]
    (own,) = (entry for entry in listed if entry["run_id"] == run_dir.name)
    assert (own["plan"], own["state"], own["rounds"]) == ("Breast Study", "interrupted", 3)
    assert own["plan_digest"].startswith("sha256:")
    assert find_run(home.root, run_dir.name[:-1]) == run_dir


@pytest.mark.parametrize("wrong", ["", "nothing", "../.."])
def test_a_run_that_does_not_exist_is_refused(home: ServerHome, run_dir: Path, wrong: str) -> None:
    with pytest.raises(ConfigurationError, match="there is no run"):
        find_run(home.root, wrong)


def test_a_beginning_that_two_runs_share_is_refused(home: ServerHome, run_dir: Path) -> None:
    twin = run_dir.with_name(f"{run_dir.name}-twin")
    shutil.copytree(run_dir, twin)
    try:
        assert find_run(home.root, run_dir.name) == run_dir
        with pytest.raises(ConfigurationError, match="2 runs begin with"):
            find_run(home.root, run_dir.name[:-1])
    finally:
        shutil.rmtree(twin)


def test_a_log_is_shown_line_by_line_without_half_a_line(home: ServerHome, run_dir: Path) -> None:
    with (run_dir / "log.jsonl").open("w") as stream:
        Journal(stream, clock=lambda: datetime(2026, 1, 2, tzinfo=UTC)).write(
            "attempt", run=run_dir.name, round=1, attempt=2, cohort=["east", "west"]
        )
        stream.write('{"time": "2026')
    said = _fedward(home, "log", run_dir.name)
    assert said.stdout == "2026-01-02T00:00:00.000Z attempt round=1 attempt=2 cohort=east,west\n"
    assert len(list(log_lines(home.root, run_dir, follow=True))) == 1
    assert "\x1b" not in log_text('{"time": "t", "event": "\\u001b[2J"}')


def test_handing_over_and_stopping_need_a_coordinator_that_is_up(home: ServerHome, run_dir: Path) -> None:
    acts = len(list(verified_acts(home.root)))
    with pytest.raises(BackendFailed):
        hand_over(home.root, run_dir, act="resume", actor=ACTOR, detail={})
    with pytest.raises(BackendFailed):
        stop_run(home.root, run_dir, actor=ACTOR, timeout_s=None, tell=lambda _: None)
    assert len(list(verified_acts(home.root))) == acts
    assert not (run_dir / "stop").exists()


def test_what_a_killed_coordinator_left_behind_is_not_taken_for_a_running_one(home: ServerHome) -> None:
    state = UpState(pid=1, superlink="127.0.0.1:1", gateway="127.0.0.1:2", api="")
    write_up(home.root, state)
    try:
        assert read_up(home.root) is None
        with exclusive(home.root / "up.lock"):
            assert require_up(home.root) == state
    finally:
        (home.root / "up.json").unlink()
