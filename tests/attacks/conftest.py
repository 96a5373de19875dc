"""Federations that were made once and are copied for each attack."""

from pathlib import Path

import pytest

from tests.flows.federation import Federation, make_federation, make_plan


@pytest.fixture(scope="session")
def whole_federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return make_federation(tmp_path_factory.mktemp("attacked") / "run")


@pytest.fixture(scope="session")
def whole_local_federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    plan = make_plan(mode="local", rounds=2, spare_attempts=2)
    return make_federation(tmp_path_factory.mktemp("attacked-local") / "run", plan=plan)


@pytest.fixture
def federation(whole_federation: Federation, tmp_path: Path) -> Federation:
    """Four sites, three rounds and two spare attempts, pooled noise."""
    return whole_federation.copy_to(tmp_path / "run")


@pytest.fixture
def local_federation(whole_local_federation: Federation, tmp_path: Path) -> Federation:
    """Four sites, two rounds and two spare attempts, each site its own noise."""
    return whole_local_federation.copy_to(tmp_path / "run")
