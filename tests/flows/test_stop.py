"""A run that its coordinator is asked to stop: closed at the sites, the model so far released, and over."""

import json
from pathlib import Path

import numpy as np
import pytest

from common.errors import ConfigurationError, RunStopped
from common.report.audit import verify_paths
from server.release import read_release
from tests.flows.dying_coordinator import once_at, run_through_deaths
from tests.flows.federation import Federation, make_federation
from tests.flows.growing_grid import Clock, GrowingGrid, at_round, run_over
from tests.flows.test_evaluation import charges, evaluated_plan


def stop(federation: Federation) -> None:
    (federation.root / "stop").touch()


def test_a_run_stops_after_the_attempt_that_is_under_way(federation: Federation) -> None:
    with federation.agents() as agents:
        grid = GrowingGrid(federation, agents)
        grid.happens = at_round(2, 1, lambda: stop(federation))
        with pytest.raises(RunStopped, match="after 2 of 3 rounds") as stopped:
            run_over(federation, grid)
    assert stopped.value.exit_code == 17
    for name in federation.names:
        assert grid.kinds(name)[-2:] == ["close", "close"]
        assert federation.charged(name) == {(1, 1): "settled", (2, 1): "settled"}
    released = read_release(federation.root / "model", plan=federation.plan, key=federation.coordinator.public_key.text)
    kept = np.frombuffer((federation.root / "models" / "round-0002.f32").read_bytes(), dtype="<f4")
    np.testing.assert_array_equal(released, kept)
    assert verify_paths([federation.root]).words == "verified"


def test_a_stopped_run_is_over(federation: Federation) -> None:
    stop(federation)
    with federation.agents() as agents:
        with pytest.raises(RunStopped, match="after 0 of 3 rounds"):
            federation.train(agents)
        (federation.root / "stop").unlink()
        with pytest.raises(ConfigurationError, match="this run is over"):
            federation.train(agents)
    assert json.loads((federation.root / "result.json").read_bytes())["rounds"] == 0
    assert not (federation.root / "checkpoint").exists()


def test_a_run_that_waits_for_its_sites_stops_too(federation: Federation) -> None:
    federation.prepare(setup_timeout_s=600)
    with federation.agents() as agents:
        here = {name: agents[name] for name in federation.names[1:]}
        clock = Clock(lambda now_s: stop(federation) if now_s > 30 else None)
        with pytest.raises(RunStopped):
            run_over(federation, GrowingGrid(federation, here), clock)
    assert clock.now_s < 40


def test_a_run_stops_before_an_evaluation_that_is_due(tmp_path: Path) -> None:
    evaluated = make_federation(tmp_path / "run", sites=3, plan=evaluated_plan(rounds=2))
    with evaluated.agents() as agents:
        grid = GrowingGrid(evaluated, agents)
        grid.happens = at_round(1, 1, lambda: stop(evaluated))
        with pytest.raises(RunStopped, match="after 1 of 2 rounds"):
            run_over(evaluated, grid)
    assert charges(evaluated, "east") == {}


@pytest.mark.parametrize("moment", [("close", 1, "north", "is taken"), ("close", 2, "after")], ids=str)
def test_a_coordinator_that_dies_while_it_stops_stops_when_it_is_resumed(federation: Federation, moment: tuple) -> None:
    stop(federation)
    with federation.agents() as agents, pytest.raises(RunStopped, match="after 0 of 3 rounds"):
        run_through_deaths(federation, agents, once_at(moment))
    assert (federation.root / "result.json").exists()
