"""What the courier takes from inside Flower, pinned: a new Flower has to be looked at before it is allowed."""

import importlib.metadata
import inspect
from base64 import b64decode

import httpx
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Error, Message
from flwr.common.constant import HEARTBEAT_MIN_INTERVAL, HEARTBEAT_PATIENCE
from flwr.common.serde import message_to_proto
from flwr.proto import fleet_pb2, message_pb2
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.interceptors.http import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from flwr.supercore.protobuf.client import ProtobufClient, ProtobufRequestContext
from flwr.supernode import fleet_http_connection
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from packaging.specifiers import SpecifierSet

from client import flower_private
from client.flower_private import COMPONENT, HEARTBEAT_S, SUPPORTED_FLOWER, incoming
from common.flower import pack, unpack
from simulations.flower_private import task_identity

VERBS = {
    "ActivateNode": "activate-node",
    "DeactivateNode": "deactivate-node",
    "SendNodeHeartbeat": "send-node-heartbeat",
    "PullMessages": "pull-messages",
    "PushMessages": "push-messages",
    "PullObject": "pull-object",
    "PushObject": "push-object",
    "ConfirmMessageReceived": "confirm-message-received",
}


def question(body: bytes = b"question") -> Message:
    with task_identity(run_id=9):
        return Message(pack(body), dst_node_id=7, message_type="query", ttl=30, group_id="1")


def headers(interceptor: object) -> dict[str, str]:
    """What an interceptor puts on a call."""
    request = httpx.Request("POST", "https://gw/v1/fleet/pull-messages")
    before = set(request.headers)
    context = ProtobufRequestContext(rpc_method="x", message=fleet_pb2.PullMessagesRequest(), request=request)
    interceptor.intercept(context, lambda context: httpx.Response(200))
    return {name: value for name, value in request.headers.items() if name not in before}


def signing(key: ec.EllipticCurvePrivateKey) -> flower_private._Signing:
    pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return flower_private._Signing(key, pem)


def test_the_installed_flower_is_in_the_supported_range() -> None:
    assert importlib.metadata.version("flwr") in SpecifierSet(SUPPORTED_FLOWER)


@pytest.mark.parametrize(("name", "path"), VERBS.items())
def test_a_call_goes_where_the_gateway_lets_it_through(name: str, path: str) -> None:
    assert f'path="/v1/fleet/{path}"' in inspect.getsource(getattr(FleetHttpClient, name))


def test_the_courier_uses_these_calls_and_never_asks_for_code() -> None:
    source = inspect.getsource(flower_private)
    used = {name for name in vars(FleetHttpClient) if name[0].isupper() and f"_client.{name}" in source}
    assert used == VERBS.keys()
    assert not {"GetFab", "GetRun", "RegisterNode", "UnregisterNode"} & used


def test_a_client_keeps_its_connection_in_one_attribute() -> None:
    client = FleetHttpClient("https://gw")
    assert isinstance(client._client, httpx.Client)
    client.close()
    assert "self._client.build_request" in inspect.getsource(ProtobufClient._unary_unary)


def test_calls_are_signed_as_flowers_own_node_signs_them() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    flowers = headers(NodeAuthHttpInterceptor(key, key.public_key()))
    ours = headers(signing(key))
    assert flowers.keys() <= ours.keys()
    assert ours["flwr-public-key"] == flowers["flwr-public-key"]
    time_header = next(name for name in flowers if name not in ("flwr-public-key", "flwr-signature"))
    public = bytes_to_public_key(b64decode(ours["flwr-public-key"]))
    assert verify_signature(public, ours[time_header].encode(), b64decode(ours["flwr-signature"]))


def test_calls_carry_the_version_as_flowers_own_node_does() -> None:
    ours = headers(signing(ec.generate_private_key(ec.SECP384R1())))
    assert headers(RuntimeVersionHttpInterceptor(component_name=COMPONENT)).items() <= ours.items()
    assert f'component_name="{COMPONENT}"' in inspect.getsource(fleet_http_connection)


def test_a_dead_node_is_noticed_within_twenty_seconds() -> None:
    assert HEARTBEAT_S == HEARTBEAT_MIN_INTERVAL == 10
    assert HEARTBEAT_PATIENCE == 2


@pytest.mark.parametrize("body", [b"short", bytes(range(256)) * 50_000])
def test_a_message_is_known_by_its_outline_before_it_is_fetched(body: bytes) -> None:
    message = question(body)
    found = incoming(message_to_proto(message), get_object_tree(message))
    parts = get_all_nested_objects(message)
    assert {*found.outline_ids, found.core_id, *found.chunk_ids} == parts.keys()
    assert (found.head.metadata.run_id, found.head.metadata.message_id, found.ttl_s) == (9, message.object_id, 30)


def test_a_reply_names_its_question_and_carries_the_askers_times() -> None:
    asked = question()
    head = incoming(message_to_proto(asked), get_object_tree(asked)).head
    reply = flower_private._reply(head, pack(b"answer"))
    metadata = reply.metadata
    assert (metadata.src_node_id, metadata.dst_node_id) == (7, 1)
    assert (metadata.reply_to_message_id, metadata.message_id) == (asked.object_id, reply.object_id)
    assert (metadata.created_at, metadata.ttl) == (asked.metadata.created_at, asked.metadata.ttl)


@pytest.mark.parametrize("body", [b"answer", bytes(range(256)) * 50_000])
def test_a_reply_can_be_read_by_flower_from_its_parts(body: bytes) -> None:
    asked = question()
    reply = flower_private._reply(incoming(message_to_proto(asked), get_object_tree(asked)).head, pack(body))
    parts = {name: part.deflate() for name, part in get_all_nested_objects(reply).items()}
    rebuilt = inflate_object_from_contents(reply.object_id, parts)
    assert isinstance(rebuilt, Message)
    assert unpack(rebuilt.content) == body


def test_an_error_is_a_reply_too() -> None:
    asked = question()
    reply = flower_private._reply(incoming(message_to_proto(asked), get_object_tree(asked)).head, Error(2, "SiteError"))
    assert reply.error.reason == "SiteError"
    assert len(get_all_nested_objects(reply)) == 1


def test_the_protocol_has_the_fields_that_are_read() -> None:
    fields = {
        name: {field.name for field in message_pb2.DESCRIPTOR.message_types_by_name[name].fields}
        for name in ("ObjectTree", "PullObjectResponse", "PushObjectResponse")
    }
    assert fields["ObjectTree"] == {"object_id", "children"}
    assert fields["PullObjectResponse"] == {"object_found", "object_available", "object_content"}
    assert {"stored"} <= fields["PushObjectResponse"]
    assert ec.ECDSA(hashes.SHA256()).algorithm.name == "sha256"
