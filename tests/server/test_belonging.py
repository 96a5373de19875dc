"""A site that is revoked while a run goes on: the run goes on without it, at once and for good."""

import json
from pathlib import Path

import pytest

from common.crypto.keys import SigningKey
from common.errors import QuorumLost
from common.signed import write_signed
from server.belonging import Belonging
from server.members import MEMBERS_DOMAIN, Member, MembersFile
from server.moments import time_text
from server.rundir import load_run
from tests.flows.federation import PASSPHRASE, Federation, Handle, is_round
from tests.flows.growing_grid import Clock, GrowingGrid, at_round, run_over
from tests.server.coordinators import NOW, make_node_key

NODE_KEYS = {name: make_node_key() for name in ("east", "north", "south", "west")}


@pytest.fixture
def at_home(federation: Federation, tmp_path: Path) -> Federation:
    """The federation, its run where a coordinator's runs lie, beside a list of its members."""
    moved = federation.copy_to(tmp_path / "home" / "runs" / federation.manifest.run_id)
    write_list(moved)
    return moved


def write_list(federation: Federation, *revoked: str, key: SigningKey | None = None) -> None:
    """The coordinator's members, some of them revoked."""
    moment = time_text(NOW)
    members = {
        entry.name: Member(
            identity_key=entry.identity_key,
            node_key=NODE_KEYS[entry.name],
            nominal_patients=entry.nominal_patients,
            enrolled=moment,
            revoked=moment if entry.name in revoked else None,
        )
        for entry in federation.manifest.roster
    }
    document = MembersFile(members=members).model_dump(mode="json")
    path = federation.root.parent.parent / "members.json"
    write_signed(path, MEMBERS_DOMAIN, document, key or federation.coordinator)


def revoked_when_asked(federation: Federation, handle: Handle, name: str) -> Handle:
    """A site that is revoked when its first round reaches it, and whose answers do not come through from then on."""

    def answer(data: bytes) -> bytes:
        if is_round(data):
            write_list(federation, name)
            raise TimeoutError
        return handle(data)

    return answer


def test_a_run_goes_on_without_a_revoked_site_which_is_asked_nothing_more(at_home: Federation) -> None:
    with at_home.agents() as agents:
        grid = GrowingGrid(at_home, {**agents, "west": revoked_when_asked(at_home, agents["west"], "west")})
        result = run_over(at_home, grid)
    assert (result.rounds, result.attempts, result.left) == (3, 4, {"west": "Revoked"})
    assert grid.kinds("west") == ["offer", "keys", "round"]
    assert json.loads((at_home.root / "result.json").read_bytes())["left"] == {"west": "Revoked"}


def test_a_site_that_is_revoked_between_two_rounds_costs_no_attempt(at_home: Federation) -> None:
    with at_home.agents() as agents:
        grid = GrowingGrid(at_home, agents)
        grid.happens = at_round(2, 1, lambda: write_list(at_home, "south"))
        result = run_over(at_home, grid)
    assert (result.rounds, result.attempts, result.left) == (3, 3, {"south": "Revoked"})
    assert at_home.charged("south") == {(1, 1): "settled", (2, 1): "settled"}


def test_a_revoked_site_is_not_waited_for(at_home: Federation) -> None:
    at_home.prepare(setup_timeout_s=600)
    with at_home.agents_of("east", "north", "south") as agents:
        clock = Clock(lambda now_s: write_list(at_home, "west") if now_s > 30 else None)
        result = run_over(at_home, GrowingGrid(at_home, agents), clock)
    assert (result.rounds, result.left) == (3, {"west": "Revoked"})
    assert clock.now_s < 60


def test_a_site_that_is_enrolled_again_stays_out_of_the_run_that_it_was_thrown_out_of(at_home: Federation) -> None:
    with at_home.agents() as agents:
        grid = GrowingGrid(at_home, agents)
        second = at_round(2, 1, lambda: write_list(at_home, "south"))
        third = at_round(3, 1, lambda: write_list(at_home))

        def both(name: str, data: bytes) -> None:
            second(name, data)
            third(name, data)

        grid.happens = both
        assert run_over(at_home, grid).left == {"south": "Revoked"}


def test_the_error_of_a_run_that_lost_its_quorum_says_who_was_revoked(at_home: Federation) -> None:
    with at_home.agents() as agents:
        grid = GrowingGrid(at_home, agents)
        grid.happens = at_round(1, 1, lambda: write_list(at_home, "south", "west"))
        with pytest.raises(QuorumLost, match=r"south: Revoked, west: Revoked"):
            run_over(at_home, grid)


def test_a_list_that_the_coordinator_did_not_sign_throws_nobody_out(at_home: Federation) -> None:
    belonging = Belonging(load_run(at_home.root, passphrase=PASSPHRASE))
    assert belonging.gone() == frozenset()
    write_list(at_home, "west", key=SigningKey.generate())
    assert belonging.gone() == frozenset()
    write_list(at_home, "west")
    assert belonging.gone() == {"west"}
    (at_home.root.parent.parent / "members.json").write_bytes(b"half a fi")
    assert belonging.gone() == {"west"}


def test_where_no_coordinator_lives_nobody_is_revoked(federation: Federation) -> None:
    assert Belonging(load_run(federation.root, passphrase=PASSPHRASE)).gone() == frozenset()
