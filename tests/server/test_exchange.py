import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise

import httpx
import pytest
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

from common.errors import PolicyRefused
from common.flower import pack, unpack
from server.exchange import BATCH_BYTES, FLOWERS_OWN_ERRORS, GridExchange
from simulations.flower_private import stamp_message_id, task_identity
from simulations.inline_grid import InlineGrid, site_handlers

Outcome = bytes | Error


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.naps: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now_s += seconds


class SlowGrid(InlineGrid):
    """Nodes answer once the clock has passed their own time."""

    def __init__(self, answers_at_s: Mapping[int, float], clock: Clock) -> None:
        super().__init__(site_handlers(dict.fromkeys(answers_at_s, bytes.upper)))
        self._answers_at_s = answers_at_s
        self._clock = clock
        self.looks = 0

    def get_node_ids(self) -> list[int]:
        return [node_id for node_id, at_s in self._answers_at_s.items() if self._clock() >= at_s]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        def ready(message_id: str) -> bool:
            node_id = self._pushed[message_id].metadata.dst_node_id
            return self._clock() >= self._answers_at_s[node_id]

        self.looks += 1
        return super().pull_messages([one for one in message_ids if ready(one)])


@pytest.fixture(autouse=True)
def _identity() -> Iterator[None]:
    with task_identity():
        yield


def _exchange(grid: InlineGrid, clock: Clock | None = None) -> GridExchange:
    clock = clock or Clock()
    return GridExchange(grid, clock=clock, sleep=clock.sleep)


def _sites(**handles: Callable[[bytes], bytes]) -> InlineGrid:
    return InlineGrid(site_handlers({int(name[1:]): handle for name, handle in handles.items()}))


def _refuse(body: bytes) -> bytes:
    raise PolicyRefused("a text that stays at the site")


def test_every_reply_comes_back_under_its_node() -> None:
    exchange = _exchange(_sites(n1=bytes.upper, n2=bytes.lower))
    assert exchange.exchange({1: b"One", 2: b"Two"}, timeout_s=1) == {1: b"ONE", 2: b"two"}


def test_an_answer_that_is_already_there_is_not_slept_for() -> None:
    clock = Clock()
    _exchange(_sites(n1=bytes.upper), clock).exchange({1: b"x"}, timeout_s=1)
    assert clock.naps == []


def test_a_node_that_fails_is_none_and_its_error_has_a_name() -> None:
    exchange = _exchange(_sites(n1=bytes.upper, n2=_refuse))
    assert exchange.exchange({1: b"x", 2: b"y"}, timeout_s=1) == {1: b"X", 2: None}
    assert exchange.failures == {2: "PolicyRefused"}


def test_a_free_text_in_an_error_is_not_passed_on() -> None:
    def talkative(message: Message) -> Message:
        return Message(Error(code=0, reason="patient 17: no such file"), reply_to=message)

    exchange = _exchange(InlineGrid({1: talkative}))
    assert exchange.exchange({1: b"x"}, timeout_s=1) == {1: None}
    assert exchange.failures == {1: "UnnamedError"}


def test_a_reply_of_another_shape_is_none() -> None:
    exchange = _exchange(InlineGrid({1: lambda message: Message(RecordDict(), reply_to=message)}))
    assert exchange.exchange({1: b"x"}, timeout_s=1) == {1: None}
    assert exchange.failures == {1: "UnreadableReply"}


def test_a_reply_above_the_limit_is_none() -> None:
    exchange = GridExchange(_sites(n1=lambda body: body * 10), limit_bytes=9)
    assert exchange.exchange({1: b"x"}, timeout_s=1) == {1: None}


def test_a_slow_node_is_waited_for() -> None:
    clock = Clock()
    assert _exchange(SlowGrid({1: 0.0, 2: 3.0}, clock), clock).exchange({1: b"x", 2: b"y"}, timeout_s=5) == {
        1: b"X",
        2: b"Y",
    }


def test_a_node_that_misses_the_deadline_is_none_and_no_time_is_lost_after_it() -> None:
    clock = Clock()
    exchange = _exchange(SlowGrid({1: 0.0, 2: 9.0}, clock), clock)
    assert exchange.exchange({1: b"x", 2: b"y"}, timeout_s=5) == {1: b"X", 2: None}
    assert exchange.failures == {2: "NoReply"}
    assert clock.now_s == pytest.approx(5.0)


