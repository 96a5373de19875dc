"""A site's agent as a process: envelopes in and out over a Unix socket, one after the other.

The transport knows nothing of what it carries. Who may connect, the modes of the socket decide
(client/agent_socket.py); what is answered, the agent decides. Of an exception not even the name crosses the socket.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import grpc

from client import agent_service_pb2 as pb
from client.agent_channel import HANDLE, MAXIMUM_MESSAGE_BYTES, SERVICE, STATUS
from client.agent_socket import narrow_umask, open_to_group, prepare_socket
from common.errors import ConfigurationError
from common.wire import WIRE_VERSION

PLACES: Final = 4  # one request that is being answered and three that wait
LONGEST_WAIT_S: Final = 3600.0

_FOR_STATUS = 2
_FLUSH_S = 5.0
_FOREVER_S = 10.0**6
_Outcome = tuple[grpc.StatusCode, bytes]


class AgentService:
    """Answers requests with `handle`, always in one and the same thread.

    Args:
        handle: An envelope in, an envelope out.
        site: The site's name, for `Status`.
        version: Fedward's, for `Status`.
        on_failure: Told the class name of an exception that `handle` raised; the service goes on.
        limit_bytes: Of one message; a longer one is refused before it is read.
    """

    def __init__(
        self,
        handle: Callable[[bytes], bytes],
        *,
        site: str,
        version: str,
        on_failure: Callable[[str], None],
        limit_bytes: int = MAXIMUM_MESSAGE_BYTES,
    ) -> None:
        self._handle = handle
        self._site = site
        self._version = version
        self._on_failure = on_failure
        self._places = threading.BoundedSemaphore(PLACES)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="agent")
        self._server = grpc.server(
            ThreadPoolExecutor(max_workers=PLACES + _FOR_STATUS, thread_name_prefix="agent-service"),
            maximum_concurrent_rpcs=PLACES + _FOR_STATUS,
            options=(("grpc.max_receive_message_length", limit_bytes), ("grpc.so_reuseport", 0)),
        )
        methods = {
            HANDLE: _unary(self._answer, pb.Request),
            STATUS: _unary(self._say_status, pb.StatusRequest),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))

    def start(self, socket: Path, *, group: str) -> None:
        """Listen. Raises ConfigurationError if it cannot; see `prepare_socket`."""
        path = prepare_socket(socket, group=group)
        with narrow_umask():
            try:
                self._server.add_insecure_port(f"unix:{path}")
            except RuntimeError as error:
                raise ConfigurationError(f"{path}: the agent cannot listen there") from error
        open_to_group(path, group=group)
        self._server.start()

    def stop(self) -> None:
        """Finish the request in progress and send its reply, turn the waiting ones away, and stop listening."""
        stopped = self._server.stop(_FOREVER_S)
        self._worker.shutdown(wait=True, cancel_futures=True)
        if not stopped.wait(_FLUSH_S):
            self._server.stop(0).wait()

    def _answer(self, request: pb.Request, context: grpc.ServicerContext) -> pb.Reply:
        code, reply = self._outcome(request.envelope, context)
        if code is not grpc.StatusCode.OK:
            context.abort(code, "")
        return pb.Reply(envelope=reply)

    def _outcome(self, body: bytes, context: grpc.ServicerContext) -> _Outcome:
        if not self._places.acquire(blocking=False):
            return grpc.StatusCode.RESOURCE_EXHAUSTED, b""
        try:
            future = self._worker.submit(self._handle, body)
        except RuntimeError:  # it stops
            self._places.release()
            return grpc.StatusCode.UNAVAILABLE, b""
        future.add_done_callback(lambda _: self._places.release())
        if not context.add_callback(lambda: _forget(future)):
            _forget(future)
        try:
            return grpc.StatusCode.OK, future.result(min(context.time_remaining() or LONGEST_WAIT_S, LONGEST_WAIT_S))
        except CancelledError:
            return grpc.StatusCode.UNAVAILABLE, b""
        except Exception as error:  # the agent outlives any one request; the transport would send the text along
            if not _raised_by(future, error):
                _forget(future)
                return grpc.StatusCode.DEADLINE_EXCEEDED, b""
            self._on_failure(type(error).__name__)
            return grpc.StatusCode.INTERNAL, b""

    def _say_status(self, request: pb.StatusRequest, context: grpc.ServicerContext) -> pb.StatusReply:
        return pb.StatusReply(version=self._version, site=self._site, protocol=WIRE_VERSION)


@contextmanager
def serving(service: AgentService, socket: Path, *, group: str) -> Iterator[None]:
    """Serve while the block runs; at its end the request in progress is finished and the socket is gone."""
    service.start(socket, group=group)
    try:
        yield
    finally:
        service.stop()
        socket.unlink(missing_ok=True)


def _unary(method: Callable[[Any, grpc.ServicerContext], Any], request: type[Any]) -> grpc.RpcMethodHandler:
    return grpc.unary_unary_rpc_method_handler(
        method, request_deserializer=request.FromString, response_serializer=lambda reply: reply.SerializeToString()
    )


def _forget(future: "Future[bytes]") -> None:
    """Whoever asked is gone: what has not begun need not begin; what has goes on, since its answer is kept."""
    future.cancel()


def _raised_by(future: "Future[bytes]", error: Exception) -> bool:
    """Whether the error is the request's own, and not that the wait for it was over."""
    return future.done() and not future.cancelled() and future.exception() is error
