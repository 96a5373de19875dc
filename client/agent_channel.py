"""What a courier knows of its site's agent: a socket, bytes in, bytes out. Neither torch nor the agent is imported."""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import grpc

from client import agent_service_pb2 as pb
from common.errors import BackendFailed, ConfigurationError
from common.wire import MAXIMUM_BODY_BYTES

HANDLE: Final = "Handle"
STATUS: Final = "Status"
SERVICE: Final = str(pb.DESCRIPTOR.services_by_name["Agent"].full_name)
MAXIMUM_MESSAGE_BYTES: Final = MAXIMUM_BODY_BYTES + 1024  # the field's own head
LONGEST_PATH_BYTES: Final = 107  # of a Unix socket on Linux

_PATIENCE_S = 10.0  # an agent that is restarted imports torch first
_LOOK_AGAIN_S = 0.5
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAXIMUM_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
)


class AgentAway(BackendFailed):
    """The agent gave no reply; the same request may be made again."""


class AgentChannel:
    """A connection to an agent, made when it is first needed and made anew when the agent was restarted.

    Args:
        socket: Where the agent listens.
        patience_s: How long a call waits for an agent that is not there, as while it is restarted.

    Raises:
        ConfigurationError: If the socket's path is longer than Unix allows.
    """

    def __init__(self, socket: Path, *, patience_s: float = _PATIENCE_S) -> None:
        self._socket = checked_socket_path(socket)
        self._patience_s = patience_s
        self._channel = grpc.insecure_channel(f"unix:{self._socket}", options=_OPTIONS)
        self._handle = self._method(HANDLE, pb.Reply)
        self._status = self._method(STATUS, pb.StatusReply)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def handle(self, body: bytes, timeout_s: float, *, given_up: Callable[[], bool] = lambda: False) -> bytes:
        """The agent's reply to one envelope.

        Args:
            timeout_s: For the reply, once the agent is there.
            given_up: Looked at every half second; once it says so, the call is abandoned.

        Raises:
            AgentAway: If the agent is not there, has too much to do, stops meanwhile or does not answer in time.
        """
        self._wait(self._status, pb.StatusRequest(), self._patience_s, given_up)
        return bytes(self._wait(self._handle, pb.Request(envelope=body), timeout_s, given_up).envelope)

    def status(self, *, timeout_s: float = 5.0) -> pb.StatusReply:
        """Who the agent is; answered even while it trains. Raises AgentAway if it is not there."""
        reply: pb.StatusReply = self._wait(self._status, pb.StatusRequest(), timeout_s, lambda: False)
        return reply

    def _method(self, name: str, reply: type[Any]) -> Any:
        return self._channel.unary_unary(
            f"/{SERVICE}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=reply.FromString,
        )

    def _wait(self, method: Any, request: Any, timeout_s: float, given_up: Callable[[], bool]) -> Any:
        call = method.future(request, timeout=timeout_s, wait_for_ready=method is self._status)
        try:
            while True:
                try:
                    return call.result(timeout=_LOOK_AGAIN_S)
                except grpc.FutureTimeoutError:
                    if given_up():
                        raise AgentAway("the agent was not waited for any longer") from None
        except grpc.FutureCancelledError as error:
            raise AgentAway("the call to the agent was abandoned") from error
        except grpc.RpcError as error:
            raise self._away(error, timeout_s) from error
        finally:
            call.cancel()

    def _away(self, error: Any, timeout_s: float) -> AgentAway:
        code, details = error.code(), str(error.details())
        if "Permission denied" in details:
            return AgentAway(
                f"{self._socket}: this user may not connect to the agent",
                hint="The courier's user has to be in the group that node.toml names as socket_group.",
            )
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED) and not self._socket.exists():
            return AgentAway(f"{self._socket}: no agent listens there", hint="Start it with: fedward site agent")
        facts = {
            grpc.StatusCode.UNAVAILABLE: "the agent does not listen or is about to stop",
            grpc.StatusCode.RESOURCE_EXHAUSTED: "the agent has too many requests to answer, or one is too large",
            grpc.StatusCode.DEADLINE_EXCEEDED: f"the agent did not answer within {timeout_s:g} s",
        }
        return AgentAway(f"{self._socket}: {facts.get(code, f'the agent made no reply ({code.name})')}")


def checked_socket_path(socket: Path) -> Path:
    """The absolute path; raises ConfigurationError if it is longer than a Unix socket's may be."""
    path = socket.absolute()
    if (size := len(bytes(path))) > LONGEST_PATH_BYTES:
        raise ConfigurationError(
            f"{path}: the path of a socket has {size} bytes, Unix allows {LONGEST_PATH_BYTES}",
            hint="Name a shorter one in node.toml and courier.toml, such as /run/fedward/agent.sock.",
        )
    return path
