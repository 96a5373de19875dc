"""Messages that a coordinator's key signed and that still must not be answered, put to three sites' real agents.

Also what comes from outside before any signature is looked at: sizes, clocks, and a disk that is full.
"""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

import pytest

from client.agent_channel import MAXIMUM_MESSAGE_BYTES, AgentAway, AgentChannel
from client.courier import read_node_key, tls_context
from client.home import open_home
from client.node_files import read_courier_settings
from common import wire_pb2 as pb
from common.canonical import canonical_json
from common.enrolment import read_consortium
from common.plan import RosterEntry, TrainingPlan
from common.runplan import build_manifest, calibrate_plan
from server.home import open_server
from tests.deployment.consortium import PATIENTS, Consortium, consortium, plan_document, policy_text
from tests.deployment.gateway_house import Node
from tests.deployment.waiting import wait_until
from tests.flows.federation import POPULATION, Federation

pytestmark = pytest.mark.deployment

SITES = ("east", "north", "west")
CLOCK = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
PAGE_BYTES = 4096
CHARGED_NOTHING = dict.fromkeys(SITES, 0)


@pytest.fixture(scope="module")
def running() -> Iterator[Consortium]:
    """Three agents without couriers, and a gateway."""
    with consortium(sites=SITES) as built:

        def start(site: str) -> None:
            socket = built.home(site) / "run" / "agent.sock"
            built.start(
                site, built.sites[site], "site", "agent", "--home", built.home(site), ready=lambda: answers(socket)
            )

        with ThreadPoolExecutor(len(SITES)) as at_once:
            list(at_once.map(start, SITES))
        built.up()
        yield built


def answers(socket: Path) -> bool:
    """Whether an agent listens."""
    if not socket.exists():
        return False
    with suppress(AgentAway), AgentChannel(socket) as channel:
        return bool(channel.status().site)
    return False


def by_hand(running: Consortium, run_id: str, *, approved: bool = True, **training: Any) -> Federation:
    """A run whose messages are signed here with the coordinator's own key, approved at every site unless said."""
    document = plan_document()
    document["training"] |= {"rounds": 2, "spare_attempts": 2, **training}
    plan = TrainingPlan.model_validate(document)
    server = open_server(running.server_home, passphrase=running.server.passphrase_file.read_bytes())
    members = read_consortium(running.server_home / "consortium.json")
    manifest = build_manifest(
        plan,
        run_id=run_id,
        roster=[
            RosterEntry(name=name, identity_key=key, nominal_patients=PATIENTS[name] // 10 * 10)
            for name, key in members.sites.items()
        ],
        coordinator_key=server.key.public_key.text,
        noise_multiplier=calibrate_plan(plan),
    )
    if approved:
        path = running.root / f"{run_id}.json"
        path.write_bytes(canonical_json(plan.to_json()))
        running.approve(path)
    return Federation(
        root=running.root,
        plan=plan,
        manifest=manifest,
        coordinator=server.key,
        trust=members.trust,
        homes={},
        identifiers=(),
    )


def raw(running: Consortium, site: str, data: bytes) -> bytes:
    """What a site's agent answers on its socket."""
    with AgentChannel(running.home(site) / "run" / "agent.sock") as channel:
        return channel.handle(data, timeout_s=60)


def answer(running: Consortium, run: Federation, site: str, data: bytes) -> Any:
    """The same, verified and typed."""
    return run.opened(site, raw(running, site, data))


def refusal(running: Consortium, run: Federation, site: str, data: bytes) -> str:
    """The name with which a site refuses; fails if it does not."""
    reply = answer(running, run, site, data)
    assert isinstance(reply, pb.Refused), reply
    return reply.name


def shake_hands(running: Consortium, run: Federation) -> list[pb.Ciphertext]:
    """Join and exchange keys at all sites."""
    return run.shake_hands({site: lambda data, site=site: raw(running, site, data) for site in SITES})


def charges(running: Consortium) -> dict[str, int]:
    """Attempts in each ledger."""
    return {site: running.charged(site) for site in SITES}


def last_words(running: Consortium, site: str) -> dict[str, Any]:
    """The last line of an agent's log."""
    found: dict[str, Any] = json.loads(running.running[site].text().splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("privacy", "noise_multiplier", 0.0), ("training", "seed", 7), ("privacy", "sigma", 0), ("", "colour", "blue")],
)
def test_a_key_that_no_plan_has_is_named_by_coordinator_and_agent(
    running: Consortium, section: str, key: str, value: Any
) -> None:
    dotted = f"{section}.{key}".strip(".")
    said = running.server.fedward(
        "server", "run", running.plan("odd", **{dotted.replace(".", "__"): value}), "--home", running.server_home
    )
    assert said.code == 3 and f"odd.toml: the plan: unknown key '{dotted}'" in said.err and "hint:" in said.err
    run = by_hand(running, "odd-1", approved=False)
    document = run.plan.to_json()
    (document[section] if section else document)[key] = value
    offer = pb.Offer(plan=canonical_json(document), manifest=canonical_json(run.manifest.to_json()))
    assert refusal(running, run, "east", run.envelope(offer, "any")) == "Unavailable"
    log = running.running["east"].text()
    assert f"the offered TrainingPlan: unknown key '{dotted}'" in log
    assert charges(running) == CHARGED_NOTHING and running.run_ids() == []


