from dataclasses import replace

import numpy as np
import pytest

from client.runstate import (
    Outbox,
    RunState,
    forget_secrets,
    joined,
    load_local_update,
    load_state,
    save_local_update,
    save_state,
)
from common.crypto.masking import RunKeys
from common.errors import TrustError
from common.wire_pb2 import Masked
from tests.flows.federation import POPULATION, RUN_ID, Federation

SITE = "north"


@pytest.fixture
def state(federation: Federation) -> RunState:
    return RunState(
        plan=federation.plan,
        manifest=federation.manifest,
        population=POPULATION,
        keys=RunKeys.generate(),
        peers={"east": RunKeys.generate().public},
        ciphertexts={"south": b"c" * 1088},
        pair_secrets={"east": b"s" * 32},
    )


def test_a_state_survives_the_disk(federation: Federation, state: RunState) -> None:
    home = federation.homes[SITE]
    save_state(home, state)
    loaded = load_state(home, RUN_ID)
    assert loaded.keys.public == state.keys.public
    assert replace(loaded, keys=state.keys) == state


def test_a_run_is_joined_once_its_state_is_on_disk(federation: Federation, state: RunState) -> None:
    home = federation.homes[SITE]
    assert not joined(home, RUN_ID)
    save_state(home, state)
    assert joined(home, RUN_ID)


def test_a_run_that_was_never_joined_has_no_state(federation: Federation) -> None:
    with pytest.raises(TrustError, match="has not joined run 'demo-2'"):
        load_state(federation.homes[SITE], "demo-2")


@pytest.mark.parametrize("run_id", ["", ".", "..", "../north", "a/b", "/etc", "Demo", "demo\n", "demo\0", "d" * 64])
def test_no_run_has_the_name_of_a_path(federation: Federation, run_id: str) -> None:
    with pytest.raises(TrustError, match="no run identifier"):
        load_state(federation.homes[SITE], run_id)


def test_secrets_lie_sealed(federation: Federation, state: RunState) -> None:
    home = federation.homes[SITE]
    save_state(home, state)
    content = (home.run_path(RUN_ID) / "state.sealed").read_bytes()
    assert b"s" * 32 not in content
    assert b"pair_secrets" not in content


def test_the_state_of_another_site_does_not_open(federation: Federation, state: RunState) -> None:
    north, south = federation.homes["north"], federation.homes["south"]
    save_state(north, state)
    south.run_path(RUN_ID).mkdir(parents=True)
    (north.run_path(RUN_ID) / "state.sealed").rename(south.run_path(RUN_ID) / "state.sealed")
    with pytest.raises(TrustError):
        load_state(south, RUN_ID)


def test_a_state_prints_no_secret(state: RunState) -> None:
    assert "ssss" not in repr(state)
    assert "RunKeys" not in repr(state)


def test_a_closed_run_keeps_no_secret(state: RunState) -> None:
    closed = forget_secrets(state)
    assert (closed.closed, closed.peers, closed.ciphertexts, closed.pair_secrets) == (True, {}, {}, {})
    assert closed.keys.public != state.keys.public
    assert forget_secrets(closed) is closed


def test_the_outbox_holds_the_last_answer_only(federation: Federation, state: RunState) -> None:
    home = federation.homes[SITE]
    outbox = Outbox(home, RUN_ID)
    assert outbox.read() is None
    for number in (1, 2):
        outbox.write(Masked(round=number, attempt=1, context="c", vector=b"v"))
    assert Outbox(home, RUN_ID).read() == Masked(round=2, attempt=1, context="c", vector=b"v")


def test_a_local_update_is_kept_sealed_for_its_round_alone(federation: Federation) -> None:
    home = federation.homes[SITE]
    units = np.array([-3, 0, 2**40], dtype=np.int64)
    save_local_update(home, RUN_ID, 1, units)
    loaded = load_local_update(home, RUN_ID, 1)
    assert loaded is not None
    np.testing.assert_array_equal(loaded, units)
    assert load_local_update(home, RUN_ID, 2) is None
    assert units.astype("<i8").tobytes() not in next(home.run_path(RUN_ID).glob("update-*")).read_bytes()


def test_the_update_of_a_new_round_takes_the_place_of_the_old(federation: Federation) -> None:
    home = federation.homes[SITE]
    for number in (1, 2):
        save_local_update(home, RUN_ID, number, np.array([number], dtype=np.int64))
    assert load_local_update(home, RUN_ID, 1) is None
    assert load_local_update(home, RUN_ID, 2) == np.array([2])
