"""A coordinator's run from its plan to Flower: drafted, prepared in a directory of its own, and handed over."""

import re
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from common.canonical import canonical_json
from common.errors import ConfigurationError
from common.files import write_atomic
from common.plan import Manifest, RosterEntry, TrainingPlan
from common.runplan import build_manifest, calibrate_evaluation, calibrate_plan
from common.settings import Settings, parse_json_settings
from common.trust import TrustFile
from server.acts import read_acts_key
from server.home import ServerHome
from server.members import Member, read_members
from server.moments import TimeText, time_text
from server.proposals import Proposals, parse_plan
from server.rundir import RunSettings, prepare_run

SUBMISSION_FILE: Final = "submission.json"
_LONGEST_STEM = 40


class HandOver(Settings):
    """One time that a run was given to Flower: when, and Flower's own id of it."""

    time: TimeText
    flower_run: str


class Submission(Settings):
    """`submission.json`: how a run came about; beside what `server.rundir` writes.

    Attributes:
        plan_name: What the person who started it called the plan.
        hand_overs: Oldest first; more than one if the run was resumed.
    """

    version: Literal[1] = 1
    plan_name: str
    prepared: TimeText
    hand_overs: tuple[HandOver, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A run that could be prepared.

    Attributes:
        name: Of the plan, as a person knows it.
        trust: The pinned keys of the coordinator and the roster.
    """

    name: str
    plan: TrainingPlan
    manifest: Manifest
    trust: TrustFile

    @property
    def run_id(self) -> str:
        """The run's name in every message, ledger and directory."""
        return self.manifest.run_id


def read_plan(home: ServerHome, named: str) -> tuple[str, TrainingPlan]:
    """The plan in a TOML or JSON file, or the proposal whose digest begins so; with a name for people.

    Raises:
        ConfigurationError: If there is no such file or proposal, or it is malformed.
    """
    path = Path(named)
    if not path.is_file():
        if "/" in named or path.suffix:
            raise ConfigurationError(f"{named}: no such plan", hint="give a plan.toml, or the digest of a proposal")
        return "proposal", Proposals(home.root, key=read_acts_key(home.root)).find(named).plan
    try:
        return path.stem, parse_plan(path.read_bytes(), toml=path.suffix != ".json")
    except OSError as error:
        raise ConfigurationError(f"{named}: cannot be read: {error.strerror}") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{named}: {error.fact}", hint=f"correct {named}") from error


def draft_run(home: ServerHome, plan: TrainingPlan, *, name: str, sites: Sequence[str] = ()) -> Draft:
    """A run of this plan over the members, or over those of them that are named.

    Raises:
        ConfigurationError: If a named site is no member, they are too few, or no noise or grid fits the plan.
    """
    members = read_members(home.root, home.key.public_key).active
    chosen = _chosen(members, sites)
    try:
        noise_multiplier = calibrate_plan(plan)
    except ValueError as error:
        raise ConfigurationError(f"the plan's epsilon cannot be kept: {error}") from error
    manifest = build_manifest(
        plan,
        run_id=_run_id(name),
        roster=[
            RosterEntry(name=site, identity_key=member.identity_key, nominal_patients=member.nominal_patients)
            for site, member in chosen.items()
        ],
        coordinator_key=home.key.public_key.text,
        noise_multiplier=noise_multiplier,
        evaluation_noise_multiplier=calibrate_evaluation(plan),
    )
    trust = TrustFile(
        coordinator=home.key.public_key.text, sites={site: member.identity_key for site, member in chosen.items()}
    )
    return Draft(name=name, plan=plan, manifest=manifest, trust=trust)


def prepare(home: ServerHome, draft: Draft, *, passphrase: bytes, settings: RunSettings, now: datetime) -> Path:
    """Write the run's directory, whole or not at all, and return it; nobody was asked anything yet."""
    run_dir = home.runs / draft.run_id
    run_dir.mkdir(parents=True, mode=0o700)
    try:
        prepare_run(
            run_dir,
            plan=draft.plan,
            manifest=draft.manifest,
            trust=draft.trust,
            key=home.key,
            passphrase=passphrase,
            settings=settings,
        )
        _write(run_dir, Submission(plan_name=draft.name, prepared=time_text(now)))
    except BaseException:
        shutil.rmtree(run_dir, ignore_errors=True)
        raise
    return run_dir


def note_hand_over(run_dir: Path, *, flower_run: str, now: datetime) -> None:
    """Write down that Flower took the run."""
    known = read_submission(run_dir)
    latest = HandOver(time=time_text(now), flower_run=flower_run)
    _write(run_dir, known.model_copy(update={"hand_overs": (*known.hand_overs, latest)}))


def read_submission(run_dir: Path) -> Submission:
    """How the run in this directory came about; raises ConfigurationError if nothing says so."""
    try:
        content = (run_dir / SUBMISSION_FILE).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{run_dir}: no run was prepared here") from error
    return parse_json_settings(content, Submission, source=str(run_dir / SUBMISSION_FILE))


def find_run(root: Path, run_id: str) -> Path:
    """The directory of a run of this coordinator; the beginning of its id is enough if it is the only one.

    Raises:
        ConfigurationError: If there is no such run, or more than one.
    """
    found = [path for path in run_directories(root) if path.name.startswith(run_id)] if run_id else []
    exact = [path for path in found if path.name == run_id]
    if len(exact or found) != 1:
        many = f"{len(found)} runs begin with {run_id[:63]!r}" if found else f"there is no run {run_id[:63]!r}"
        raise ConfigurationError(f"{root}: {many}", hint="see: fedward server runs")
    return (exact or found)[0]


def run_directories(root: Path) -> list[Path]:
    """Every run that was prepared, the oldest first."""
    found = [path.parent for path in (root / "runs").glob(f"*/{SUBMISSION_FILE}")]
    return sorted(found, key=lambda path: (read_submission(path).prepared, path.name))


def _chosen(members: dict[str, Member], sites: Sequence[str]) -> dict[str, Member]:
    strangers = sorted(set(sites) - members.keys())
    if strangers:
        raise ConfigurationError(
            f"no such member: {', '.join(name[:63] for name in strangers)}",
            hint=f"members: {', '.join(members) or 'none'}",
        )
    return {name: member for name, member in members.items() if not sites or name in sites}


def _run_id(name: str) -> str:
    stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_LONGEST_STEM].strip("-")
    return f"{stem or 'run'}-{secrets.token_hex(6)}"


def _write(run_dir: Path, submission: Submission) -> None:
    write_atomic(run_dir / SUBMISSION_FILE, canonical_json(submission.model_dump(mode="json")) + b"\n")
