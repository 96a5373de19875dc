"""The courier against a real SuperLink: what it carries, and what may fall and come back around it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from client.agent_service import AgentService, serving
from tests.deployment.superlink_harness import Process, Run, SuperLinkHarness, superlink_harness
from tests.deployment.waiting import wait_until

pytestmark = pytest.mark.deployment

IDLE_MB = 120
LARGE_BYTES = 44_000_000


class EchoAgent:
    """What answers at the socket; it may stop and start again."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self._serving = serving(self._service(), socket, group="")

    def start(self) -> None:
        self._serving = serving(self._service(), self.socket, group="")
        self._serving.__enter__()

    def stop(self) -> None:
        self._serving.__exit__(None, None, None)

    def _service(self) -> AgentService:
        return AgentService(bytes, site="echo", version="0", on_failure=pytest.fail)


class Node:
    """A courier that is running, and started again by the tests that end it."""

    def __init__(self, harness: SuperLinkHarness, agent: EchoAgent) -> None:
        self.harness = harness
        self.agent = agent
        self.directory = harness.make_courier("north-courier", agent.socket)
        self.courier: Process = harness.start_courier(self.directory)

    def start(self) -> None:
        self.courier = self.harness.start_courier(self.directory)

    def lines(self) -> list[str]:
        return self.courier.text().splitlines()


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLinkHarness]:
    with superlink_harness(tmp_path_factory.mktemp("courier") / "superlink") as started:
        yield started


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EchoAgent]:
    agent = EchoAgent(tmp_path_factory.mktemp("agent") / "run" / "agent.sock")
    agent.start()
    yield agent
    agent.stop()


@pytest.fixture(scope="module")
def node(harness: SuperLinkHarness, agent: EchoAgent) -> Iterator[Node]:
    node = Node(harness, agent)
    yield node
    node.courier.end()


@pytest.fixture(scope="module")
def run(harness: SuperLinkHarness, node: Node) -> Run:
    run = harness.submit()
    node.courier.says("connected to")
    return run


def test_messages_are_carried_both_ways(run: Run) -> None:
    result = run.exchange(size=1024, rounds=5)
    assert result["echoed"] and len(result["nodes"]) == 1


def test_an_idle_courier_is_small(run: Run, node: Node) -> None:
    assert node.courier.memory_mb() <= IDLE_MB


def test_a_large_message_is_carried_in_bounded_memory(run: Run, node: Node) -> None:
    result = run.exchange(size=LARGE_BYTES, timeout_s=120)
    assert result["echoed"]
    assert node.courier.memory_mb("VmHWM") <= IDLE_MB + 10 * LARGE_BYTES / 1e6
    wait_until(lambda: node.courier.memory_mb() <= IDLE_MB, what="the memory to be given back")


def test_a_message_of_4_gb_is_refused_and_the_next_is_carried(run: Run, node: Node) -> None:
    assert run.exchange(bomb=1 << 32, timeout_s=60)["failures"] == ["SiteError"]
    assert "it has 4,294,967,296 bytes, the limit is 536,870,912" in node.courier.text()
    assert node.courier.memory_mb() <= IDLE_MB + 10 * LARGE_BYTES / 1e6
    assert run.exchange(size=1025)["echoed"]


def test_a_run_is_carried_without_its_code(run: Run, harness: SuperLinkHarness) -> None:
    log = harness.superlink.text()
    assert "[Fleet.PushMessages]" in log
    assert "[Fleet.GetFab]" not in log and "[Fleet.GetRun]" not in log


def test_an_agent_that_is_restarted_is_waited_for(run: Run, node: Node) -> None:
    node.agent.stop()
    number = run.order(size=1026)
    node.agent.start()
    assert run.result(number)["echoed"]
    assert node.courier.process.poll() is None


def test_an_agent_that_stays_away_is_answered_for_with_an_error_and_may_be_asked_again(run: Run, node: Node) -> None:
    node.agent.stop()
    assert run.exchange(size=1027)["failures"] == ["SiteError"]
    node.agent.start()
    assert run.exchange(size=1027)["echoed"]
    assert [line.split(" ", 1)[1] for line in node.lines() if "agent" in line.split("courier")[0]][-2:] == [
        f"{node.agent.socket}: no agent listens there. Start it with: fedward site agent",
        "the agent answers",
    ]


def test_a_superlink_that_was_killed_is_found_again(run: Run, node: Node, harness: SuperLinkHarness) -> None:
    pid = node.courier.pid
    harness.superlink.kill()
    node.courier.says("nobody listens there")
    harness.start_superlink()
    node.courier.says("connected to", times=2)
    assert run.exchange(size=1028)["echoed"]
    assert node.courier.pid == pid and node.courier.process.poll() is None


def test_sigterm_signs_the_node_off_and_the_next_courier_is_let_in_at_once(
    run: Run, node: Node, harness: SuperLinkHarness
) -> None:
    assert harness.node_status() == ["online"]
    assert node.courier.end() == 0
    assert harness.node_status() == ["offline"]
    assert node.lines()[-1].endswith("the courier stopped; the node is signed off")
    times = node.courier.text().count("connected to")
    node.start()
    node.courier.says("connected to", times=times + 1)
    assert "(412)" not in node.courier.text()
    assert run.exchange(size=1029)["echoed"]


def test_two_couriers_with_one_key_do_not_fight(run: Run, node: Node, harness: SuperLinkHarness) -> None:
    times = node.courier.text().count("(412)")
    second = harness.start_courier(node.directory)
    try:
        second.says("(412)", times=times + 1)
        assert run.exchange(size=1031)["echoed"]
    finally:
        assert second.end() == 0
    wait_until(lambda: harness.node_status() == ["online"], what="the first one to stay")