def test_a_manifest_without_noise_is_refused_by_a_site_that_approved_the_plan(running: Consortium) -> None:
    run = by_hand(running, "quiet-1", learning_rate=0.75)
    for sigma, name in ((0.0, "Unavailable"), (run.manifest.noise_multiplier / 2, "PrivacyBudgetExhausted")):
        document = {**run.manifest.to_json(), "noise_multiplier": sigma}
        offer = pb.Offer(plan=canonical_json(run.plan.to_json()), manifest=canonical_json(document))
        assert refusal(running, run, "east", run.envelope(offer, "any")) == name
    assert "noise_multiplier" in running.running["east"].text()
    assert charges(running) == CHARGED_NOTHING


def test_a_plan_that_was_changed_after_its_approval_is_another_plan(running: Consortium) -> None:
    approved = by_hand(running, "changed-1")
    changed = by_hand(running, "changed-1", approved=False, learning_rate=0.5)
    assert changed.plan.digest != approved.plan.digest
    assert refusal(running, changed, "north", changed.offer()) == "PlanNotApproved"
    said = last_words(running, "north")
    assert (said["error"], said["run"]) == ("PlanNotApproved", "changed-1")
    assert "is not approved here. review it with fedward site plans show" in said["reason"]
    assert charges(running) == CHARGED_NOTHING


def test_a_plan_over_the_budget_is_neither_approved_nor_joined_when_it_is_forced(running: Consortium) -> None:
    plan = running.plan("greedy", privacy__epsilon=30.0)
    said = running.sites["west"].fedward(
        "site", "plans", "approve", plan, "--home", running.home("west"), "--population", POPULATION
    )
    assert said.code == 7 and "of 6.000" in said.err and "hint:  a smaller plan may still fit" in said.err
    run = by_hand(running, "greedy-1", approved=False)
    document = run.plan.to_json()
    document["privacy"]["epsilon"] = 30.0
    greedy = TrainingPlan.model_validate(document)
    manifest = build_manifest(
        greedy,
        run_id="greedy-1",
        roster=run.manifest.roster,
        coordinator_key=run.manifest.coordinator_key,
        noise_multiplier=calibrate_plan(greedy),
    )
    offer, home = run.offer(plan=greedy, manifest=manifest), running.home("west")
    assert refusal(running, run, "west", offer) == "PlanNotApproved"
    opened = open_home(home, passphrase=running.sites["west"].passphrase_file.read_bytes())
    opened.approve(greedy.digest, population=POPULATION)
    assert refusal(running, run, "west", offer) == "PrivacyBudgetExhausted"
    assert "of 6.000" in last_words(running, "west")["reason"]
    assert charges(running) == CHARGED_NOTHING


