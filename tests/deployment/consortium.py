"""A consortium of real processes on loopback, built and driven by the commands that its people would type."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.processes import MARK_VARIABLE, family, stop
from server.superlink import free_port
from tests.deployment.waiting import wait_until
from tests.flows.federation import CLASSES, POPULATION, make_schema, make_table

FEDWARD = str(Path(sys.executable).parent / "fedward")
SITES = ("east", "north", "west")
PATIENTS = {"east": 34, "north": 43, "south": 33, "west": 38}
FEATURES = 4
COMMAND_TIMEOUT_S = 120.0
GRACE_S = 15.0
EPSILON, DELTA = 6.0, 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    def document(self) -> dict[str, Any]:
        """The JSON document on stdout."""
        found: dict[str, Any] = json.loads(self.out)
        return found


class Party:
    """One machine: its directory, its passphrase, and the processes that run there."""

    def __init__(self, root: Path, *, mark: str) -> None:
        self.root = root
        root.mkdir(parents=True, mode=0o700)
        self.passphrase_file = root / "passphrase"
        self.passphrase_file.write_text(secrets.token_urlsafe(24))
        self.passphrase_file.chmod(0o600)
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("FLWR_", "FEDWARD_", "RAY_"))
        }
        self.environment = {
            **inherited,
            "HOME": str(root),
            "FLWR_HOME": str(root / "flwr-home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FEDWARD_PASSPHRASE_FILE": str(self.passphrase_file),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "100",
            MARK_VARIABLE: mark,
        }

    def fedward(self, *arguments: str | Path, timeout_s: float = COMMAND_TIMEOUT_S, stdin: str = "") -> Said:
        """Run one command to its end, whatever that is."""
        done = subprocess.run(
            [FEDWARD, *map(str, arguments)],
            cwd=self.root,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return Said(code=done.returncode, out=done.stdout, err=done.stderr)

    def must(self, *arguments: str | Path, timeout_s: float = COMMAND_TIMEOUT_S) -> Said:
        """Run one command that has to succeed."""
        said = self.fedward(*arguments, timeout_s=timeout_s)
        if said.code != 0:
            raise RuntimeError(f"fedward {' '.join(map(str, arguments))} ended with {said.code}:\n{said.out}{said.err}")
        return said


@dataclass(slots=True, kw_only=True)
class Running:
    """A command that goes on until it is stopped."""

    process: subprocess.Popen[bytes]
    log: Path

    def text(self) -> str:
        """Everything it said so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")


