"""Who knows whom: only sites that were told each other's keys are ever in one cohort."""

import pytest

from common import wire_pb2 as pb
from common.crypto.masking import MLKEM_CIPHERTEXT_BYTES
from common.errors import TrustError
from common.wire import CIPHERTEXT_DOMAIN, ciphertext_statement
from server.introductions import Introductions
from tests.flows.federation import Federation

EVERYBODY = ("east", "north", "south", "west")


@pytest.fixture
def introductions(made_federation: Federation) -> Introductions:
    return Introductions(made_federation.manifest, made_federation.trust)


def answer(federation: Federation, site: str, joined: tuple[str, ...]) -> pb.Encapsulated:
    """What a site answers to the keys of those who joined; its ciphertexts are signed and hold nothing."""
    items = []
    for other in joined:
        if other > site:
            item = pb.Ciphertext(sender=site, recipient=other, ciphertext=bytes(MLKEM_CIPHERTEXT_BYTES))
            statement = ciphertext_statement(federation.manifest.digest, item)
            item.signature = federation.homes[site].identity.sign(CIPHERTEXT_DOMAIN, statement)
            items.append(item)
    return pb.Encapsulated(ciphertexts=items)


def tell(federation: Federation, introductions: Introductions, joined: tuple[str, ...], *sites: str) -> None:
    for site in sites or joined:
        introductions.accept(site, joined, answer(federation, site, joined))


def test_before_any_keys_nobody_knows_anybody(introductions: Introductions) -> None:
    assert introductions.acquainted(EVERYBODY) == []
    assert introductions.not_told(EVERYBODY, EVERYBODY) == list(EVERYBODY)


def test_all_that_were_told_of_each_other_are_acquainted(
    made_federation: Federation, introductions: Introductions
) -> None:
    tell(made_federation, introductions, EVERYBODY)
    assert introductions.acquainted(["west", "east", "south"]) == ["east", "south", "west"]
    assert introductions.not_told(EVERYBODY, EVERYBODY) == []


def test_who_did_not_hear_of_a_late_site_stays_outside_with_it_or_without_it(
    made_federation: Federation, introductions: Introductions
) -> None:
    tell(made_federation, introductions, ("north", "south", "west"))
    tell(made_federation, introductions, EVERYBODY, "east", "north", "south")
    assert introductions.acquainted(EVERYBODY) == ["east", "north", "south"]
    assert introductions.acquainted(["north", "south", "west"]) == ["north", "south", "west"]
    assert introductions.not_told(EVERYBODY, EVERYBODY) == ["west"]


def test_a_late_site_alone_does_not_take_the_place_of_those_that_know_each_other(
    made_federation: Federation, introductions: Introductions
) -> None:
    tell(made_federation, introductions, ("north", "south", "west"))
    tell(made_federation, introductions, EVERYBODY, "east")
    assert introductions.acquainted(EVERYBODY) == ["north", "south", "west"]


def test_a_ciphertext_travels_until_it_is_delivered_and_not_again(
    made_federation: Federation, introductions: Introductions
) -> None:
    early = ("north", "south", "west")
    tell(made_federation, introductions, early)
    assert [item.sender for item in introductions.unsent("west")] == ["north", "south"]
    introductions.delivered("west")
    tell(made_federation, introductions, EVERYBODY)
    assert [item.sender for item in introductions.unsent("west")] == ["east"]
    assert [item.sender for item in introductions.unsent("south")] == ["north", "east"]


def test_what_is_written_down_is_what_is_restored(made_federation: Federation, introductions: Introductions) -> None:
    tell(made_federation, introductions, ("north", "south", "west"))
    tell(made_federation, introductions, EVERYBODY, "east")
    again = Introductions(made_federation.manifest, made_federation.trust)
    again.restore(introductions.told_json(), introductions.unsent_bytes())
    assert again.told_json() == introductions.told_json()
    assert {site: again.unsent(site) for site in EVERYBODY} == {site: introductions.unsent(site) for site in EVERYBODY}


def test_a_bad_answer_introduces_nobody(made_federation: Federation, introductions: Introductions) -> None:
    bad = answer(made_federation, "east", EVERYBODY)
    bad.ciphertexts[0].signature = bytes(64)
    with pytest.raises(TrustError):
        introductions.accept("east", EVERYBODY, bad)
    assert introductions.told_json() == {}
    assert introductions.unsent("north") == []
