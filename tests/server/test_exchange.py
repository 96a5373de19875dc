from collections.abc import Callable, Iterable, Iterator, Mapping

import pytest
from flwr.app import Error, Message, RecordDict

from common.errors import PolicyRefused
from server.exchange import GridExchange
from simulations.flower_private import stamp_message_id, task_identity
from simulations.inline_grid import InlineGrid, site_handlers


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

    def get_node_ids(self) -> list[int]:
        return [node_id for node_id, at_s in self._answers_at_s.items() if self._clock() >= at_s]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        def ready(message_id: str) -> bool:
            node_id = self._pushed[message_id].metadata.dst_node_id
            return self._clock() >= self._answers_at_s[node_id]

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


def test_node_ids_are_sorted() -> None:
    assert _exchange(_sites(n3=bytes, n1=bytes, n2=bytes)).node_ids() == [1, 2, 3]


def test_nodes_that_register_late_are_waited_for() -> None:
    clock = Clock()
    assert _exchange(SlowGrid({1: 0.0, 2: 1.0}, clock), clock).wait_for_nodes(2, timeout_s=5) == [1, 2]


def test_the_wait_for_nodes_ends_with_those_that_came() -> None:
    clock = Clock()
    assert _exchange(SlowGrid({1: 0.0, 2: 9.0}, clock), clock).wait_for_nodes(2, timeout_s=5) == [1]
