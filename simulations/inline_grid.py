"""Flower's Grid without Flower's processes: every node is a function in this one.

A message is answered when its reply is pulled, so that one reply exists at a time; nothing waits, sleeps or polls.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Literal

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run

from client.app import answer
from common.flower import unpack
from simulations.flower_private import empty_run, stamp_message_id, task_identity

Direction = Literal["request", "reply"]
Handler = Callable[[Message], Message]
Tap = Callable[[Direction, int, bytes], None]

_HANDLER_RAISED = 2


class InlineGrid(Grid):
    """A Grid whose nodes are handlers called in this process, in the order in which replies are asked for.

    Use it inside `task_identity()`, as `run_inline` does: without it Flower refuses to create a message.

    Args:
        handlers: What answers for each node id. An exception becomes an error reply that carries its class name.
        tap: Sees every body that passes, with its direction and node id; of an error reply, the name that it carries.
        run_id: The run that `run` reports.
    """

    def __init__(self, handlers: Mapping[int, Handler], *, tap: Tap | None = None, run_id: int = 1) -> None:
        self._handlers = dict(handlers)
        self._tap = tap
        self._run = empty_run(run_id)
        self._pushed: dict[str, Message] = {}
        self._count = 0

    def set_run(self, run: Run) -> None:
        """Take over a run's details."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run's details."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to one node."""
        return Message(content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> list[int]:
        """The ids of all handlers."""
        return list(self._handlers)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Keep messages until they are asked for; one to an unknown node is not accepted and gets no id."""
        accepted = []
        for message in messages:
            if message.metadata.dst_node_id not in self._handlers:
                continue
            self._count += 1
            message_id = f"inline-{self._count}"
            stamp_message_id(message, message_id)
            self._pushed[message_id] = message
            accepted.append(message_id)
        return accepted

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Answer the given messages now; an id that is unknown or already answered gives nothing."""
        pushed = (self._pushed.pop(message_id, None) for message_id in message_ids)
        return [self._answer(message) for message in pushed if message is not None]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push and pull in one go; no timeout can pass."""
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        node_id = message.metadata.dst_node_id
        self._show("request", node_id, message)
        try:
            reply = self._handlers[node_id](message)
        except Exception as error:
            reply = Message(Error(_HANDLER_RAISED, type(error).__name__), reply_to=message)
        self._show("reply", node_id, reply)
        return reply

    def _show(self, direction: Direction, node_id: int, message: Message) -> None:
        if self._tap is None:
            return
        body = unpack(message.content) if message.has_content() else (message.error.reason or "").encode()
        self._tap(direction, node_id, body)


def site_handlers(sites: Mapping[int, Callable[[bytes], bytes]]) -> dict[int, Handler]:
    """Handlers in front of functions that take a body and return one, with the ClientApp's treatment of errors."""
    return {node_id: partial(answer, handle=handle) for node_id, handle in sites.items()}


def run_inline(
    app: ServerApp,
    handlers: Mapping[int, Handler],
    *,
    run_config: Mapping[str, str],
    tap: Tap | None = None,
    run_id: int = 1,
) -> None:
    """Run a ServerApp to its end over in-process nodes; whatever it raises comes out here."""
    with task_identity(run_id):
        context = Context(run_id=run_id, node_id=0, node_config={}, state=RecordDict(), run_config=dict(run_config))
        app(InlineGrid(handlers, tap=tap, run_id=run_id), context)
