"""What the ServerApp takes from inside Flower, pinned: a new Flower has to be looked at before it is allowed."""

import importlib.metadata
import inspect
import time
from collections.abc import Iterator

import pytest
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError
from flwr.superlink.grid import http_grid
from packaging.specifiers import SpecifierSet

from server import guarded_superlink
from server.flower_private import SUPPORTED_FLOWER, look_for_parts_soon
from server.guarded_superlink import TokenPlugin


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


def test_superlink_takes_its_authentication_from_where_ours_is_put() -> None:
    place = importlib.import_module("flwr.superlink.cli.flower_superlink")
    assert "authn_plugin = load_control_authn_plugin()" in inspect.getsource(place._parse_superlink_lifespan_config)
    assert guarded_superlink.flower_superlink.__module__ == place.__name__
    assert importlib.metadata.version("flwr") in SpecifierSet(guarded_superlink.SUPPORTED_FLOWER)


def test_the_control_api_knows_the_token_and_nothing_else() -> None:
    token = "0123456789abcdef" * 4
    plugin = TokenPlugin(token)
    name = guarded_superlink.ACCESS_TOKEN_KEY
    assert plugin.validate_tokens_in_metadata([(name, token)])[0]
    assert plugin.validate_tokens_in_metadata([(name, token.encode())])[0]
    for metadata in ([], [(name, token[:-1])], [(name, "")], [("other", token)], [(name, token), (name, token)]):
        assert plugin.validate_tokens_in_metadata(metadata) == (False, None)
        assert plugin.refresh_tokens(metadata) == (None, None)
    with pytest.raises(ValueError, match="at least 32"):
        TokenPlugin("")
