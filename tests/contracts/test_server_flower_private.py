"""What the ServerApp takes from inside Flower, pinned: a new Flower has to be looked at before it is allowed."""

import importlib.metadata
import inspect
import time
from collections.abc import Iterator

import pytest
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError
from flwr.superlink.grid import http_grid
from packaging.specifiers import SpecifierSet

from server.flower_private import SUPPORTED_FLOWER, look_for_parts_soon


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = http_grid.pull_objects
    yield
    http_grid.pull_objects = before


def test_the_installed_flower_is_in_the_supported_range() -> None:
    assert importlib.metadata.version("flwr") in SpecifierSet(SUPPORTED_FLOWER)


def test_flowers_grid_fetches_the_parts_of_a_reply_by_this_name_and_with_its_defaults() -> None:
    source = inspect.getsource(http_grid.HttpGrid.pull_messages)
    assert "pull_objects(" in source
    assert "initial_backoff" not in source and "backoff_cap" not in source


def test_a_part_that_is_late_is_looked_for_again_soon() -> None:
    look_for_parts_soon()
    look_for_parts_soon()
    looks: list[float] = []

    def pull(object_id: str) -> bytes:
        looks.append(time.monotonic())
        if len(looks) < 3:
            raise ObjectUnavailableError(object_id)
        return b"part"

    assert http_grid.pull_objects(["name"], pull) == {"name": b"part"}
    assert looks[1] - looks[0] < 0.9  # Flower's own first wait is a second, give or take a fifth
