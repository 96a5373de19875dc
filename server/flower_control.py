"""What a coordinator asks of SuperLink's Control API: nodes by their key, and runs by their id.

Flower's command line does not show the key of a node, takes seconds to start and knows no token, so the same requests
are written here. Nothing else in `server` touches the names below; they hold for flwr >=1.41,<1.42.
"""

import hashlib
import http.client
import ssl
import warnings
from collections.abc import Mapping
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
    StartRunRequest,
    StartRunResponse,
    StopRunRequest,
    StopRunResponse,
    StreamLogsRequest,
    StreamLogsResponse,
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
_STREAM_TYPE = "application/flower-protobuf-stream"
_FRAME_HEAD_BYTES = 4
_TIMEOUT_S = 10.0
_START_TIMEOUT_S = 60.0
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

    def __init__(self, address: str, *, authority: Path, token: Path) -> None:
        """Keep where it is and how it is asked.

        Args:
            address: `host:port`.
            authority: Certificate that SuperLink's is checked against.
            token: File with what the Control API asks for, read with every request.
        """
        self._token = token
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

    def start(self, bundle: Path, config: Mapping[str, str]) -> str:
        """Hand over a run of the app in a directory, with these values of its config; returns Flower's id of it."""
        from flwr.cli.build import build_fab_from_disk  # brings Flower's whole command line along
        from flwr.common.serde import fab_to_proto, user_config_to_proto
        from flwr.supercore.fab import Fab

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Flower's, of a library that it uses
            content = build_fab_from_disk(bundle)
        fab = fab_to_proto(Fab(hashlib.sha256(content).hexdigest(), content, {}))
        request = StartRunRequest(fab=fab, override_config=user_config_to_proto(dict(config)))
        answer = self._ask("start-run", request, StartRunResponse, timeout_s=_START_TIMEOUT_S)
        if not answer.HasField("run_id"):
            raise BackendFailed("SuperLink started no run", hint=str(answer.note)[:500])
        return str(answer.run_id)

    def output(self, flower_run: str) -> str:
        """What a run's ServerApp printed so far, as far as SuperLink tells it at once."""
        request = StreamLogsRequest(run_id=int(flower_run), after_timestamp=0.0)
        body = self._asked("stream-logs", request, accept=_STREAM_TYPE, timeout_s=_TIMEOUT_S)
        return _parsed("stream-logs", body, StreamLogsResponse).log_output if body else ""

    def is_healthy(self) -> bool:
        """Whether /health answers 200."""
        try:
            return self._send("GET", "/health", b"", timeout_s=2.0)[0] == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False

    def _ask(self, verb: str, request: Message, kind: type[Answer], *, timeout_s: float = _TIMEOUT_S) -> Answer:
        return _parsed(verb, self._asked(verb, request, accept=_MEDIA_TYPE, timeout_s=timeout_s), kind)

    def _asked(self, verb: str, request: Message, *, accept: str, timeout_s: float) -> bytes:
        try:
            bearer = {"authorization": f"Bearer {self._token.read_text(encoding='ascii')}"}
        except (OSError, UnicodeDecodeError) as error:
            raise BackendFailed(f"{self._token}: the token of SuperLink's Control API cannot be read") from error
        content = request.SerializeToString()
        try:
            status, body = self._send(
                "POST", _PREFIX + verb, content, headers=bearer, accept=accept, timeout_s=timeout_s
            )
        except (OSError, http.client.HTTPException) as error:
            raise BackendFailed(
                f"SuperLink does not answer on {self._host}:{self._port} ({type(error).__name__})"
            ) from error
        if status != http.HTTPStatus.OK:
            raise BackendFailed(f"SuperLink refused {verb} with {status}", hint=body[:500].decode(errors="replace"))
        return body

    def _send(
        self,
        method: str,
        path: str,
        body: bytes,
        *,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
        accept: str = _MEDIA_TYPE,
    ) -> tuple[int, bytes]:
        # The standard library's client, because it takes no proxy from the environment.
        connection = http.client.HTTPSConnection(self._host, self._port, timeout=timeout_s, context=self._context)
        try:
            sent = {"content-type": _MEDIA_TYPE, "accept": accept, "x-flwr-client": "cli", **(headers or {})}
            connection.request(method, path, body=body or None, headers=sent)
            response = connection.getresponse()
            if accept == _STREAM_TYPE and response.status == http.HTTPStatus.OK:
                return response.status, _first_frame(response)
            return response.status, response.read(_LONGEST_ANSWER_BYTES)
        finally:
            connection.close()


def _first_frame(response: http.client.HTTPResponse) -> bytes:
    """The first message of a stream, which may go on for as long as a run; empty if there is none."""
    head = response.read(_FRAME_HEAD_BYTES)
    return response.read(min(int.from_bytes(head, "big"), _LONGEST_ANSWER_BYTES)) if head else b""


def _parsed(verb: str, body: bytes, kind: type[Answer]) -> Answer:
    answer = kind()
    try:
        answer.ParseFromString(body)
    except DecodeError as error:
        raise BackendFailed(f"SuperLink's answer to {verb} cannot be read") from error
    return answer
