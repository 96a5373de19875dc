"""What a courier has to reach inside Flower for; nothing else at a site touches these.

Flower's own client of its Fleet API comes with a process that ends itself on a 401 and runs what the coordinator ships.
Here only the calls are taken from it. The names below hold for flwr >=1.41,<1.42.
"""

import json
import ssl
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import httpx
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.app.message import Array
from flwr.app.message.arraychunk import ArrayChunk
from flwr.app.message.message import remove_content_from_message
from flwr.common.constant import HEARTBEAT_MIN_INTERVAL, TIMESTAMP_HEADER
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2, node_pb2
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    FLWR_COMPONENT_NAME_METADATA_KEY,
    FLWR_PACKAGE_NAME_METADATA_KEY,
    FLWR_PACKAGE_VERSION_METADATA_KEY,
)
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_body,
    get_object_children_ids_from_object_content,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.version import package_name, package_version
from flwr.supernode.fleet_http_client import FleetHttpClient

SUPPORTED_FLOWER: Final = ">=1.41,<1.42"
LARGEST_RESPONSE_BYTES: Final = 8 << 20  # Flower cuts arrays into pieces of 5 MiB
HEARTBEAT_S: Final = float(HEARTBEAT_MIN_INTERVAL)  # a node that is silent for two of them counts as gone
BUSY: Final = frozenset({502, 503, 504})
PARALLEL: Final = 4  # calls at a time for the parts of one message
COMPONENT: Final = "SuperNode"  # as which the SuperLink checks the version

_TIMEOUT = httpx.Timeout(30.0, connect=10.0)
_GOODBYE_S = 5.0
_PATIENCE_S = (0.2, 0.5, 1.0, 2.0, 4.0)


class MessageRefused(ValueError):
    """A message that was handed out is not of the one shape; it can be answered with an error.

    Attributes:
        head: Flower's head of it.
    """

    def __init__(self, fact: str, head: Message) -> None:
        super().__init__(fact)
        self.head = head


class ResponseRefused(httpx.TransportError):
    """The other end sent more than it may, or in a form that it was not asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """A message that waits to be fetched: Flower's head of it, and the names of its parts.

    Attributes:
        head: Without content.
        outline_ids: Its parts that say nothing of the body: message and content, and the record of an array.
        core_id: The record in which a short body travels, or the one array in which a long one does.
        chunk_ids: The array's pieces, each once; none of a short body.
    """

    head: Message
    outline_ids: tuple[str, ...]
    core_id: str
    chunk_ids: frozenset[str]

    @property
    def ttl_s(self) -> float:
        """For how long the asking side waits, from when it asked."""
        return float(self.head.metadata.ttl)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How an array's bytes lie in its pieces.

    Attributes:
        size_bytes: As declared.
        chunk_ids: In order; a piece may stand there more than once.
    """

    size_bytes: int
    chunk_ids: tuple[str, ...]


