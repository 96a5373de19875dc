from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import ArrayRecord, Context, Message, RecordDict

from client.agent_service import AgentService, serving
from client.app import answer, app
from client.site_files import site_directory
from common.errors import ConfigurationError, DataRefused, PolicyRefused
from common.flower import pack, unpack
from simulations.flower_private import task_identity


@pytest.fixture(autouse=True)
def _identity() -> Iterator[None]:
    with task_identity():
        yield


def _message(content: RecordDict) -> Message:
    return Message(content, dst_node_id=7, message_type="query")


def _raised(error: Exception) -> str | None:
    def handle(body: bytes) -> bytes:
        raise error

    return answer(_message(pack(b"question")), handle).error.reason


def test_the_handler_sees_the_body_and_its_answer_is_packed() -> None:
    reply = answer(_message(pack(b"question")), lambda body: body.upper())
    assert unpack(reply.content) == b"QUESTION"


def test_a_federation_error_crosses_as_its_class_name_alone() -> None:
    assert _raised(PolicyRefused("ward 7 has 12 patients")) == "PolicyRefused"


@pytest.mark.parametrize("error", [ZeroDivisionError("secret"), FloatingPointError("secret"), DataRefused("secret")])
def test_an_error_whose_class_can_depend_on_the_records_gets_one_name(error: Exception) -> None:
    assert _raised(error) == "SiteError"


def test_a_message_of_another_shape_is_answered_with_an_error() -> None:
    reply = answer(_message(RecordDict({"fedward": ArrayRecord()})), lambda body: body)
    assert reply.error.reason == "SiteError"


def test_a_node_that_names_a_socket_relays_to_the_agent_that_listens_there(tmp_path: Path) -> None:
    socket = tmp_path / "run" / "agent.sock"
    service = AgentService(bytes.upper, site="north", version="1", on_failure=pytest.fail)
    config = {"agent": str(socket), "site-dir": "/nowhere"}
    context = Context(run_id=1, node_id=7, node_config=config, state=RecordDict(), run_config={})
    message = _message(pack(b"question"))
    with serving(service, socket, group=""):
        assert unpack(app(message, context).content) == b"QUESTION"


def test_a_supernode_names_its_own_directory(tmp_path: Path) -> None:
    assert site_directory({"site-dir": str(tmp_path)}, {}) == tmp_path


def test_a_simulated_node_takes_the_site_at_its_place_by_name(tmp_path: Path) -> None:
    for name in ("west", "east", "north"):
        (tmp_path / name).mkdir()
    (tmp_path / "a-file").touch()
    environment = {"FEDWARD_SITES_DIR": str(tmp_path)}
    names = [site_directory({"partition-id": place}, environment).name for place in range(3)]
    assert names == ["east", "north", "west"]


def test_a_node_beyond_the_last_site_is_refused(tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    with pytest.raises(ConfigurationError, match="node 1 has no site"):
        site_directory({"partition-id": 1}, {"FEDWARD_SITES_DIR": str(tmp_path)})


def test_a_node_that_is_told_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="not told which site"):
        site_directory({"partition-id": 0}, {})


def test_a_directory_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such directory"):
        site_directory({"site-dir": str(tmp_path / "gone")}, {})
