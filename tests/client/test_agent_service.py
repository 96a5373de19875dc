import grp
import os
import socket
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

import grpc
import pytest

from client import agent_service_pb2 as pb
from client.agent_channel import SERVICE, AgentAway, AgentChannel
from client.agent_process import notify_systemd
from client.agent_service import PLACES, AgentService, serving
from client.agent_socket import prepare_socket
from common.errors import ConfigurationError
from common.wire import WIRE_VERSION
from tests.flows.federation import Federation

SYSTEM_PYTHON = Path("/usr/bin/python3")
NOBODY = 65534
OTHER_GROUP = "users"


class Gate:
    """A handler that tells when it works on something and waits until it may go on."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.handled: list[bytes] = []
        self.threads: set[int] = set()

    def __call__(self, body: bytes) -> bytes:
        self.threads.add(threading.get_ident())
        self.begun.release()
        assert self.go_on.wait(60)
        self.handled.append(body)
        return body


class Asker:
    """A raw caller, to see codes and details as they cross the socket."""

    def __init__(self, path: Path) -> None:
        self.channel = grpc.insecure_channel(f"unix:{path}")

    def call(self, data: bytes, *, method: str = "Handle", timeout_s: float = 60.0) -> grpc.Future:
        raw = self.channel.unary_unary(f"/{SERVICE}/{method}")
        return raw.future(data, timeout=timeout_s, wait_for_ready=True)

    def handle(self, body: bytes, *, timeout_s: float = 60.0) -> grpc.Future:
        return self.call(pb.Request(envelope=body).SerializeToString(), timeout_s=timeout_s)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "agent.sock"


@pytest.fixture
def asker(path: Path) -> Iterator[Asker]:
    asker = Asker(path)
    yield asker
    asker.channel.close()


def service_of(handle, *, failures: list[str] | None = None, limit_bytes: int = 1 << 20) -> AgentService:
    told = [] if failures is None else failures
    return AgentService(handle, site="north", version="1.2", on_failure=told.append, limit_bytes=limit_bytes)


def failed(call: grpc.Future) -> tuple[grpc.StatusCode, str]:
    error = call.exception()
    assert isinstance(error, grpc.RpcError)
    return error.code(), error.details()


# Answers.


def test_status_is_version_site_and_protocol_and_no_more(path: Path) -> None:
    with serving(service_of(bytes), path, group=""), AgentChannel(path) as channel:
        status = channel.status()
    assert (status.version, status.site, status.protocol) == ("1.2", "north", WIRE_VERSION)
    assert {field.name for field in pb.StatusReply.DESCRIPTOR.fields} == {"version", "site", "protocol"}


def test_status_is_answered_while_the_agent_works_and_all_places_are_taken(path: Path, asker: Asker) -> None:
    gate = Gate()
    with serving(service_of(gate), path, group=""), AgentChannel(path) as channel:
        calls = [asker.handle(b"%d" % number) for number in range(PLACES)]
        gate.begun.acquire()
        assert channel.status(timeout_s=60).site == "north"
        gate.go_on.set()
        assert all(call.result(60) for call in calls)


def test_requests_are_answered_one_after_the_other_in_one_thread(path: Path, asker: Asker) -> None:
    gate = Gate()
    with serving(service_of(gate), path, group=""):
        calls = [asker.handle(b"%d" % number) for number in range(PLACES)]
        gate.begun.acquire()
        assert not gate.begun.acquire(timeout=0.2)
        gate.go_on.set()
        assert len({call.result(60) for call in calls}) == PLACES
    assert len(gate.threads) == 1


def test_whoever_finds_all_places_taken_is_told_to_come_again(path: Path, asker: Asker) -> None:
    gate = Gate()
    with serving(service_of(gate), path, group=""):
        calls = [asker.handle(b"%d" % number) for number in range(PLACES + 1)]
        with ThreadPoolExecutor(PLACES + 1) as waiting:
            ends = [waiting.submit(call.exception) for call in calls]
            assert wait(ends, 60, FIRST_COMPLETED).done
            gate.go_on.set()
            codes = [error.code() for end in ends if (error := end.result(60)) is not None]
    assert codes == [grpc.StatusCode.RESOURCE_EXHAUSTED]


def test_of_an_exception_neither_name_nor_text_crosses_and_the_next_request_is_answered(
    path: Path, asker: Asker
) -> None:
    failures: list[str] = []

    def handle(body: bytes) -> bytes:
        if body == b"bad":
            raise FloatingPointError("ward 7 has 12 patients")
        return body

    with serving(service_of(handle, failures=failures), path, group=""):
        assert failed(asker.handle(b"bad")) == (grpc.StatusCode.INTERNAL, "")
        assert pb.Reply.FromString(asker.handle(b"good").result(60)).envelope == b"good"
    assert failures == ["FloatingPointError"]


@pytest.mark.parametrize(
    ("data", "method"),
    [(b"\xff" * 100, "Handle"), (b"\x0a\xff\xff\xff\xff\x0f", "Handle"), (b"", "Train"), (bytes(2 << 20), "Handle")],
)
def test_a_malformed_oversized_or_unknown_request_is_refused_and_the_next_is_answered(
    path: Path, asker: Asker, data: bytes, method: str
) -> None:
    handled: list[bytes] = []
    with serving(service_of(lambda body: handled.append(body) or body), path, group=""):
        assert isinstance(asker.call(data, method=method).exception(60), grpc.RpcError)
        assert asker.handle(b"good").result(60)
    assert handled == [b"good"]


def test_noise_on_the_socket_does_not_end_the_agent(path: Path, asker: Asker) -> None:
    with serving(service_of(bytes), path, group=""):
        for noise in (
            b"GET / HTTP/1.1\r\n\r\n",
            os.urandom(4096),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(99),
        ):
            with socket.socket(socket.AF_UNIX) as stranger:
                stranger.connect(str(path))
                stranger.sendall(noise)
        assert asker.handle(b"good").result(60)


def test_a_request_whose_asker_left_before_it_began_is_not_begun(path: Path, asker: Asker) -> None:
    gate = Gate()
    with serving(service_of(gate), path, group=""):
        first = asker.handle(b"first")
        gate.begun.acquire()
        assert failed(asker.handle(b"second", timeout_s=0.3))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        third = asker.handle(b"third")
        gate.go_on.set()
        assert first.result(60) and third.result(60)
    assert gate.handled == [b"first", b"third"]


def test_a_request_that_began_goes_on_when_its_asker_left(path: Path, asker: Asker) -> None:
    gate = Gate()
    with serving(service_of(gate), path, group=""):
        assert failed(asker.handle(b"first", timeout_s=0.3))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        gate.go_on.set()
        assert asker.handle(b"second").result(60)
    assert gate.handled == [b"first", b"second"]


def test_stopping_finishes_the_request_in_progress_and_turns_the_waiting_one_away(path: Path, asker: Asker) -> None:
    gate = Gate()
    service = service_of(gate)
    service.start(path, group="")
    working = asker.handle(b"working")
    gate.begun.acquire()
    waiting = asker.handle(b"waiting")
    with AgentChannel(path) as channel:
        assert channel.status(timeout_s=60).site == "north"
    stopper = threading.Thread(target=service.stop)
    stopper.start()
    assert failed(waiting)[0] in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    gate.go_on.set()
    assert pb.Reply.FromString(working.result(60)).envelope == b"working"
    stopper.join(60)
    assert gate.handled == [b"working"]


def test_a_real_agent_answers_a_replayed_request_alike_and_refuses_noise_by_name(
    federation: Federation, path: Path
) -> None:
    offer = federation.offer()
    with (
        federation.open_agent("north") as agent,
        serving(service_of(agent.handle), path, group=""),
        AgentChannel(path) as channel,
    ):
        first, again = (channel.handle(offer, timeout_s=120) for _ in range(2))
        refused = channel.handle(b"noise", timeout_s=120)
    assert first == again
    assert b"TrustError" in refused


# Who may connect.


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_without_a_group_socket_and_directory_are_the_agents_alone(path: Path) -> None:
    with serving(service_of(bytes), path, group=""):
        assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert not path.exists()


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that every user of this machine can pass through, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="fw-", dir="/tmp") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give files to any group")
def test_with_a_group_its_members_may_connect_and_nobody_else(open_place: Path) -> None:
    path = open_place / "fedward" / "agent.sock"
    group_id = grp.getgrnam(OTHER_GROUP).gr_gid
    with serving(service_of(bytes), path, group=OTHER_GROUP):
        assert (mode(path), mode(path.parent)) == (0o660, 0o2750)
        assert {path.stat().st_gid, path.parent.stat().st_gid} == {group_id}
        assert connect_as_nobody(path, groups=[group_id]) == "connected"
        assert connect_as_nobody(path, groups=[]) == "PermissionError"


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
def test_without_a_group_another_user_cannot_connect(open_place: Path) -> None:
    path = open_place / "fedward" / "agent.sock"
    with serving(service_of(bytes), path, group=""):
        assert connect_as_nobody(path, groups=[0]) == "PermissionError"


def connect_as_nobody(path: Path, *, groups: list[int]) -> str:
    """What another user gets."""
    if not SYSTEM_PYTHON.exists():
        pytest.skip(f"no {SYSTEM_PYTHON}, which another user could run")
    program = (
        "import socket, sys\n"
        "try: socket.socket(socket.AF_UNIX).connect(sys.argv[1]); print('connected')\n"
        "except OSError as error: print(type(error).__name__)"
    )
    done = subprocess.run(
        [SYSTEM_PYTHON, "-c", program, path],
        user=NOBODY,
        group=NOBODY,
        extra_groups=groups,
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    return done.stdout.strip()


def test_a_group_that_does_not_exist_is_named(path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no-such-group"):
        prepare_socket(path, group="no-such-group")


def test_a_group_that_cannot_pass_a_directory_above_is_told_which(path: Path) -> None:
    group = grp.getgrgid(os.getgid()).gr_name
    path.parent.parent.chmod(0o700)
    with pytest.raises(ConfigurationError, match=f"{path.parent.parent}: members of {group} cannot pass"):
        prepare_socket(path, group=group)


def test_a_directory_in_which_others_may_write_holds_no_socket(path: Path) -> None:
    path.parent.mkdir()
    (path.parent / "a file").touch()
    path.parent.chmod(0o777)
    with pytest.raises(ConfigurationError, match="others may write here"):
        prepare_socket(path, group="")


def test_the_mode_of_a_directory_that_holds_other_things_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    (path.parent / "a file").touch()
    path.parent.chmod(0o755)
    prepare_socket(path, group="")
    assert mode(path.parent) == 0o755


def test_a_socket_on_which_nobody_listens_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with serving(service_of(bytes), path, group=""), AgentChannel(path) as channel:
        assert channel.handle(b"alive", timeout_s=60) == b"alive"


def test_a_socket_on_which_another_listens_is_left_to_it(path: Path) -> None:
    with serving(service_of(bytes), path, group=""), AgentChannel(path) as channel:
        with pytest.raises(ConfigurationError, match="another agent listens there"):
            service_of(bytes).start(path, group="")
        assert channel.handle(b"alive", timeout_s=60) == b"alive"


def test_a_file_in_the_sockets_place_is_not_removed(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("precious")
    with pytest.raises(ConfigurationError, match="no socket"):
        prepare_socket(path, group="")
    assert path.read_text() == "precious"


# The init system.


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told_where_it_listens(tmp_path: Path, abstract: bool) -> None:
    address = f"\0{tmp_path}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        notify_systemd({"NOTIFY_SOCKET": address.replace("\0", "@")}, "READY=1")
        assert systemd.recv(100) == b"READY=1"


def test_nobody_is_told_where_no_systemd_listens() -> None:
    notify_systemd({}, "READY=1")


def test_an_agent_that_stopped_is_away(path: Path) -> None:
    with serving(service_of(bytes), path, group=""):
        pass
    with AgentChannel(path, patience_s=0.2) as channel, pytest.raises(AgentAway):
        channel.handle(b"?", timeout_s=60)