def test_while_nobody_answers_a_pause_costs_one_look_however_many_nodes_there_are() -> None:
    clock = Clock()
    grid = SlowGrid(dict.fromkeys(range(1, 21), 4.0), clock)
    replies = _exchange(grid, clock).exchange(dict.fromkeys(range(1, 21), b"x"), timeout_s=9)
    assert list(replies.values()) == [b"X"] * 20
    assert grid.looks <= len(clock.naps) + 40


def test_the_pauses_grow_to_the_longest_and_no_further() -> None:
    clock = Clock()
    _exchange(SlowGrid({1: 9.0}, clock), clock).exchange({1: b"x"}, timeout_s=5)
    assert clock.naps[0] == pytest.approx(0.02)
    assert max(clock.naps) == pytest.approx(0.3)


def test_a_node_that_is_not_connected_is_none() -> None:
    exchange = _exchange(_sites(n1=bytes.upper))
    assert exchange.exchange({1: b"x", 5: b"y"}, timeout_s=1) == {1: b"X", 5: None}
    assert exchange.failures == {5: "NotAccepted"}


def test_a_reply_to_a_message_that_was_not_sent_is_ignored() -> None:
    def astray(message: Message) -> Message:
        stamp_message_id(message, "somebody-else's")
        return Message(message.content, reply_to=message)

    clock = Clock()
    exchange = _exchange(InlineGrid({1: astray}), clock)
    assert exchange.exchange({1: b"x"}, timeout_s=1) == {1: None}


def test_replies_are_handed_over_one_by_one_and_not_kept() -> None:
    seen: list[tuple[int, bytes | None]] = []
    exchange = _exchange(_sites(n1=bytes.upper, n2=_refuse))
    kept = exchange.exchange({1: b"x", 2: b"y"}, timeout_s=1, on_reply=lambda *reply: seen.append(reply))
    assert (sorted(seen), kept) == ([(1, b"X"), (2, None)], {})


def test_a_site_is_asked_only_after_the_reply_before_was_handed_over() -> None:
    order: list[str] = []

    def noted(body: bytes) -> bytes:
        order.append("asked")
        return body

    exchange = _exchange(_sites(n1=noted, n2=noted))
    exchange.exchange({1: b"x", 2: b"y"}, timeout_s=1, on_reply=lambda *reply: order.append("handed over"))
    assert order == ["asked", "handed over", "asked", "handed over"]


def test_failures_are_those_of_the_last_exchange() -> None:
    exchange = _exchange(_sites(n1=bytes.upper, n2=_refuse))
    exchange.exchange({2: b"y"}, timeout_s=1)
    exchange.exchange({1: b"x"}, timeout_s=1)
    assert exchange.failures == {}


def test_nobody_asked_nobody_answers() -> None:
    assert _exchange(_sites(n1=bytes.upper)).exchange({}, timeout_s=1) == {}


def test_a_timeout_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="positive timeout"):
        _exchange(_sites(n1=bytes.upper)).exchange({1: b"x"}, timeout_s=0)


class CourierGrid(InlineGrid):
    """Nodes whose answers to each message, in the order of sending, are a delay and an outcome; None is for ever."""

    def __init__(self, clock: Clock, **scripts: list[tuple[float, Outcome] | None]) -> None:
        super().__init__(dict.fromkeys((int(name[1:]) for name in scripts), _unused))
        self._scripts = {int(name[1:]): list(script) for name, script in scripts.items()}
        self._clock = clock
        self._ready: dict[str, tuple[float, Outcome]] = {}
        self.sent: list[tuple[float, int, bytes, float]] = []

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        accepted = super().push_messages(messages)
        for message_id in accepted:
            message = self._pushed[message_id]
            node = message.metadata.dst_node_id
            self.sent.append((self._clock(), node, unpack(message.content), message.metadata.ttl))
            step = self._scripts[node].pop(0) if self._scripts[node] else None
            if step is not None:
                self._ready[message_id] = (self._clock() + step[0], step[1])
        return accepted

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        found = []
        for message_id in message_ids:
            at_s, outcome = self._ready.get(message_id, (math.inf, b""))
            if self._clock() >= at_s:
                del self._ready[message_id]
                message = self._pushed.pop(message_id)
                content: Error | RecordDict = outcome if isinstance(outcome, Error) else pack(outcome)
                found.append(Message(content, reply_to=message))
        return found