class Fleet:
    """One node's calls to a SuperLink, over TLS and signed with its node key. May be used from two threads.

    Every call raises httpx.HTTPStatusError for a refusal, httpx.TransportError if the other end is not reached or sends
    what it may not, and ValueError for a reply that cannot be read. What belongs to a message that was handed out is
    tried again for some seconds while the other end is not reached or says 502, 503 or 504.

    Args:
        address: `host:port`.
        tls: Whom to trust, and this side's certificate if it has one.
        key: The node key, on P-384.
        pause: Waits so many seconds before a call is tried again; True if it should not be.
    """

    def __init__(
        self,
        address: str,
        *,
        tls: ssl.SSLContext,
        key: ec.EllipticCurvePrivateKey,
        pause: Callable[[float], bool],
    ) -> None:
        self._pause = pause
        self._threads = ThreadPoolExecutor(max_workers=PARALLEL, thread_name_prefix="fleet")
        self._public_key = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self._client = FleetHttpClient(f"https://{address}", interceptors=[_Signing(key, self._public_key)])
        self._client.close()
        self._client._client = httpx.Client(
            verify=tls,
            timeout=_TIMEOUT,
            follow_redirects=False,
            headers={"accept-encoding": "identity"},
            event_hooks={"response": [_limit_response]},
        )
        self._node: node_pb2.Node | None = None

    @property
    def node_id(self) -> int | None:
        """Flower's number of this node; None before it is activated."""
        return None if self._node is None else int(self._node.node_id)

    def activate(self) -> None:
        """Announce the node, or confirm that it is still there. 412: the SuperLink has it as connected already."""
        if self._node is not None and self.heartbeat():
            return
        request = fleet_pb2.ActivateNodeRequest(public_key=self._public_key, heartbeat_interval=HEARTBEAT_S)
        self._node = node_pb2.Node(node_id=self._client.ActivateNode(request).node_id)

    def forget(self) -> None:
        """Take the node's number for outdated; the next `activate` asks for it."""
        self._node = None

    def heartbeat(self) -> bool:
        """Say that the node is there; False if the SuperLink does not know it."""
        request = heartbeat_pb2.SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_S)
        return bool(self._client.SendNodeHeartbeat(request).success)

    def pull(self) -> Incoming | None:
        """The next message for this node, or None; a message is handed out once. MessageRefused: of another shape."""
        response = self._client.PullMessages(fleet_pb2.PullMessagesRequest(node=self._node))
        if not response.messages_list:
            return None
        if len(response.message_object_trees) != 1 or len(response.messages_list) != 1:
            raise ResponseRefused("more than one message came at a time")
        return incoming(response.messages_list[0], response.message_object_trees[0])

    def pull_objects(self, source: Incoming, object_ids: Sequence[str]) -> list[bytes | None]:
        """Some parts of a message, `PARALLEL` of them at a time; see `pull_object`."""
        return list(self._threads.map(partial(self.pull_object, source), object_ids))

    def pull_object(self, source: Incoming, object_id: str) -> bytes | None:
        """One part of a message; None if it has not arrived at the SuperLink yet. ValueError: there is none."""
        request = message_pb2.PullObjectRequest(
            node=self._node, run_id=source.head.metadata.run_id, object_id=object_id
        )
        response = self._patiently(self._client.PullObject, request)
        if not response.object_found:
            raise ValueError("a part of the message is not there")
        return bytes(response.object_content) if response.object_available else None

    def confirm(self, head: Message) -> None:
        """Let the SuperLink drop a message's parts; not waited for, since it drops them at the run's end anyway."""
        request = message_pb2.ConfirmMessageReceivedRequest(
            node=self._node, run_id=head.metadata.run_id, message_object_id=head.metadata.message_id
        )
        self._threads.submit(self._patiently, self._client.ConfirmMessageReceived, request)

    def push(self, head: Message, content: RecordDict | Error) -> None:
        """Answer a message.

        The reply carries the asker's own times and no measured one: a site's clock decides and tells nothing.
        """
        reply = _reply(head, content)
        with no_object_id_recompute():
            tree, objects = get_object_tree(reply), get_all_nested_objects(reply)
        request = fleet_pb2.PushMessagesRequest(
            node=self._node,
            messages_list=[message_to_proto(remove_content_from_message(reply))],
            message_object_trees=[tree],
            clientapp_runtime_list=[0.0],
        )
        response = self._patiently(self._client.PushMessages, request)

        def push_part(object_id: str) -> None:
            part = message_pb2.PushObjectRequest(
                node=self._node,
                run_id=head.metadata.run_id,
                object_id=object_id,
                object_content=objects[object_id].deflate(),
                session_id=response.session_id,
            )
            if not self._patiently(self._client.PushObject, part).stored:
                raise ValueError("the SuperLink did not take a part of the reply")

        for _ in self._threads.map(push_part, response.objects_to_push):
            pass

    def close(self) -> None:
        """Sign the node off, as far as the other end can be reached, and close the connection."""
        try:
            if self._node is not None:
                self._client._client.timeout = httpx.Timeout(_GOODBYE_S)
                self._client.DeactivateNode(fleet_pb2.DeactivateNodeRequest(node_id=self._node.node_id))
        except (httpx.HTTPError, ValueError):
            pass  # whoever is not there cannot be told
        finally:
            self._threads.shutdown(cancel_futures=True)
            self._client.close()

    def _patiently(self, call: Callable[[Any], Any], request: Any) -> Any:
        for wait_s in _PATIENCE_S:
            try:
                return call(request)
            except ResponseRefused:
                raise
            except httpx.TransportError:
                if self._pause(wait_s):
                    raise
            except httpx.HTTPStatusError as error:
                if error.response.status_code not in BUSY or self._pause(wait_s):
                    raise
        return call(request)


