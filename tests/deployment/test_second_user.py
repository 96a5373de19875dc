"""Agent and courier as two unprivileged users, and what code of a coordinator gets that runs as the courier's.

Flower's own SuperNode runs whatever a coordinator ships. What protects the site is the machine: users, modes, groups.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import pytest

from client.agent_channel import AgentChannel
from common import wire_pb2 as pb
from tests.deployment.second_user import PublicPython, User, public_python
from tests.deployment.superlink_harness import (
    RUN_MAIN,
    Process,
    Run,
    SuperLinkHarness,
    start,
    superlink_harness,
)
from tests.flows.federation import PASSPHRASE, Federation

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.skipif(os.getuid() != 0, reason="only root may start processes of other users"),
]

SITE = "north"
SOCKET_GROUP = "users"
AGENT_USER = User(name="bin", group=SOCKET_GROUP)
COURIER_USER = User(name="nobody", group=SOCKET_GROUP)
HOSTILE_APP = Path(__file__).with_name("hostile_app.py")
ITS_OWN = {"own node key", "connect"}


@dataclass(kw_only=True)
class Site:
    """A site whose agent runs as one user and whose courier runs as another."""

    place: Path
    federation: Federation
    python: PublicPython
    harness: SuperLinkHarness
    agent: Process = field(init=False)
    courier: Process = field(init=False)
    directory: Path = field(init=False)

    @property
    def home(self) -> Path:
        return self.federation.homes[SITE].root

    @property
    def socket(self) -> Path:
        return self.place / "run" / "agent.sock"

    def start_agent(self) -> None:
        command = [self.python.python, *RUN_MAIN, "site", "agent", "--home", str(self.home)]
        secret = {"FEDWARD_PASSPHRASE_FILE": str(self.home / "passphrase"), "HOME": str(self.home)}
        env = {**self.python.environment, **secret}
        self.agent = start(command, self.place / "agent.log", env, **AGENT_USER.options())

    def start_courier(self, *, courier: str) -> None:
        path = self.directory / "courier.toml"
        lines = [line for line in path.read_text().splitlines() if not line.startswith("courier")]
        path.write_text("\n".join([*lines, f'courier = "{courier}"']) + "\n")
        env = {**self.python.environment, "HOME": str(self.directory)}
        self.courier = self.harness.start_courier(
            self.directory, python=self.python.python, env=env, **COURIER_USER.options()
        )

    def files(self) -> dict[str, str]:
        """Digest of every file in the agent's directory."""
        paths = sorted(path for path in self.home.rglob("*") if path.is_file())
        return {str(path.relative_to(self.home)): sha256(path.read_bytes()).hexdigest() for path in paths}

    def joined(self, run: Run, path: Path) -> bool:
        """Whether the site joins when it is offered the plan."""
        path.write_bytes(self.federation.offer())
        assert run.exchange(body=str(path), timeout_s=90)["failures"] == []
        return isinstance(self.federation.opened(SITE, run.replies()[0]), pb.Joined)


@pytest.fixture(scope="module")
def site(made_federation: Federation) -> Iterator[Site]:
    place = Path(tempfile.mkdtemp(prefix="fw-", dir="/tmp"))  # pytest's own directories are closed to other users
    place.chmod(0o755)
    try:
        python = public_python(place)
        if python is None:
            pytest.skip("the packages of this Python are not readable for other users")
        with superlink_harness(place / "superlink") as harness:
            site = Site(
                place=place, federation=made_federation.copy_to(place / "federation"), python=python, harness=harness
            )
            (place / "run").mkdir()
            (site.home / "node.toml").write_text(f'socket = "{site.socket}"\nsocket_group = "{SOCKET_GROUP}"\n')
            (site.home / "passphrase").write_bytes(PASSPHRASE)
            (site.home / "passphrase").chmod(0o600)
            AGENT_USER.own(site.home)
            AGENT_USER.own(place / "run")
            site.directory = harness.make_courier("north-courier", site.socket)
            COURIER_USER.own(site.directory)
            site.start_agent()
            site.start_courier(courier="fedward")
            try:
                yield site
            finally:
                site.courier.end()
                site.agent.end()
    finally:
        shutil.rmtree(place)


@pytest.fixture(scope="module")
def run(site: Site) -> Run:
    site.agent.says(f"the agent of {SITE} answers at")
    run = site.harness.submit()
    site.courier.says("connected to")
    return run


def test_the_courier_of_another_user_reaches_the_agent(site: Site, run: Run, tmp_path: Path) -> None:
    assert site.joined(run, tmp_path / "offer")


def test_an_agent_that_was_killed_is_started_again_and_answers_as_before(site: Site, run: Run, tmp_path: Path) -> None:
    first = run.replies()[0]
    site.agent.kill()
    site.start_agent()
    assert site.joined(run, tmp_path / "offer")
    assert run.replies()[0] == first
    assert site.courier.process.poll() is None


def test_a_second_agent_of_the_site_ends_with_what_is_wrong(site: Site, run: Run) -> None:
    before, first = site.agent.text(), site.agent
    site.start_agent()
    second, site.agent = site.agent, first
    assert second.process.wait(60) == 3
    assert "in use by another process" in second.text().removeprefix(before)
    assert first.process.poll() is None


def test_a_stock_supernode_relays_to_the_agent_and_its_code_gets_nothing_else(
    site: Site, run: Run, tmp_path: Path
) -> None:
    assert site.courier.end() == 0
    site.start_courier(courier="supernode")
    assert site.joined(run, tmp_path / "offer")
    assert "Starting Flower SuperNode" in site.courier.text()

    before = site.files()
    order = {"home": str(site.home), "pid": site.agent.pid, "socket": str(site.socket), "files": list(before)}
    order |= {"node_key": str(site.directory / "node.key"), "passphrase_file": str(site.home / "passphrase")}
    (tmp_path / "order").write_text(json.dumps({**order, "agent_uid": AGENT_USER.uid}))
    hostile = site.harness.submit(clientapp="hostile_app:app", code=[HOSTILE_APP])
    assert hostile.exchange(body=str(tmp_path / "order"), timeout_s=120)["failures"] == []
    result = json.loads(hostile.replies()[0])

    assert (result["uid"], result["secrets"]) == (COURIER_USER.uid, [])
    assert {name for name, got in result["got"].items() if got == "done"} == ITS_OWN
    assert set(result["got"].values()) == {"done", "PermissionError"}
    assert {"read ledger.jsonl", "read identity.pem", "proc environ", "proc mem", "signal 9"} <= result["got"].keys()
    assert any(name.startswith("read data/") for name in result["got"])
    assert site.files() == before
    with AgentChannel(site.socket) as channel:
        assert channel.status(timeout_s=60).site == SITE


def test_sigterm_ends_the_agent_and_removes_its_socket(site: Site, run: Run) -> None:
    assert site.socket.exists()
    assert site.agent.end() == 0
    assert not site.socket.exists()
    assert site.agent.text().splitlines()[-1] == f"the agent of {SITE} stopped"