def _unused(message: Message) -> Message:
    raise NotImplementedError


def _resending(grid: InlineGrid, clock: Clock) -> GridExchange:
    return GridExchange(grid, clock=clock, sleep=clock.sleep, resend_after_s=20.0)


NODE_GONE = Error(5, "Error: Node Unavailable — no heartbeat")


def test_a_silent_node_gets_the_same_request_again_and_its_answer_counts() -> None:
    clock = Clock()
    grid = CourierGrid(clock, n1=[None, (0.0, b"X")])
    assert _resending(grid, clock).exchange({1: b"x"}, timeout_s=120) == {1: b"X"}
    assert [(node, body) for _, node, body, _ in grid.sent] == [(1, b"x"), (1, b"x")]
    assert grid.sent[1][0] == pytest.approx(20.0, abs=0.4)


def test_a_late_answer_to_a_message_that_was_sent_again_counts() -> None:
    clock = Clock()
    grid = CourierGrid(clock, n1=[(30.0, b"first"), None])
    assert _resending(grid, clock).exchange({1: b"x"}, timeout_s=120) == {1: b"first"}
    assert len(grid.sent) == 2


def test_of_two_answers_one_counts() -> None:
    clock, heard = Clock(), list[tuple[int, bytes | None]]()
    grid = CourierGrid(clock, n1=[(30.0, b"first"), (5.0, b"second")], n2=[(60.0, b"last")])
    _resending(grid, clock).exchange({1: b"x", 2: b"y"}, timeout_s=120, on_reply=lambda *one: heard.append(one))
    assert heard == [(1, b"second"), (2, b"last")]


@pytest.mark.parametrize("error", [NODE_GONE, Error(3, "Error: Message Unavailable"), Error(2, "SiteError")])
def test_a_failure_on_the_way_is_not_the_sites_answer_and_is_asked_again(error: Error) -> None:
    clock = Clock()
    grid = CourierGrid(clock, n1=[(0.0, error), (0.0, error), (0.0, error), (0.0, b"X")])
    exchange = _resending(grid, clock)
    assert exchange.exchange({1: b"x"}, timeout_s=120) == {1: b"X"}
    assert exchange.failures == {}
    pauses = [later[0] - sooner[0] for sooner, later in pairwise(grid.sent)]
    assert pauses == pytest.approx([1, 2, 4], abs=0.7)


def test_what_a_site_itself_refuses_is_final() -> None:
    clock = Clock()
    grid = CourierGrid(clock, n1=[(0.0, Error(2, "PolicyRefused")), (0.0, b"X")])
    exchange = _resending(grid, clock)
    assert exchange.exchange({1: b"x"}, timeout_s=120) == {1: None}
    assert (len(grid.sent), clock.now_s, exchange.failures) == (1, 0.0, {1: "PolicyRefused"})


def test_a_node_that_stays_away_is_asked_until_the_deadline_and_named_by_why() -> None:
    clock = Clock()
    grid = CourierGrid(clock, n1=[(0.0, NODE_GONE)] * 50, n2=[None] * 50)
    exchange = _resending(grid, clock)
    assert exchange.exchange({1: b"x", 2: b"y"}, timeout_s=120) == {1: None, 2: None}
    assert exchange.failures == {1: "NodeUnavailable", 2: "NoReply"}
    assert clock.now_s == pytest.approx(120.0)
    to_gone = [at_s for at_s, node, *_ in grid.sent if node == 1]
    assert max(later - sooner for sooner, later in pairwise(to_gone)) == pytest.approx(20.0, abs=0.5)
    assert 8 <= len(to_gone) <= 12
    assert len(grid.sent) - len(to_gone) == 3  # at 0, 20 and 60 seconds


class BreakingGrid(CourierGrid):
    """Some pushes, by number, break off as they do when SuperLink ends in the middle of one, or are not taken."""

    def __init__(
        self, clock: Clock, faults: Mapping[int, Exception | None], **scripts: list[tuple[float, Outcome] | None]
    ):
        super().__init__(clock, **scripts)
        self._faults, self._pushes = faults, 0

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        self._pushes += 1
        if self._pushes not in self._faults:
            return super().push_messages(messages)
        fault = self._faults[self._pushes]
        if fault is not None:
            raise fault
        return []