@dataclass(slots=True, kw_only=True)
class Consortium:
    """A coordinator and its sites; everything lies below `root`, which is short for the sake of Unix sockets."""

    root: Path
    server: Party
    sites: dict[str, Party]
    address: str
    running: dict[str, Running] = field(default_factory=dict)

    @property
    def mark(self) -> str:
        """What tells this consortium's processes from all others."""
        return str(self.root)

    @property
    def server_home(self) -> Path:
        """The coordinator's directory."""
        return self.server.root / "home"

    def home(self, site: str) -> Path:
        """A site's directory."""
        return self.sites[site].root / "home"

    def courier(self, site: str) -> Path:
        """A courier's directory."""
        return self.sites[site].root / "courier"

    def start(self, name: str, party: Party, *arguments: str | Path, ready: Callable[[], bool]) -> Running:
        """Start a command that stays, and wait until it is ready."""
        log = self.root / f"{name}.log"
        with log.open("ab") as stream:
            process = subprocess.Popen(
                [FEDWARD, *map(str, arguments)],
                cwd=party.root,
                env=party.environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started = self.running[name] = Running(process=process, log=log)
        wait_until(lambda: ready() or process.poll() is not None, what=f"{name} to be ready", says=started.text)
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended with {process.returncode}:\n{started.text()}")
        return started

    def up(self) -> Running:
        """Start the coordinator."""
        return self.start(
            "server",
            self.server,
            "server",
            "up",
            "--home",
            self.server_home,
            ready=(self.server_home / "up.json").exists,
        )

    def site_up(self, site: str) -> Running:
        """Start one site's agent and courier."""
        log = self.root / f"{site}.log"
        before = len(log.read_bytes()) if log.exists() else 0

        def ready() -> bool:
            return "connected" in log.read_text(encoding="utf-8", errors="replace")[before:]

        home, courier = self.home(site), self.courier(site)
        return self.start(site, self.sites[site], "site", "up", "--home", home, "--courier", courier, ready=ready)

    def end(self, *names: str) -> set[int]:
        """Stop commands as people would, by SIGTERM and at the same time; the codes with which they ended."""
        ending = [self.running.pop(name).process for name in names]
        for process in ending:
            process.send_signal(signal.SIGTERM)
        return {process.wait(GRACE_S + 10) for process in ending}

    def processes(self, *words: str) -> list[int]:
        """Ids of this consortium's processes whose command line holds all words."""
        found = []
        for process in family(self.mark):
            try:
                line = Path(f"/proc/{process.process_id}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if all(word in line for word in words):
                found.append(process.process_id)
        return sorted(found)

    def plan(self, name: str, **changes: Any) -> Path:
        """A plan.toml of the coordinator's; `changes` are dotted keys with double underscores."""
        document = plan_document()
        for key, value in changes.items():
            *path, last = key.split("__")
            table = document
            for part in path:
                table = table.setdefault(part, {})
            table[last] = value
        path_ = self.server.root / f"{name}.toml"
        path_.write_text(to_toml(document))
        return path_

    def approve(self, plan: Path, *sites: str) -> None:
        """What each administrator, or that of these sites, does with a plan that came by mail."""
        self.at_once(
            lambda site, party: party.must(
                "site", "plans", "approve", plan, "--home", self.home(site), "--population", POPULATION
            ),
            *sites,
        )

    def at_once(self, do: Callable[[str, Party], object], *sites: str) -> None:
        """What the administrators of these sites, of all by default, do at the same time."""
        chosen = {site: self.sites[site] for site in sites or self.sites}
        with ThreadPoolExecutor(len(chosen)) as administrators:
            list(administrators.map(do, chosen, chosen.values()))

    def progress(self, run_id: str) -> dict[str, Any]:
        """The public progress of a run; empty before there is any."""
        try:
            found: dict[str, Any] = json.loads((self.server_home / "runs" / run_id / "progress.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return found

    def run_ids(self) -> list[str]:
        """Every run that was prepared."""
        runs = self.server_home / "runs"
        return sorted(entry.name for entry in runs.iterdir()) if runs.exists() else []

    def begin(self, plan: Path, *options: str) -> str:
        """Start a run and come back at once; its identifier."""
        arguments = ["server", "run", plan, "--detach", "--home", self.server_home, "--format", "json", *options]
        return str(self.server.must(*arguments).document()["run_id"])

    def rounds(self, run_id: str) -> int:
        """Rounds that a run has done."""
        return int(self.progress(run_id).get("rounds", 0))

    def state(self, run_id: str) -> str:
        """How the coordinator says that a run fares."""
        listed = self.server.must("server", "runs", "--home", self.server_home, "--format", "json").document()
        return str(next(found["state"] for found in listed["runs"] if found["run_id"] == run_id))

    def finish(self, run_id: str, *, timeout_s: float = 150.0) -> str:
        """Wait for the end of a run; its state."""
        ends = ("result.json", "outcome.json")
        run_dir = self.server_home / "runs" / run_id
        wait_until(lambda: any((run_dir / end).exists() for end in ends), what=f"{run_id} to end", timeout_s=timeout_s)
        ended = ("completed", "failed", "stopped", "interrupted")
        wait_until(lambda: self.state(run_id) in ended, what=f"{run_id} to be over", pause_s=1.0)
        return self.state(run_id)

    def charges(self, site: str, run_id: str = "") -> list[tuple[int, int]]:
        """Round and attempt of every charge in a site's ledger, or of those for one run, whatever came of them."""
        lines = (self.home(site) / "ledger.jsonl").read_bytes().splitlines(keepends=True)
        entries = [json.loads(line) for line in lines if line.endswith(b"\n")]  # the last may just be written
        charged = [entry for entry in entries if entry["kind"] == "reserve" and run_id in ("", entry["run"])]
        return [(entry["round"], entry["attempt"]) for entry in charged]

    def charged(self, site: str) -> int:
        """How many attempts stand in a site's ledger."""
        return len(self.charges(site))

    def kill(self, process_id: int, number: int = signal.SIGKILL) -> None:
        """Signal one of this consortium's own processes."""
        if process_id not in {process.process_id for process in family(self.mark)}:
            raise ProcessLookupError(f"{process_id} is none of this consortium's processes")
        os.kill(process_id, number)

    def budget(self, site: str) -> dict[str, Any]:
        """What the site itself says of its budget."""
        return self.sites[site].must("site", "budget", "--home", self.home(site), "--format", "json").document()


@contextmanager
def consortium(*, sites: Sequence[str] = SITES) -> Iterator[Consortium]:
    """A consortium whose sites are enrolled, trusted and have data and rules; nothing of it runs yet."""
    root = Path(tempfile.mkdtemp(prefix="fw-", dir="/tmp"))
    first: subprocess.Popen[bytes] | None = None
    try:
        mark = str(root)
        built = Consortium(
            root=root,
            server=Party(root / "server", mark=mark),
            sites={site: Party(root / site, mark=mark) for site in sites},
            address=f"localhost:{free_port()}",
        )
        listen = built.address.replace("localhost", "127.0.0.1")
        built.server.must("server", "init", "--home", built.server_home, "--address", built.address, "--listen", listen)
        fingerprints: dict[str, str] = {}
        built.at_once(lambda site, _: fingerprints.update({site: _init_site(built, site)}))
        enrolments = built.root / "mail"
        built.server.must("server", "enrol", *fingerprints.values(), "--from", enrolments, "--home", built.server_home)
        built.at_once(lambda site, _: _join(built, site))
        try:
            yield built
        finally:
            with suppress(subprocess.TimeoutExpired):  # whoever does not go is killed below
                built.end(*built.running)
    finally:
        first = subprocess.Popen(["sleep", "0"])
        stop(first, str(root), grace_s=GRACE_S)
        shutil.rmtree(root, ignore_errors=True)


def _init_site(built: Consortium, site: str) -> str:
    party, home = built.sites[site], built.home(site)
    arguments = ["site", "init", site, "--home", home, "--courier", built.courier(site)]
    said = party.must(*arguments, "--nominal-patients", str(PATIENTS[site] // 10 * 10), "--format", "json").document()
    mail = built.root / "mail"
    mail.mkdir(exist_ok=True)
    shutil.copy(said["enrolment"], mail / f"{site}.json")
    return str(said["fingerprint"])


def _join(built: Consortium, site: str) -> None:
    from common.enrolment import read_consortium

    party, home, courier = built.sites[site], built.home(site), built.courier(site)
    document = built.server_home / "consortium.json"
    fingerprint = read_consortium(document).fingerprint
    party.must("site", "trust", document, "--fingerprint", fingerprint, "--home", home, "--courier", courier)
    rules = party.root / "rules.toml"
    rules.write_text(policy_text())
    party.must("site", "policy", "--install", rules, "--home", home)
    table, schema = party.root / "ward.csv", party.root / "schema.toml"
    make_table(site, patients=PATIENTS[site], features=FEATURES).write_csv(table)
    declared = make_schema(FEATURES).model_dump(mode="json", exclude_defaults=True)
    schema.write_text(to_toml({"version": 1, "deid": declared}))
    arguments = ["site", "dataset", "add", table, "--schema", schema, "--name", POPULATION, "--home", home]
    party.must(*arguments, "--classes", ",".join(CLASSES))


def plan_document() -> dict[str, Any]:
    """A small plan that four or three sites can train in seconds."""
    return {
        "task": {"kind": "tabular-classification", "classes": list(CLASSES), "positive": "ill"},
        "model": {"inputs": [FEATURES]},
        "normalisation": {"limit": 3.0},
        "training": {"rounds": 6, "spare_attempts": 4, "server_optimizer": "sgd"},
        "privacy": {"epsilon": 1.0, "delta": DELTA, "nominal_patients": 100},
        "secure_sum": {"minimum_cohort": 3},
    }


def policy_text(*, epsilon: float = EPSILON) -> str:
    """A site's rules with one budget."""
    return (
        "version = 1\nminimum_patients = 20\nminimum_cohort = 3\n"
        f"[budget.{POPULATION}]\nepsilon = {epsilon}\nepsilon_alone = {4 * epsilon}\ndelta = {DELTA}\n"
    )


def to_toml(document: Mapping[str, Any]) -> str:
    """A document of tables as TOML: JSON writes scalars and lists the same way, tables get headers."""
    return "\n".join(_tables(document, ())) + "\n"


def _tables(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    if path:
        yield "[" + ".".join(json.dumps(part) for part in path) + "]"
    for key, value in table.items():
        if not isinstance(value, Mapping):
            yield f"{json.dumps(key)} = {json.dumps(value)}"
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _tables(value, (*path, key))
