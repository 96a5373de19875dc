"""An administrator's afternoon on the command line: from an empty directory to a plan that trains."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from client.agent import SiteAgent
from common import wire_pb2 as pb
from common.canonical import canonical_json
from common.crypto.keys import SigningKey
from common.enrolment import Consortium, read_enrolment, write_consortium
from common.plan import Manifest, RosterEntry, TrainingPlan
from common.runplan import build_manifest, calibrate_plan
from common.wire import ANY_SITE, COORDINATOR, read_body, read_envelope, write_envelope
from server.pki import make_authority
from tests.flows.conftest import Fedward
from tests.flows.federation import make_plan, make_table

PASSPHRASE = "a passphrase for tests only"
SCHEMA = """
version = 1
deid.mode = "safe_harbor"
deid.as_of_year = 2026
deid.columns.mrn = { action = "pseudonymise", kind = "id", role = "patient" }
deid.columns.name = { action = "drop" }
deid.columns.diagnosis = { action = "keep", type = "category", values = ["healthy", "ill"], role = "label" }
deid.families.sizes.columns = ["size 0", "size 1", "size 2", "size 3"]
deid.families.sizes.action = "keep"
deid.families.sizes.type = "number"
deid.families.sizes.role = "feature"
"""
BUDGET = "\n[budget.ward]\nepsilon = 3.5\nepsilon_alone = 9.0\ndelta = 1e-5\n"
NAMES = ("east", "north", "west")


@dataclass(frozen=True, kw_only=True)
class Place:
    """One administrator's machine."""

    root: Path
    name: str

    @property
    def home(self) -> Path:
        return self.root / self.name

    @property
    def courier(self) -> Path:
        return self.root / f"{self.name}-courier"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FEDWARD_HOME", "FEDWARD_COURIER", "FEDWARD_PASSPHRASE_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FEDWARD_PASSPHRASE", PASSPHRASE)


@pytest.fixture
def places(tmp_path: Path, fedward: Fedward) -> dict[str, Place]:
    """Three sites, each made by `fedward site init`."""
    made = {name: Place(root=tmp_path, name=name) for name in NAMES}
    for name, place in made.items():
        done = fedward("site", "init", name, "--home", place.home, "--nominal-patients", 20)
        assert done.code == 0, done.err
    return made


def consortium_of(places: dict[str, Place], key: SigningKey, path: Path) -> Consortium:
    """What a coordinator makes of the enrolments that it was sent."""
    authority = path.parent / "pki"
    make_authority(authority, hosts=["gateway.example.org"], passphrase=PASSPHRASE.encode(), now=datetime.now(UTC))
    sites = {name: read_enrolment(place.courier / "enrolment.json").identity_key for name, place in places.items()}
    made = Consortium(
        coordinator=key.public_key.text,
        gateway="gateway.example.org:443",
        certificates=(authority / "ca.crt").read_text(),
        sites=sites,
    )
    write_consortium(path, made, key)
    return made


def enrol(places: dict[str, Place], fedward: Fedward) -> SigningKey:
    """Every site pins the consortium."""
    key, path = SigningKey.generate(), places["east"].root / "consortium.json"
    made = consortium_of(places, key, path)
    for place in places.values():
        done = fedward("site", "trust", path, "--home", place.home, "--fingerprint", made.fingerprint)
        assert done.code == 0, done.err
        assert "coordinator's key: new" in done.out
        assert 'gateway = "gateway.example.org:443"' in (place.courier / "courier.toml").read_text()
    return key


def register(place: Place, fedward: Fedward) -> None:
    """A budget, signed, and a table under it."""
    policy = place.home / "policy.toml"
    policy.write_text(policy.read_text() + BUDGET)
    assert fedward("site", "policy", "--home", place.home, "--install", policy).code == 0
    (place.root / "schema.toml").write_text(SCHEMA)
    table = place.root / f"{place.name}.csv"
    make_table(place.name, patients=24).write_csv(table)
    done = fedward(
        *("site", "dataset", "add", table, "--home", place.home, "--schema", place.root / "schema.toml"),
        *("--name", "ward"),
    )
    assert done.code == 0, done.err
    assert "sum          32" in done.out


def manifest_for(places: dict[str, Place], key: SigningKey, plan: TrainingPlan) -> Manifest:
    sites = {name: read_enrolment(place.courier / "enrolment.json") for name, place in places.items()}
    return build_manifest(
        plan,
        run_id="first",
        roster=[
            RosterEntry(name=name, identity_key=site.identity_key, nominal_patients=site.nominal_patients)
            for name, site in sites.items()
        ],
        coordinator_key=key.public_key.text,
        noise_multiplier=calibrate_plan(plan),
    )


