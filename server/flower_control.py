"""What a coordinator asks of SuperLink's Control API: nodes by their key, and runs by their id.

Flower's command line does not show the key of a node and takes seconds to start, so the same requests are written
here. Nothing else in `server` touches the names below; they hold for flwr >=1.41,<1.42.
"""

import http.client
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListNodesResponse,
    ListRunsRequest,
    ListRunsResponse,
    RegisterNodeRequest,
    RegisterNodeResponse,
    StopRunRequest,
    StopRunResponse,
    UnregisterNodeRequest,
    UnregisterNodeResponse,
)
from google.protobuf.message import DecodeError, Message

from common.enrolment import pem_digest
from common.errors import BackendFailed

SUPPORTED_FLOWER: Final = ">=1.41,<1.42"
UNREGISTERED: Final = "unregistered"
FINISHED: Final = "finished"

_PREFIX = "/v1/control/"
_MEDIA_TYPE = "application/protobuf"
_TIMEOUT_S = 10.0
_LONGEST_ANSWER_BYTES = 64 << 20
Answer = TypeVar("Answer", bound=Message)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowerNode:
    """A node as Flower keeps it: its id, and `registered`, `online`, `offline` or `unregistered`."""

    node_id: int
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowerRun:
    """A run as Flower keeps it.

    Attributes:
        status: `pending`, `starting`, `running` or `finished`.
        sub_status: Of a finished one: `completed`, `failed` or `stopped`.
        details: Why, in Flower's words.
    """

    status: str
    sub_status: str
    details: str


class FlowerControl:
    """Asks one SuperLink on this machine. Every call raises BackendFailed if it does not answer, or says no."""

    def __init__(self, address: str, *, authority: Path) -> None:
        """Keep `host:port` and the certificate that SuperLink's is checked against."""
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._context = ssl.create_default_context(cafile=str(authority))

    def nodes(self) -> dict[str, FlowerNode]:
        """Every node that was ever registered, by the digest of its key (`common.enrolment.node_key_digest`)."""
        answer = self._ask("list-nodes", ListNodesRequest(), ListNodesResponse)
        return {
            pem_digest(node.public_key): FlowerNode(node_id=node.node_id, status=node.status)
            for node in answer.nodes_info
        }

    def register(self, pem: bytes, *, name: str) -> None:
        """Let the node with this public key come. Flower refuses a key that it had before."""
        self._ask("register-node", RegisterNodeRequest(public_key=pem, name=name), RegisterNodeResponse)

    def unregister(self, node_id: int) -> None:
        """Let a node come no more; Flower never takes its key back."""
        self._ask("unregister-node", UnregisterNodeRequest(node_id=node_id), UnregisterNodeResponse)

    def runs(self) -> dict[str, FlowerRun]:
        """Every run by Flower's id."""
        answer = self._ask("list-runs", ListRunsRequest(), ListRunsResponse)
        return {
            str(run_id): FlowerRun(
                status=run.status.status, sub_status=run.status.sub_status, details=run.status.details
            )
            for run_id, run in answer.run_dict.items()
        }

    def stop(self, flower_run: str) -> None:
        """End a run's ServerApp, at once."""
        self._ask("stop-run", StopRunRequest(run_id=int(flower_run)), StopRunResponse)

    def is_healthy(self) -> bool:
        """Whether /health answers 200."""
        try:
            return self._send("GET", "/health", b"", timeout_s=2.0)[0] == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False

    def _ask(self, verb: str, request: Message, kind: type[Answer]) -> Answer:
        try:
            status, body = self._send("POST", _PREFIX + verb, request.SerializeToString(), timeout_s=_TIMEOUT_S)
        except (OSError, http.client.HTTPException) as error:
            raise BackendFailed(
                f"SuperLink does not answer on {self._host}:{self._port} ({type(error).__name__})"
            ) from error
        if status != http.HTTPStatus.OK:
            raise BackendFailed(f"SuperLink refused {verb} with {status}", hint=body[:500].decode(errors="replace"))
        answer = kind()
        try:
            answer.ParseFromString(body)
        except DecodeError as error:
            raise BackendFailed(f"SuperLink's answer to {verb} cannot be read") from error
        return answer

    def _send(self, method: str, path: str, body: bytes, *, timeout_s: float) -> tuple[int, bytes]:
        # The standard library's client, because it takes no proxy from the environment.
        connection = http.client.HTTPSConnection(self._host, self._port, timeout=timeout_s, context=self._context)
        try:
            headers = {"content-type": _MEDIA_TYPE, "accept": _MEDIA_TYPE, "x-flwr-client": "cli"}
            connection.request(method, path, body=body or None, headers=headers)
            response = connection.getresponse()
            return response.status, response.read(_LONGEST_ANSWER_BYTES)
        finally:
            connection.close()
