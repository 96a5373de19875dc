"""One question to many sites through Flower's Grid, and their answers as bytes.

`Grid.send_and_receive` sleeps for seconds between looks, so messages are pushed, and replies pulled one at a time: a
reply is handed over and dropped before the next is fetched, and memory stays flat however many sites there are.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from common.flower import DEFAULT_LIMIT_BYTES, pack, unpack

FIRST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 0.3

NO_REPLY = "NoReply"
NOT_ACCEPTED = "NotAccepted"
UNREADABLE = "UnreadableReply"
UNNAMED = "UnnamedError"

_LOG = logging.getLogger("fedward.server.exchange")
_ERROR_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


class GridExchange:
    """Sends bodies to nodes and collects their replies, within a deadline.

    A node that fails, answers nothing in time or answers in another shape is None. A node id is Flower's; which site
    is behind it is for the messages themselves to prove.

    Attributes:
        failures: For every node that was None in the last exchange, a short name of why: the class name that the
            site sent, or one of this module's constants. Never a text that a site chose freely.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        message_type: str = "query",
        limit_bytes: int = DEFAULT_LIMIT_BYTES,
        longest_pause_s: float = LONGEST_PAUSE_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._grid = grid
        self._message_type = message_type
        self._limit_bytes = limit_bytes
        self._longest_pause_s = longest_pause_s
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
            requests: Body per node id. A body object that appears more than once is packed once.
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
        return {}

    def replies(self, requests: Mapping[int, bytes], *, timeout_s: float) -> Iterator[tuple[int, bytes | None]]:
        """Ask every node of `requests` and yield (node id, reply or None) in the order in which outcomes are known."""
        if timeout_s <= 0:
            raise ValueError(f"an exchange needs a positive timeout, not {timeout_s} s")
        self.failures = {}
        deadline = self._clock() + timeout_s
        waiting = self._push(requests, timeout_s)
        for node_id in requests.keys() - waiting.values():
            self.failures[node_id] = NOT_ACCEPTED
            yield node_id, None
        pause_s = FIRST_PAUSE_S
        while waiting:
            for message_id in list(waiting):
                for reply in self._grid.pull_messages([message_id]):
                    answered = waiting.pop(reply.metadata.reply_to_message_id, None)
                    if answered is not None:
                        yield answered, self._body(answered, reply)
            left_s = deadline - self._clock()
            if not waiting or left_s <= 0:
                break
            self._sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, self._longest_pause_s)
        for node_id in waiting.values():
            self.failures[node_id] = NO_REPLY
            yield node_id, None

    def _push(self, requests: Mapping[int, bytes], timeout_s: float) -> dict[str, int]:
        """Send all messages and return the node id per id of an accepted message."""
        packed: dict[int, RecordDict] = {}
        messages: list[Message] = []
        for node_id, body in requests.items():
            content = packed.get(id(body))
            if content is None:
                content = packed[id(body)] = pack(body, limit_bytes=self._limit_bytes)
            messages.append(Message(content, dst_node_id=node_id, message_type=self._message_type, ttl=timeout_s))
        if not messages:
            return {}
        accepted = set(self._grid.push_messages(messages))
        sent = (message.metadata for message in messages)
        return {metadata.message_id: metadata.dst_node_id for metadata in sent if metadata.message_id in accepted}

    def _body(self, node_id: int, reply: Message) -> bytes | None:
        """The reply's body, or None with the reason noted."""
        if reply.has_error():
            reason = reply.error.reason or ""
            self.failures[node_id] = reason if _ERROR_NAME.fullmatch(reason) else UNNAMED
        else:
            try:
                return unpack(reply.content, limit_bytes=self._limit_bytes)
            except ValueError:
                self.failures[node_id] = UNREADABLE
        _LOG.warning("node %d gave no usable reply: %s", node_id, self.failures[node_id])
        return None