def offered(place: Place, key: SigningKey, plan: TrainingPlan, manifest: Manifest) -> str:
    """Offer a plan to a site's agent; the kind of its reply, or the name of its refusal."""
    body = pb.Offer(plan=canonical_json(plan.to_json()), manifest=canonical_json(manifest.to_json()))
    message = write_envelope(body, key=key, run_id="first", sender=COORDINATOR, recipient=ANY_SITE)
    with SiteAgent.open(place.home, passphrase=PASSPHRASE.encode()) as agent:
        reply = read_envelope(agent.handle(message))
    return str(read_body(reply, pb.Refused).name) if reply.kind == "refused" else reply.kind


def test_from_an_empty_directory_to_an_approved_plan(places: dict[str, Place], fedward: Fedward) -> None:
    key, north = enrol(places, fedward), places["north"]
    register(north, fedward)
    plan = make_plan(rounds=2, spare_attempts=1, nominal_patients=60)
    manifest = manifest_for(places, key, plan)
    assert offered(north, key, plan, manifest) == "PlanNotApproved"
    listed = json.loads(fedward("site", "plans", "list", "--home", north.home, "--format", "json").out)
    (row,) = listed["plans"]
    assert (row["digest"], row["state"], row["run_id"]) == (plan.digest, "waiting", "first")
    digits = plan.digest.removeprefix("sha256:")[:8]
    shown = fedward("site", "plans", "show", digits, "--home", north.home)
    assert shown.code == 0 and "it fits" in shown.out and "beside this one: east (weight 20), west" in shown.out
    done = fedward("site", "plans", "approve", digits, "--home", north.home)
    assert (done.code, done.out) == (0, f"approved for population ward, 1 run: {plan.digest}\n")
    assert offered(north, key, plan, manifest) == "joined"
    assert "approved for ward" in fedward("site", "plans", "list", "--home", north.home).out


def test_a_rejection_is_remembered(places: dict[str, Place], fedward: Fedward) -> None:
    key, north = enrol(places, fedward), places["north"]
    register(north, fedward)
    plan = make_plan(rounds=2, spare_attempts=1, nominal_patients=60)
    manifest = manifest_for(places, key, plan)
    offered(north, key, plan, manifest)
    assert fedward("site", "plans", "reject", plan.digest, "--home", north.home).code == 0
    assert offered(north, key, plan, manifest) == "PlanNotApproved"
    assert "rejected" in fedward("site", "plans", "list", "--home", north.home).out
    assert fedward("site", "plans", "approve", plan.digest, "--home", north.home).code == 0
    assert offered(north, key, plan, manifest) == "joined"


def test_a_plan_that_the_budget_cannot_pay_is_refused_with_code_7(places: dict[str, Place], fedward: Fedward) -> None:
    key, north = enrol(places, fedward), places["north"]
    register(north, fedward)
    plan = make_plan(rounds=2, spare_attempts=1, nominal_patients=60, epsilon=8.0)
    offered(north, key, plan, manifest_for(places, key, plan))
    done = fedward("site", "plans", "approve", plan.digest[:20], "--home", north.home)
    assert (done.code, done.out) == (7, "")
    assert "of 3.500" in done.err
    assert "REFUSED: epsilon would reach" in fedward("site", "plans", "show", plan.digest, "--home", north.home).out


def test_the_fingerprint_that_is_read_out_is_that_of_the_enrolment(tmp_path: Path, fedward: Fedward) -> None:
    done = fedward("site", "init", "north", "--home", tmp_path / "north", "--format", "json")
    document = json.loads(done.out)
    enrolment = read_enrolment(Path(document["enrolment"]))
    assert document["fingerprint"] == enrolment.fingerprint
    again = fedward("site", "init", "north", "--home", tmp_path / "north")
    assert (again.code, again.out) == (4, "")


def test_a_fingerprint_of_another_file_pins_nothing(places: dict[str, Place], fedward: Fedward) -> None:
    path = places["east"].root / "consortium.json"
    consortium_of(places, SigningKey.generate(), path)
    other = read_enrolment(places["east"].courier / "enrolment.json").fingerprint
    done = fedward("site", "trust", path, "--home", places["east"].home, "--fingerprint", other)
    assert done.code == 12 and "does not have the fingerprint" in done.err
    assert not (places["east"].home / "trust.json").exists()


def test_a_courier_directory_of_another_user_is_told_by_hand(places: dict[str, Place], fedward: Fedward) -> None:
    path, place = places["east"].root / "consortium.json", places["east"]
    made = consortium_of(places, SigningKey.generate(), path)
    place.courier.rename(place.root / "away")
    done = fedward("site", "trust", path, "--home", place.home, "--fingerprint", made.fingerprint)
    assert done.code == 0 and "the courier was not told" in done.out
    assert 'courier.toml: gateway = "gateway.example.org:443"' in done.out