def test_requests_that_come_again_in_another_order_or_elsewhere_charge_nobody_twice(running: Consortium) -> None:
    run = by_hand(running, "again-1", learning_rate=0.25)
    ciphertexts = shake_hands(running, run)
    first, second = (
        {site: run.round_request(site, number, ciphertexts=ciphertexts) for site in SITES} for number in (1, 2)
    )
    sent = {site: raw(running, site, first[site]) for site in SITES}
    assert all(isinstance(run.opened(site, sent[site]), pb.Masked) for site in SITES)
    assert charges(running) == dict.fromkeys(SITES, 1)

    assert {site: raw(running, site, first[site]) for site in SITES} == sent
    assert refusal(running, run, "north", first["east"]) == "TrustError"
    other_model = run.round_request("east", 1, parameters=run.zero_model + 1)
    assert refusal(running, run, "east", other_model) == "TrustError"
    assert charges(running) == dict.fromkeys(SITES, 1)

    assert isinstance(answer(running, run, "east", second["east"]), pb.Masked)
    assert refusal(running, run, "east", first["east"]) == "TrustError"
    assert "lies before the last one answered" in last_words(running, "east")["reason"]
    assert charges(running) == {"east": 2, "north": 1, "west": 1}

    close = {site: run.envelope(pb.Close(), site) for site in SITES}
    for site in SITES:
        assert isinstance(answer(running, run, site, close[site]), pb.Closed)
        assert isinstance(answer(running, run, site, close[site]), pb.Closed)
        for late in (first, second):
            assert refusal(running, run, site, late[site]) in ("PolicyRefused", "TrustError")
    assert charges(running) == {"east": 2, "north": 1, "west": 1}


def test_rules_that_were_edited_under_way_without_a_signature_bind_nobody_and_stop_the_site(
    running: Consortium,
) -> None:
    run = by_hand(running, "edited-1", learning_rate=0.0625)
    ciphertexts = shake_hands(running, run)
    home, charged = running.home("north"), running.charged("north")
    signed = (home / "policy.toml").read_text()
    (home / "policy.toml").write_text(policy_text(epsilon=100.0))
    request = run.round_request("north", 1, ciphertexts=ciphertexts)
    assert refusal(running, run, "north", request) == "TrustError"
    assert "north: policy.toml is not the one this site signed. " in last_words(running, "north")["reason"]
    asked = running.sites["north"].fedward("site", "policy", "--home", home)
    assert asked.code == 12 and "policy.toml is not the one this site signed" in asked.err and "--install" in asked.err
    assert running.charged("north") == charged
    (home / "policy.toml").write_text(signed)
    assert isinstance(answer(running, run, "north", request), pb.Masked)
    assert running.charged("north") == charged + 1


def test_a_message_that_is_too_large_for_the_socket_leaves_the_agent_as_it_was(running: Consortium) -> None:
    (process,) = running.processes("site agent", "north")
    before = peak_mb(process)
    with pytest.raises(AgentAway, match="too many requests to answer, or one is too large"):
        raw(running, "north", bytes(MAXIMUM_MESSAGE_BYTES + 1))
    assert answers(running.home("north") / "run" / "agent.sock")
    assert running.processes("site agent", "north") == [process]
    assert peak_mb(process) - before < 64


def test_a_body_of_4_gb_stops_at_the_gateway(running: Consortium) -> None:
    (process,) = running.processes("server gateway")
    directory = running.courier("north")
    settings = read_courier_settings(directory)
    node = Node(name="north", key=read_node_key(directory / "node.key"))
    before = peak_mb(process)

    def status(**headers: str) -> int:
        host, port = settings.gateway.split(":")
        connection = HTTPSConnection(host, int(port), timeout=60, context=tls_context(directory, settings))
        try:
            connection.putrequest("POST", "/v1/fleet/push-messages")
            for name, value in (node.headers() | headers).items():
                connection.putheader(name.replace("_", "-"), value)
            connection.endheaders()
            return connection.getresponse().status
        finally:
            connection.close()

    assert status(content_length=str(1 << 32)) == 413
    assert status(transfer_encoding="chunked") == 411
    assert running.processes("server gateway") == [process]
    assert peak_mb(process) - before < 64

    def refused() -> list[dict[str, Any]]:
        lines = (running.server_home / "gateway.jsonl").read_text().splitlines()
        return [entry for line in lines if (entry := json.loads(line))["status"] == 413]

    wait_until(refused, what="the gateway to log it")
    assert refused()[0]["reason"] == "body too large"


