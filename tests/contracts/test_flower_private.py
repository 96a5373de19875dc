"""What Fedward takes from inside Flower, pinned: a new Flower has to be looked at before it is allowed."""

import importlib.metadata
from collections.abc import Iterator

import pytest
from flwr.app import Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from packaging.specifiers import SpecifierSet

from common.flower import pack, unpack
from simulations.flower_private import SUPPORTED_FLOWER, empty_run, stamp_message_id, task_identity

FIELDS = ("_task_id", "_run_id", "_node_id")


@pytest.fixture(autouse=True)
def _no_identity() -> Iterator[None]:
    before = {field: getattr(TaskIdentity, field) for field in FIELDS}
    for field in FIELDS:
        setattr(TaskIdentity, field, None)
    yield
    for field, value in before.items():
        setattr(TaskIdentity, field, value)


def test_the_installed_flower_is_in_the_supported_range() -> None:
    assert importlib.metadata.version("flwr") in SpecifierSet(SUPPORTED_FLOWER)


def test_the_distribution_asks_for_the_same_range() -> None:
    wanted = [text for text in importlib.metadata.requires("fedward") or [] if text.startswith("flwr")]
    assert all(set(SUPPORTED_FLOWER.split(",")) <= set(_specifiers(text)) for text in wanted)
    assert wanted


def test_a_message_cannot_be_made_without_a_task_identity() -> None:
    with pytest.raises(RuntimeError, match="TaskIdentity"):
        Message(RecordDict(), dst_node_id=2, message_type="query")


def test_a_message_can_be_made_with_one() -> None:
    with task_identity(run_id=9):
        metadata = Message(RecordDict(), dst_node_id=2, message_type="query").metadata
    assert (metadata.run_id, metadata.src_node_id, metadata.dst_node_id) == (9, 1, 2)


def test_the_identity_is_taken_back() -> None:
    with task_identity():
        pass
    assert [getattr(TaskIdentity, field) for field in FIELDS] == [None, None, None]


def test_a_message_id_can_be_stamped_and_a_reply_refers_to_it() -> None:
    with task_identity():
        message = Message(RecordDict(), dst_node_id=2, message_type="query")
        stamp_message_id(message, "one")
        assert message.metadata.message_id == "one"
        assert Message(RecordDict(), reply_to=message).metadata.reply_to_message_id == "one"


def test_the_message_id_has_no_public_setter() -> None:
    assert vars(Metadata)["message_id"].fset is None


def test_a_run_can_be_made_empty() -> None:
    assert isinstance(empty_run(5), Run)
    assert empty_run(5).run_id == 5


def test_the_grid_asks_for_these_methods() -> None:
    assert Grid.__abstractmethods__ == {
        "create_message",
        "get_node_ids",
        "pull_messages",
        "push_messages",
        "run",
        "send_and_receive",
        "set_run",
    }


def test_a_body_survives_being_cut_into_pieces_by_flower() -> None:
    body = b"".join(number.to_bytes(4) for number in range(3 << 20))
    with task_identity():
        message = Message(pack(body), dst_node_id=2, message_type="query")
        pieces = {name: piece.deflate() for name, piece in get_all_nested_objects(message).items()}
    assert max(map(len, pieces.values())) < 6 << 20
    rebuilt = inflate_object_from_contents(message.object_id, pieces)
    assert isinstance(rebuilt, Message)
    assert unpack(rebuilt.content) == body


def _specifiers(requirement: str) -> list[str]:
    text = requirement.partition(";")[0].removeprefix("flwr").removeprefix("[simulation]")
    return [part.strip(" ()") for part in text.split(",")]