def incoming(message: message_pb2.Message, tree: message_pb2.ObjectTree) -> Incoming:
    """What the SuperLink says of a waiting message, from the outline that it sends along.

    Raises:
        MessageRefused: If the message is not one record with a body or with one array (common/flower.py).
    """
    head = message_from_proto(message)
    head.metadata.__dict__["_message_id"] = tree.object_id
    outline_ids = []
    for part in ("message", "content", "record"):
        if part == "record" and not tree.children:
            break
        outline_ids.append(tree.object_id)
        if len(tree.children) != 1:
            raise MessageRefused("it is not one record with a body or with one array", head)
        tree = tree.children[0]
    else:
        if not tree.children or any(chunk.children for chunk in tree.children):
            raise MessageRefused("its array has no pieces, or pieces of pieces", head)
    return Incoming(
        head=head,
        outline_ids=tuple(outline_ids),
        core_id=tree.object_id,
        chunk_ids=frozenset(chunk.object_id for chunk in tree.children),
    )


def read_record(content: bytes) -> ConfigRecord:
    """The record that is its own one part; raises ValueError if it is something else."""
    try:
        return ConfigRecord.inflate(content)
    except Exception as error:  # the parser's errors are of many kinds
        raise ValueError("its record cannot be read") from error


def read_layout(content: bytes) -> Layout:
    """The layout that an array's own part declares; raises ValueError if it is none of one dimension."""
    try:
        document = json.loads(get_object_body(content, Array))
        names = get_object_children_ids_from_object_content(content)
        (size_bytes,) = document["shape"]
        order = tuple(names[place] for place in document["arraychunk_ids"])
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise ValueError("the outline of its array cannot be read") from error
    if not isinstance(size_bytes, int) or size_bytes < 0:
        raise ValueError("its array declares no size")
    return Layout(size_bytes=size_bytes, chunk_ids=order)


def read_chunk(content: bytes) -> bytes:
    """The bytes of one piece of an array; raises ValueError if it is something else."""
    return get_object_body(content, ArrayChunk)


def _reply(head: Message, content: RecordDict | Error) -> Message:
    reply = Message(content, reply_to=head)
    reply.metadata.__dict__.update(_created_at=head.metadata.created_at, _ttl=head.metadata.ttl)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    return reply


class _Signing:
    """Puts the node's key, a time and the signature over it on every call, and Flower's version."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, public_key: bytes) -> None:
        self._key = key
        self._fixed = {
            FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(public_key).decode(),
            FLWR_PACKAGE_NAME_METADATA_KEY: package_name,
            FLWR_PACKAGE_VERSION_METADATA_KEY: package_version,
            FLWR_COMPONENT_NAME_METADATA_KEY: COMPONENT,
        }

    def intercept(self, context: Any, call_next: Callable[[Any], httpx.Response]) -> httpx.Response:
        """Sign one call."""
        time = datetime.now(UTC).isoformat()
        signature = self._key.sign(time.encode(), ec.ECDSA(hashes.SHA256()))
        context.request.headers.update(
            {**self._fixed, TIMESTAMP_HEADER: time, FLEET_HTTP_SIGNATURE_HEADER: b64encode(signature).decode()}
        )
        return call_next(context)


class _Bounded(httpx.SyncByteStream):
    """A response's bytes, as long as they are not too many."""

    def __init__(self, stream: httpx.SyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        left = LARGEST_RESPONSE_BYTES
        for piece in self._stream:
            left -= len(piece)
            if left < 0:
                raise ResponseRefused(f"a response is longer than {LARGEST_RESPONSE_BYTES:,} bytes")
            yield piece

    def close(self) -> None:
        self._stream.close()


def _limit_response(response: httpx.Response) -> None:
    """Called before a response's body is read."""
    if "content-encoding" in response.headers:
        raise ResponseRefused("a response is compressed, which nobody asked for")
    stream = response.stream
    if isinstance(stream, httpx.SyncByteStream):
        response.stream = _Bounded(stream)
