import pytest

from common.errors import QuorumLost
from server.cohort import Cohort


@pytest.fixture
def cohort() -> Cohort:
    return Cohort(["west", "east", "north", "south"], minimum=3)


def test_everybody_is_asked_in_order(cohort: Cohort) -> None:
    assert cohort.select() == ["east", "north", "south", "west"]


def test_a_silent_site_rests_for_the_round(cohort: Cohort) -> None:
    cohort.silent("east")
    assert cohort.select() == ["north", "south", "west"]
    assert cohort.left == {}


def test_the_next_round_asks_it_again(cohort: Cohort) -> None:
    cohort.silent("east")
    cohort.next_round()
    assert "east" in cohort.select()


def test_a_second_silence_is_the_last(cohort: Cohort) -> None:
    for _ in range(2):
        cohort.silent("east")
        cohort.next_round()
    assert cohort.left == {"east": "NoReply"}
    assert cohort.present == ["north", "south", "west"]


def test_a_refusal_is_final_and_keeps_its_name(cohort: Cohort) -> None:
    cohort.refused("west", "PolicyRefused")
    cohort.next_round()
    assert cohort.select() == ["east", "north", "south"]
    assert cohort.left == {"west": "PolicyRefused"}


def test_below_the_minimum_everybody_who_is_missing_is_named_with_a_reason(cohort: Cohort) -> None:
    cohort.refused("west", "PrivacyBudgetExhausted")
    cohort.silent("east")
    cohort.silent("east")
    with pytest.raises(QuorumLost) as lost:
        cohort.select()
    assert lost.value.fact == (
        "2 of 4 sites are left, the minimum cohort is 3 (east: NoReply, west: PrivacyBudgetExhausted)"
    )
    assert "ledgers" in lost.value.hint


def test_a_silent_site_is_asked_again_when_no_cohort_can_do_without_it(cohort: Cohort) -> None:
    cohort.refused("west", "PolicyRefused")
    cohort.silent("east")
    assert cohort.select() == ["east", "north", "south"]


def test_an_answer_makes_up_for_an_earlier_silence(cohort: Cohort) -> None:
    cohort.silent("east")
    cohort.answered(["east"])
    cohort.silent("east")
    assert cohort.left == {}
