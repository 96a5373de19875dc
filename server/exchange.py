"""One question to many sites through Flower's Grid, and their answers as bytes.

`Grid.send_and_receive` sleeps for seconds between looks, so messages are pushed, and replies pulled one at a time: a
reply is handed over and dropped before the next is fetched, and memory stays flat however many sites there are.

A message can be lost with the courier that held it, and Flower then reports the node as unavailable although it is
back a moment later. So a node that is silent or fails gets the same request again until the deadline; a site answers a
request that it has answered before with the same bytes, and whichever message of a node is answered first counts.
"""

import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from common.exits import NAMES_THAT_TRAVEL
from common.flower import DEFAULT_LIMIT_BYTES, pack, unpack
from server.asking import Asked
from server.flower_private import NOT_PUSHED, look_for_parts_soon

FIRST_PAUSE_S: Final = 0.02
LONGEST_PAUSE_S: Final = 0.3
TURN_S: Final = 0.1  # a look is several requests' work for SuperLink
BATCH_BYTES: Final = 4 << 20

NO_REPLY: Final = "NoReply"
NOT_ACCEPTED: Final = "NotAccepted"
UNREADABLE: Final = "UnreadableReply"
UNNAMED: Final = "UnnamedError"
FLOWERS_OWN_ERRORS: Final[Mapping[int, str]] = {
    3: "MessageUnavailable",
    4: "ReplyUnavailable",
    5: "NodeUnavailable",
    8: "ClientAppCrashed",
}
"""Names for error codes with which Flower answers in a node's place (`flwr.common.constant.ErrorCode`)."""

_LOG = logging.getLogger("fedward.server.exchange")
_ERROR_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_FINAL_FAILURES = NAMES_THAT_TRAVEL | {UNREADABLE}


