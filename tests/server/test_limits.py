"""How much one address or node may ask, and that counting it takes bounded memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.limits import Buckets, Counter, network


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class TestBuckets:
    @given(st.lists(st.floats(min_value=0, max_value=3), min_size=1, max_size=50))
    def test_never_more_than_burst_and_rate_allow(self, pauses: list[float]) -> None:
        clock = Clock()
        buckets = Buckets(rate=2, burst=5, clock=clock)
        taken = 0
        for pause in pauses:
            clock.now += pause
            taken += buckets.take("node")
            assert taken <= 5 + 2 * clock.now + 1e-9

    def test_one_key_does_not_use_up_anothers(self) -> None:
        buckets = Buckets(rate=1, burst=2, clock=Clock())
        assert [buckets.take("a") for _ in range(3)] == [True, True, False]
        assert buckets.take("b")

    def test_a_rate_below_one_a_second_still_allows_the_first(self) -> None:
        assert Buckets(rate=0.1, burst=0.2, clock=Clock()).take("a")

    def test_memory_is_bounded_and_those_who_ask_are_remembered(self) -> None:
        buckets = Buckets(rate=1, burst=1, clock=Clock(), keep=10)
        assert buckets.take("steady")
        for number in range(100):
            assert not buckets.take("steady")
            assert buckets.take(str(number))


@pytest.mark.parametrize(
    ("address", "together"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("nonsense", "nonsense"),
    ],
)
def test_addresses_of_one_subscriber_are_limited_together(address: str, together: str) -> None:
    assert network(address) == together


def test_a_counter_forgets_keys_without_any() -> None:
    counter = Counter()
    counter.add("a")
    counter.add("a")
    counter.remove("a")
    assert (counter.of("a"), counter.total) == (1, 1)
    counter.remove("a")
    assert (counter.of("a"), counter.total) == (0, 0)
