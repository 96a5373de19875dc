"""The courier: carries sealed messages between the coordinator's SuperLink and the site's agent, and nothing else.

It speaks Flower's Fleet API itself. It never asks for a run's code, so none that a coordinator sends can run at a site.
What it holds is the node key; what passes through it is signed by others. A message that it cannot get answered is
answered with an error, and the coordinator may ask the same again.
"""

import math
import signal
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from secrets import SystemRandom
from typing import Final

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Error, Message, RecordDict

from client.agent_channel import AgentAway, AgentChannel
from client.fleet_trouble import explain
from client.flower_private import (
    HEARTBEAT_S,
    PARALLEL,
    Fleet,
    Incoming,
    MessageRefused,
    read_chunk,
    read_layout,
    read_record,
)
from client.memory import give_back_freed_memory, map_large_blocks
from client.node_files import COURIER_FILE, CourierSettings, read_courier_settings
from client.supernode import run_supernode
from common.errors import ConfigurationError
from common.flower import body_of, pack
from common.terminal import one_line
from common.wire import MAXIMUM_BODY_BYTES

ERROR_CODE: Final = 2
UNSAID: Final = "SiteError"
LONGEST_ANSWER_S: Final = 3600.0

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 15.0
_IDLE_SHARE, _LONGEST_POLL_S = 0.1, 2.0
_PART_WAITS_S = (0.02, 0.05, 0.1, 0.2, 0.5, *[1.0] * 60)
_NOT_RUNNING = 403  # what a SuperLink says of a message whose run is over

Say = Callable[[str], None]


def run_courier(directory: Path) -> None:
    """Carry messages until SIGTERM or Ctrl-C, then sign the node off; or become Flower's own SuperNode.

    Args:
        directory: The courier's own: courier.toml, the node key, the authority's certificate.

    Raises:
        ConfigurationError: If a file of the directory is missing or malformed.
    """
    settings = read_courier_settings(directory)
    tls, key = tls_context(directory, settings), read_node_key(directory / settings.node_key)
    if settings.courier == "supernode":
        run_supernode(directory, settings)
    map_large_blocks()
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    fleet = Fleet(settings.gateway, tls=tls, key=key, pause=stopping.wait)
    with AgentChannel(directory / settings.agent) as agent:
        courier = Courier(
            fleet, agent, gateway=settings.gateway, poll_s=settings.poll_s, stopping=stopping, say=say_on_stderr
        )
        try:
            courier.run()
        finally:
            fleet.close()
    say_on_stderr("the courier stopped; the node is signed off")


class Courier:
    """One node's way between a SuperLink and an agent.

    Whatever happens on the way to either, it goes on: it says one line for each change of state, and tries again.

    Args:
        fleet: The node's calls to the SuperLink.
        agent: The site's agent.
        gateway: Whom it calls, for people.
        poll_s: Between two looks for messages while they come; after a silence a tenth of it, up to 2 s.
        stopping: Ends it.
        say: Given the lines.
        limit_bytes: Of one message's body.
    """

    def __init__(
        self,
        fleet: Fleet,
        agent: AgentChannel,
        *,
        gateway: str,
        poll_s: float,
        stopping: threading.Event,
        say: Say,
        limit_bytes: int = MAXIMUM_BODY_BYTES,
    ) -> None:
        self._fleet = fleet
        self._agent = agent
        self._gateway = gateway
        self._poll_s = poll_s
        self._stopping = stopping
        self._say = say
        self._limit_bytes = limit_bytes
        self._said: dict[str, str] = {}
        self._random = SystemRandom()
        self._carried_at_s = -math.inf

    def run(self) -> None:
        """Carry messages until told to stop."""
        pulse = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        pulse.start()
        pause_s = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            try:
                self._fleet.activate()
                self._note("gateway", f"connected to {self._gateway} as node {self._fleet.node_id}")
                while not self._stopping.is_set():
                    if self._carry_one():
                        self._carried_at_s = time.monotonic()
                    else:
                        self._stopping.wait(self._pause_s())
                    pause_s = _FIRST_PAUSE_S
            except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError) as error:
                trouble = explain(error, gateway=self._gateway)
                if trouble.status == httpx.codes.UNAUTHORIZED:
                    self._fleet.forget()
                # a clock that is wrong is so by another second each time, and is said once
                same = trouble.hint if trouble.status == httpx.codes.UNAUTHORIZED else ""
                self._note("gateway", f"{trouble.fact}. {trouble.hint}", same=same)
                self._stopping.wait(pause_s * self._random.uniform(0.5, 1.0))
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        pulse.join()

    def _pause_s(self) -> float:
        """Until the next look: short where messages come and go, longer at rest. Many couriers ask one SuperLink."""
        silence_s = time.monotonic() - self._carried_at_s
        return max(self._poll_s, min(_IDLE_SHARE * silence_s, _LONGEST_POLL_S))

    def _carry_one(self) -> bool:
        """Answer one message, if there is one; whether there was."""
        try:
            source = self._fleet.pull()
        except MessageRefused as refused:
            self._answer(refused.head, partial(self._refuse, refused))
            return True
        if source is None:
            return False
        self._answer(source.head, partial(self._reply, source))
        give_back_freed_memory()
        return True

    def _answer(self, head: Message, make: Callable[[], RecordDict | Error]) -> None:
        try:
            self._fleet.push(head, make())
        except httpx.HTTPStatusError as error:
            if error.response.status_code != _NOT_RUNNING:
                raise
            self._note("message", "a message came for a run that is over; it was dropped")

    def _refuse(self, why: ValueError) -> Error:
        self._note("message", f"a message was refused: {why}")
        return Error(ERROR_CODE, UNSAID)

    def _reply(self, source: Incoming) -> RecordDict | Error:
        try:
            body = fetch_body(source, partial(self._parts, source), limit_bytes=self._limit_bytes)
        except ValueError as refused:
            return self._refuse(refused)
        self._fleet.confirm(source.head)
        try:
            timeout_s = min(max(source.ttl_s, 1.0), LONGEST_ANSWER_S)
            reply = pack(self._agent.handle(body, timeout_s, given_up=self._stopping.is_set))
        except (AgentAway, ValueError) as away:
            self._note("agent", f"{away}. {getattr(away, 'hint', '')}".strip())
            return Error(ERROR_CODE, UNSAID)
        self._note("agent", "the agent answers")
        return reply

    def _parts(self, source: Incoming, object_ids: Sequence[str]) -> list[bytes]:
        """Parts of a message; waited for, since a message may be seen before its parts have arrived."""
        found: dict[str, bytes] = {}
        for wait_s in _PART_WAITS_S:
            missing = [object_id for object_id in object_ids if object_id not in found]
            pulled = zip(missing, self._fleet.pull_objects(source, missing), strict=True)
            found.update((object_id, content) for object_id, content in pulled if content is not None)
            if len(found) == len(object_ids):
                return [found[object_id] for object_id in object_ids]
            if self._stopping.wait(wait_s):
                break
        raise ValueError("a part of it did not arrive")

    def _beat(self) -> None:
        """Tell the SuperLink that the node lives, also while the agent computes. Trouble is for the other thread."""
        while not self._stopping.wait(HEARTBEAT_S * self._random.uniform(0.4, 0.6)):
            try:
                if self._fleet.node_id is not None:
                    self._fleet.heartbeat()
            except (httpx.HTTPError, ValueError, OSError):
                continue

    def _note(self, topic: str, line: str, *, same: str = "") -> None:
        """Say a line unless it, or one with the same `same`, is what was said of the topic last."""
        if self._said.get(topic) != (same or line):
            self._said[topic] = same or line
            self._say(line)