class GridExchange:
    """Sends bodies to nodes and collects their replies, within a deadline.

    A node that fails, answers nothing in time or answers in another shape is None. A node id is Flower's; which site
    is behind it is for the messages themselves to prove.

    Attributes:
        failures: For every node that was None in the last exchange, a short name of why: the class name that the
            site sent, or one of this module's names. Never a text that a site chose freely.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        message_type: str = "query",
        limit_bytes: int = DEFAULT_LIMIT_BYTES,
        longest_pause_s: float = LONGEST_PAUSE_S,
        resend_after_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Exchange over a grid.

        Args:
            grid: Where messages are pushed and replies pulled.
            message_type: Of every message.
            limit_bytes: Largest body, either way.
            longest_pause_s: Between two looks.
            resend_after_s: First silence after which a node gets its request again, doubled every time; 0 is never,
                and a failure is then the node's answer.
            clock: Seconds that only go up.
            sleep: Waits for so many seconds.
        """
        look_for_parts_soon()
        self._grid = grid
        self._message_type = message_type
        self._limit_bytes = limit_bytes
        self._longest_pause_s = longest_pause_s
        self._resend_after_s = resend_after_s
        self._clock = clock
        self._sleep = sleep
        self.failures: dict[int, str] = {}

    def node_ids(self) -> list[int]:
        """The nodes that Flower reports as connected, in ascending order."""
        return sorted(self._grid.get_node_ids())

    def wait_for_nodes(self, count: int, *, timeout_s: float) -> list[int]:
        """The connected nodes, as soon as there are `count` of them; those that there are once the timeout passes.

        A ServerApp can be running before the first node has registered.
        """
        deadline = self._clock() + timeout_s
        while len(nodes := self.node_ids()) < count and (left_s := deadline - self._clock()) > 0:
            self._sleep(min(LONGEST_PAUSE_S, left_s))
        return nodes

    def exchange(
        self,
        requests: Mapping[int, bytes],
        *,
        timeout_s: float,
        on_reply: Callable[[int, bytes | None], None] | None = None,
    ) -> dict[int, bytes | None]:
        """Ask every node of `requests` and return one entry for each: its reply, or None.

        Args:
            requests: Body per node id, looked up when it is sent and again when it is sent again. A body object that
                several nodes get is packed once.
            timeout_s: Seconds from the sending on, > 0. Every node is looked at once, whatever the time.
            on_reply: Called once per node, as soon as its outcome is known. What it was given is not kept: the
                returned dictionary is then empty, so that no more than one reply is held at a time.

        Raises:
            ValueError: If the timeout is not positive, or a body is empty or above the size limit.
        """
        if on_reply is None:
            return dict(self.replies(requests, timeout_s=timeout_s))
        for node_id, body in self.replies(requests, timeout_s=timeout_s):
            on_reply(node_id, body)
            del body  # the next one is fetched before the loop would let go of this one
        return {}

    def replies(self, requests: Mapping[int, bytes], *, timeout_s: float) -> Iterator[tuple[int, bytes | None]]:
        """Ask every node of `requests` and yield (node id, reply or None) in the order in which outcomes are known."""
        if timeout_s <= 0:
            raise ValueError(f"an exchange needs a positive timeout, not {timeout_s} s")
        self.failures = {}
        deadline = self._clock() + timeout_s
        asked = {node: Asked(resend_after_s=self._resend_after_s) for node in requests}
        yield from self._push(requests, asked, list(asked), ttl_s=timeout_s)
        pause_s, left_s = FIRST_PAUSE_S, 0.0
        while asked:
            yield from self._look_around(asked, everywhere=left_s <= 0)
            left_s = deadline - self._clock()
            if not asked or left_s <= 0:
                break
            due = [node_id for node_id, one in asked.items() if one.is_due(self._clock())]
            yield from self._push(requests, asked, due, ttl_s=left_s)
            if not asked:
                break
            self._sleep(min(max(pause_s / len(asked), min(pause_s, TURN_S)), left_s))
            pause_s = min(2 * pause_s, self._longest_pause_s)
            left_s = deadline - self._clock()
        for node_id in asked:
            self.failures.setdefault(node_id, NO_REPLY)
            yield node_id, None

    def _look_around(self, asked: dict[int, Asked], *, everywhere: bool) -> Iterator[tuple[int, bytes | None]]:
        """Look for an answer of one node, another one each time, or of every node; yields the outcomes.

        Nodes that were asked together answer about together: as soon as one has answered, all are looked at.
        """
        first, *others = asked
        yield from self._look(first, asked)
        if first in asked:
            asked[first] = asked.pop(first)
            if not everywhere:
                return
        for node_id in others:
            yield from self._look(node_id, asked)

    def _look(self, node_id: int, asked: dict[int, Asked]) -> Iterator[tuple[int, bytes | None]]:
        """Pull what came for one node, message by message; yields its outcome if that is known now."""
        one = asked[node_id]
        for message_id in list(one.messages):
            reply = self._pull(message_id)
            if reply is None:
                continue
            one.messages.discard(message_id)
            body = self._body(node_id, reply)
            del reply
            if body is not None or not one.goes_on(self._clock(), final=self.failures[node_id] in _FINAL_FAILURES):
                del asked[node_id]
                yield node_id, body
                return

    def _pull(self, message_id: str) -> Message | None:
        for reply in self._grid.pull_messages([message_id]):
            if reply.metadata.reply_to_message_id == message_id:
                return reply
        return None

    def _push(
        self, requests: Mapping[int, bytes], asked: dict[int, Asked], nodes: Iterable[int], *, ttl_s: float
    ) -> Iterator[tuple[int, bytes | None]]:
        """Send one message to each node, a few MiB at a time; yields the nodes whose message was not accepted."""
        for batch in self._batches(requests, nodes, ttl_s):
            try:
                accepted = set(self._grid.push_messages(batch))
            except NOT_PUSHED as error:
                _LOG.warning("messages to %d nodes were not taken: %s", len(batch), type(error).__name__)
                accepted, now_s = set(), self._clock()
                batch = [one for one in batch if not asked[one.metadata.dst_node_id].goes_on(now_s, final=False)]
            sent = [(message.metadata.dst_node_id, message.metadata.message_id) for message in batch]
            batch.clear()
            for node_id, message_id in sent:
                if message_id in accepted:
                    asked[node_id].sent(message_id, self._clock())
                else:
                    del asked[node_id]
                    self.failures[node_id] = NOT_ACCEPTED
                    yield node_id, None

    def _batches(self, requests: Mapping[int, bytes], nodes: Iterable[int], ttl_s: float) -> Iterator[list[Message]]:
        """Messages in lists whose bodies are together not much larger than BATCH_BYTES."""
        batch: list[Message] = []
        packed: dict[int, RecordDict] = {}
        size_bytes = 0
        for node_id in nodes:
            body = requests[node_id]
            content = packed.get(id(body))
            if content is None:
                content = packed[id(body)] = pack(body, limit_bytes=self._limit_bytes)
                size_bytes += len(body)
            batch.append(Message(content, dst_node_id=node_id, message_type=self._message_type, ttl=ttl_s))
            del body, content
            if size_bytes >= BATCH_BYTES:
                packed.clear()
                size_bytes = 0
                yield batch
                batch = []
        if batch:
            packed.clear()
            yield batch

    def _body(self, node_id: int, reply: Message) -> bytes | None:
        """The reply's body, or None with the reason noted."""
        if reply.has_error():
            reason = reply.error.reason or ""
            named = reason if _ERROR_NAME.fullmatch(reason) else UNNAMED
            self.failures[node_id] = FLOWERS_OWN_ERRORS.get(reply.error.code, named)
        else:
            try:
                body = unpack(reply.content, limit_bytes=self._limit_bytes)
            except ValueError:
                self.failures[node_id] = UNREADABLE
            else:
                self.failures.pop(node_id, None)
                return body
        _LOG.warning("node %d gave no usable reply: %s", node_id, self.failures[node_id])
        return None