@pytest.mark.parametrize("fault", [ObjectPushError("object", 1, "session"), httpx.ConnectError("refused")])
@pytest.mark.parametrize("number", [1, 2])
def test_a_push_that_breaks_off_is_made_again(fault: Exception, number: int) -> None:
    clock = Clock()
    grid = BreakingGrid(clock, {number: fault}, n1=[None] * (number - 1) + [(0.0, b"X")])
    assert _resending(grid, clock).exchange({1: b"x"}, timeout_s=120) == {1: b"X"}


def test_a_push_that_always_breaks_off_ends_with_the_deadline() -> None:
    clock = Clock()
    grid = BreakingGrid(clock, dict.fromkeys(range(1, 500), httpx.ConnectError("refused")), n1=[])
    assert _resending(grid, clock).exchange({1: b"x"}, timeout_s=60) == {1: None}
    assert clock.now_s == pytest.approx(60.0)


def test_a_node_that_is_unregistered_while_it_is_waited_for_is_none_at_once() -> None:
    clock = Clock()
    grid = BreakingGrid(clock, {2: None}, n1=[None])
    exchange = _resending(grid, clock)
    assert exchange.exchange({1: b"x"}, timeout_s=120) == {1: None}
    assert exchange.failures == {1: "NotAccepted"}
    assert clock.now_s == pytest.approx(20.0, abs=0.4)


def test_no_message_outlives_its_exchange() -> None:
    clock = Clock()
    grid = CourierGrid(clock, n1=[None] * 9)
    _resending(grid, clock).exchange({1: b"x"}, timeout_s=100)
    assert all(at_s + ttl == pytest.approx(100.0) for at_s, _, _, ttl in grid.sent)


def test_the_error_codes_are_flowers() -> None:
    codes = {3: "MESSAGE_UNAVAILABLE", 4: "REPLY_MESSAGE_UNAVAILABLE", 5: "NODE_UNAVAILABLE", 8: "CLIENT_APP_CRASHED"}
    assert {getattr(ErrorCode, name): name for name in codes.values()} == codes
    assert codes.keys() == FLOWERS_OWN_ERRORS.keys()


def test_large_requests_are_written_and_pushed_one_after_the_other() -> None:
    """No more than one is in this process's hands: a Grid that ships them away leaves nothing behind."""
    alive: list[None] = []

    class Body(bytes):
        def __del__(self) -> None:
            alive.pop()

    class Written(dict[int, bytes]):
        def __getitem__(self, node: int) -> bytes:
            alive.append(None)
            return Body(BATCH_BYTES)

    class Shipping(InlineGrid):
        def push_messages(self, messages: Iterable[Message]) -> list[str]:
            most.append(len(alive))
            accepted = super().push_messages(messages)
            for message_id in accepted:
                self._pushed[message_id] = Message(RecordDict(), dst_node_id=1, message_type="query")
            return accepted

    most: list[int] = []
    grid = Shipping(dict.fromkeys(range(5), _unused))
    GridExchange(grid).exchange(Written.fromkeys(range(5), b""), timeout_s=1)
    assert most == [1] * 5


def test_small_requests_share_one_push() -> None:
    pushes: list[int] = []

    class Counting(InlineGrid):
        def push_messages(self, messages: Iterable[Message]) -> list[str]:
            accepted = super().push_messages(messages)
            pushes.append(len(accepted))
            return accepted

    grid = Counting(site_handlers(dict.fromkeys(range(5), bytes.upper)))
    GridExchange(grid).exchange({node: b"x%d" % node for node in range(5)}, timeout_s=1)
    assert pushes == [5]


def test_node_ids_are_sorted() -> None:
    assert _exchange(_sites(n3=bytes, n1=bytes, n2=bytes)).node_ids() == [1, 2, 3]


def test_nodes_that_register_late_are_waited_for() -> None:
    clock = Clock()
    assert _exchange(SlowGrid({1: 0.0, 2: 1.0}, clock), clock).wait_for_nodes(2, timeout_s=5) == [1, 2]


def test_the_wait_for_nodes_ends_with_those_that_came() -> None:
    clock = Clock()
    assert _exchange(SlowGrid({1: 0.0, 2: 9.0}, clock), clock).wait_for_nodes(2, timeout_s=5) == [1]