def fetch_body(source: Incoming, pull: Callable[[Sequence[str]], list[bytes]], *, limit_bytes: int) -> bytes:
    """The bytes of a message, fetched in pieces; what they declare to be is checked before any is fetched.

    Every part of the message has arrived at the SuperLink when this returns, those without bytes of the body too: it
    may be told to drop them.

    Args:
        pull: The parts of the message that have these names.

    Raises:
        ValueError: If it is longer than `limit_bytes`, longer or shorter than it declares, or of another shape.
    """
    core = pull([source.core_id, *source.outline_ids])[0]
    if not source.chunk_ids:
        return body_of(read_record(core), limit_bytes=limit_bytes)
    layout = read_layout(core)
    if layout.size_bytes > limit_bytes:
        raise ValueError(f"it has {layout.size_bytes:,} bytes, the limit is {limit_bytes:,}")
    if set(layout.chunk_ids) != source.chunk_ids:
        raise ValueError("the outline of its array names other pieces")
    times = Counter(layout.chunk_ids)
    chunks: dict[str, bytes] = {}
    left, wanted = layout.size_bytes, list(times)
    while wanted and left > 0:
        some, wanted = wanted[:PARALLEL], wanted[PARALLEL:]
        chunks.update(zip(some, map(read_chunk, pull(some)), strict=True))
        left -= sum(times[chunk_id] * max(len(chunks[chunk_id]), 1) for chunk_id in some)
    if wanted or left:
        raise ValueError(f"its pieces do not make up the {layout.size_bytes:,} bytes that it declares")
    return b"".join(chunks[chunk_id] for chunk_id in layout.chunk_ids)


def tls_context(directory: Path, settings: CourierSettings) -> ssl.SSLContext:
    """Whom the courier trusts, and its own certificate where it has one; raises ConfigurationError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cafile=directory / settings.certificates)
        if settings.client_certificate:
            own_key = directory / settings.client_key if settings.client_key else None
            context.load_cert_chain(directory / settings.client_certificate, own_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"{directory / COURIER_FILE}: a certificate that it names cannot be read ({error})",
            hint="The authority's certificate comes with the consortium: fedward site trust.",
        ) from error
    return context


def read_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The node's key; raises ConfigurationError if it cannot be read or is not ECDSA on P-384."""
    try:
        key = load_ssh_private_key(path.read_bytes(), password=None)
    except Exception as error:  # the parser's errors are of many kinds
        raise ConfigurationError(f"{path}: no OpenSSH private key can be read") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ConfigurationError(f"{path}: a node key is ECDSA on the curve P-384 (ecdsa-sha2-nistp384)")
    return key


def say_on_stderr(line: str) -> None:
    """One line with its time; what others wrote cannot begin a line of its own."""
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    sys.stderr.write(f"{now} {one_line(line)}\n")
    sys.stderr.flush()
