"""What an in-process Grid has to reach inside Flower for; nothing else in Fedward touches these.

Flower gives a process its task identity when it starts an app, and a message its id when it stores it. Without a
SuperLink nobody does either. The names below hold for flwr >=1.41,<1.42.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from flwr.app import Message
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

SUPPORTED_FLOWER = ">=1.41,<1.42"
SERVER_NODE_ID = 1

_IDENTITY_FIELDS = ("_task_id", "_run_id", "_node_id")


@contextmanager
def task_identity(run_id: int = 1) -> Iterator[None]:
    """Let this process create messages as the server of a run; what was set before comes back at the end."""
    before = {field: getattr(TaskIdentity, field) for field in _IDENTITY_FIELDS}
    TaskIdentity.task_id = 1
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SERVER_NODE_ID
    try:
        yield
    finally:
        for field, value in before.items():
            setattr(TaskIdentity, field, value)


def stamp_message_id(message: Message, message_id: str) -> None:
    """Give a message the id that a SuperLink would have given it."""
    message.metadata.__dict__["_message_id"] = message_id


def empty_run(run_id: int) -> Run:
    """A run that no SuperLink knows of."""
    return Run.create_empty(run_id)