def test_an_edited_policy_is_refused_with_the_command_that_signs_it(places: dict[str, Place], fedward: Fedward) -> None:
    policy = places["east"].home / "policy.toml"
    policy.write_text(policy.read_text().replace("minimum_cohort = 3", "minimum_cohort = 5"))
    refused = fedward("site", "policy", "--home", places["east"].home)
    assert refused.code == 12 and "fedward site policy --install policy.toml" in refused.err
    assert fedward("site", "policy", "--home", places["east"].home, "--install", policy).code == 0
    assert "at least 5 sites in a sum" in fedward("site", "policy", "--home", places["east"].home).out


def test_a_policy_that_does_not_fit_is_refused_with_file_and_key(places: dict[str, Place], fedward: Fedward) -> None:
    place = places["east"]
    mine = place.root / "mine.toml"
    mine.write_text('hours = ["8-17"]\nminimum_cohrt = 4\n')
    before = (place.home / "policy.toml").read_bytes()
    done = fedward("site", "policy", "--home", place.home, "--install", mine)
    assert done.code == 3
    assert str(mine) in done.err and "did you mean 'minimum_cohort'" in done.err and "'20:00-06:00'" in done.err
    assert (place.home / "policy.toml").read_bytes() == before


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As if the disk were full: the system refuses to make a file longer than this."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_takes_no_more_is_an_error_with_a_hint_and_the_rules_in_force_stay(
    places: dict[str, Place], fedward: Fedward, tmp_path: Path
) -> None:
    enrol(places, fedward)
    home, mine = places["east"].home, tmp_path / "mine.toml"
    before = (home / "policy.toml").read_bytes()
    mine.write_bytes(before + b"\n# checked\n")
    with files_of_at_most(512):
        done = fedward("site", "policy", "--home", home, "--install", mine)
    assert (done.code, done.out) == (3, "")
    assert done.err == "error: File too large\nhint:  free some space and run this again; what was there is whole\n"
    assert (home / "policy.toml").read_bytes() == before
    assert fedward("site", "policy", "--home", home).code == 0


@pytest.mark.parametrize(
    "command",
    [
        ("policy",),
        ("plans", "list"),
        ("plans", "show", "abababab"),
        ("dataset", "list"),
        ("plans", "approve", "x.json"),
    ],
)
def test_a_place_without_a_site_is_an_error_with_a_hint(
    tmp_path: Path, fedward: Fedward, command: tuple[str, ...]
) -> None:
    done = fedward("site", *command, "--home", tmp_path)
    assert (done.code, done.out) == (3, "")
    assert "no site lives here" in done.err


@pytest.mark.parametrize("command", [("dataset", "list"), ("plans", "reject", "FILE"), ("policy", "--install", "FILE")])
def test_what_opens_keys_needs_the_passphrase_and_says_where_it_looks(
    places: dict[str, Place], fedward: Fedward, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    enrol(places, fedward)
    plan = places["east"].root / "plan.json"
    plan.write_text(json.dumps(make_plan(nominal_patients=60).to_json()))
    monkeypatch.delenv("FEDWARD_PASSPHRASE")
    arguments = [str(plan) if part == "FILE" else part for part in command]
    done = fedward("site", *arguments, "--home", places["east"].home)
    assert done.code == 3 and "FEDWARD_PASSPHRASE_FILE" in done.err


def test_the_passphrase_is_asked_for_twice_on_a_terminal_and_not_shown(tmp_path: Path) -> None:
    """A real terminal: the command runs in a child whose console this test holds."""
    console, screen = os.openpty()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FEDWARD")}
    command = [sys.executable, "-c", "from common.cli import main; main()", "site", "init", "north"]
    with subprocess.Popen(
        [*command, "--home", str(tmp_path / "north")],
        env=environment,
        stdin=screen,
        stdout=screen,
        stderr=screen,
        start_new_session=True,
    ) as child:
        os.close(screen)
        said = b""
        for _ in range(2):
            said += _until(console, b": ")
            os.write(console, PASSPHRASE.encode() + b"\n")
        said += _until(console, b"\x00")
    os.close(console)
    assert child.returncode == 0, said
    assert PASSPHRASE.encode() not in said
    assert b"read this out on the telephone" in said
    assert (tmp_path / "north" / "site.json").exists()


def _until(console: int, wanted: bytes) -> bytes:
    """What the child says up to a sign, or up to its end."""
    said = b""
    while wanted not in said:
        try:
            piece = os.read(console, 1)
        except OSError:  # the child has gone
            return said
        if not piece:
            return said
        said += piece
    return said


def test_help_needs_neither_torch_nor_flower() -> None:
    code = (
        "import sys; sys.argv = ['fedward', 'site', 'plans', '--help']\n"
        "from common.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'flwr', 'polars'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]")