@pytest.mark.skipif(not CLOCK.exists(), reason=f"{CLOCK} is not installed (Debian: faketime)")
def test_a_clock_that_is_ahead_is_named_by_courier_and_check(running: Consortium) -> None:
    party, directory, log = running.sites["west"], running.courier("west"), running.root / "west-courier.log"
    ahead = {"LD_PRELOAD": str(CLOCK), "FAKETIME": "+90s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    party.environment.update(ahead)
    try:
        started = running.start(
            "west-courier", party, "site", "courier", "--courier", directory, ready=lambda: "clock" in log.read_text()
        )
        checked = party.fedward("site", "check", "--home", running.home("west"), "--courier", directory)
    finally:
        for name in ahead:
            del party.environment[name]
    assert running.end("west-courier") == {0}
    lines = [line for line in started.text().splitlines() if "clock" in line]
    assert len(lines) == 1 and "ahead of the gateway's (401). At most 5 s ahead are accepted: set the clock" in lines[0]
    assert checked.code == 3
    assert "this machine is 9" in checked.out and "mend: set the clock: timedatectl set-ntp true" in checked.out


def test_a_full_disk_is_refused_and_said_and_nothing_is_charged_twice(running: Consortium) -> None:
    home = running.home("east")
    run = by_hand(running, "full-1", learning_rate=0.125, rounds=60)
    ciphertexts = shake_hands(running, run)
    assert running.end("east") == {0}
    rounds = iter(range(1, 60))

    def request(number: int, attempt: int = 1) -> bytes:
        return run.round_request("east", number, attempt, ciphertexts=ciphertexts)

    def rounds_until(fits: Callable[[int, int], bool]) -> int:
        """Go on until the last page of the ledger's file has such room for its next line; the round that is next."""
        for number in rounds:
            lines = (home / "ledger.jsonl").read_bytes().splitlines(keepends=True)
            if fits(-sum(map(len, lines)) % PAGE_BYTES, max(map(len, lines[1:]))):
                return number
            assert isinstance(answer(running, run, "east", request(number)), pb.Masked)
        raise AssertionError("no round left")

    with on_small_disk(home) as fill:
        socket = home / "run" / "agent.sock"
        running.start("east", running.sites["east"], "site", "agent", "--home", home, ready=lambda: answers(socket))

        number = rounds_until(lambda room, line: room < 0.7 * line)
        before = running.charged("east")
        fill()
        assert refusal(running, run, "east", request(number)) == "Unavailable"
        assert last_words(running, "east")["reason"] == "No space left on device"
        assert running.charged("east") == before
        checked = running.sites["east"].fedward("site", "check", "--home", home)
        assert checked.code == 3 and "free some space: a site that cannot write its ledger answers" in checked.out
        (home / "filler").unlink()
        assert isinstance(answer(running, run, "east", request(number)), pb.Masked)
        assert raw(running, "east", request(number)) == raw(running, "east", request(number))
        assert running.charged("east") == before + 1

        number = rounds_until(lambda room, line: room > 2 * line)
        before = running.charged("east")
        fill()
        assert refusal(running, run, "east", request(number)) == "Unavailable"
        (home / "filler").unlink()
        assert refusal(running, run, "east", request(number)) == "AttemptLost"
        assert "was begun and lost; it stays charged" in last_words(running, "east")["reason"]
        assert running.charged("east") == before + 1
        assert isinstance(answer(running, run, "east", request(number, 2)), pb.Masked)
        assert running.charged("east") == before + 2
        assert running.end("east") == {0}


@contextmanager
def on_small_disk(home: Path) -> Iterator[Callable[[], None]]:
    """Move a site to a file system of its own of 8 MiB; what is yielded fills it up."""
    aside = home.with_name("aside")
    home.rename(aside)
    home.mkdir(mode=0o700)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs", home], capture_output=True)
    if mounted.returncode:
        home.rmdir()
        aside.rename(home)
        pytest.skip(f"this user may not mount a file system: {mounted.stderr.decode().strip()}")
    shutil.copytree(aside, home, dirs_exist_ok=True)

    def fill() -> None:
        with (home / "filler").open("wb", buffering=0) as stream, suppress(OSError):
            for size_bytes in (1 << 16, 1):
                with suppress(OSError):
                    while True:
                        stream.write(bytes(size_bytes))

    try:
        yield fill
    finally:
        subprocess.run(["umount", "--lazy", home], check=True)
        home.rmdir()
        aside.rename(home)


def peak_mb(process_id: int) -> float:
    """The most memory that a process ever had, in MB of 1e6 bytes."""
    lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6
