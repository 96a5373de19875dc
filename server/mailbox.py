"""Signed questions to sites by name, verified answers, and the ledger heads that come with them."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

from google.protobuf.message import Message

from common import wire_pb2 as pb
from common.crypto.masking import RunKeys, RunPublicKeys, encapsulate
from common.errors import FederationError, TrustError
from common.journal import Journal
from common.privacy.witness import SignedHead, WitnessBook
from common.wire import (
    ANY_SITE,
    COORDINATOR,
    Body,
    head_from_message,
    head_message,
    read_body,
    read_envelope,
    verify_envelope,
    write_envelope,
)
from server.rundir import PreparedRun

UNNAMED: Final = "Unnamed"
_ERROR_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9]{0,39}")


class Exchange(Protocol):
    """Asks nodes and collects their answers; `server.exchange.GridExchange` does it through Flower."""

    def node_ids(self) -> list[int]:
        """The nodes that are connected."""
        ...

    def exchange(
        self,
        requests: Mapping[int, bytes],
        *,
        timeout_s: float,
        on_reply: Callable[[int, bytes | None], None] | None = None,
    ) -> dict[int, bytes | None]:
        """One reply or None for each node."""
        ...


class Mailbox:
    """The coordinator's post office for one run.

    Attributes:
        joined: Each site's signed agreement, as it came.
        refused: The name of the last refusal of each site that refused.
        exchanges: How many times the sites were asked.
    """

    def __init__(self, run: PreparedRun, exchange: Exchange, *, journal: Journal | None) -> None:
        self._run = run
        self._exchange = exchange
        self._journal = journal
        self._nodes: dict[str, int] = {}
        self._heads: dict[str, SignedHead] = {}
        self._witnesses = WitnessBook(run.root / "witnesses.jsonl", holder=COORDINATOR)
        self.joined: dict[str, bytes] = {}
        self.refused: dict[str, str] = {}
        self.exchanges = 0

    @property
    def reachable(self) -> list[str]:
        """The sites that joined, sorted."""
        return sorted(self._nodes)

    def invite(self, offer: pb.Offer, *, timeout_s: float) -> None:
        """Ask every connected node to join; who it is, its signature proves and not the node."""
        request = self._envelope(offer, ANY_SITE)
        replies = self._exchange.exchange(dict.fromkeys(self._exchange.node_ids(), request), timeout_s=timeout_s)
        self.exchanges += 1
        for node, data in replies.items():
            if data is not None:
                self._welcome(node, data)

    def ask(
        self,
        sites: Iterable[str],
        request: Callable[[str], Message],
        kind: type[Body],
        *,
        timeout_s: float,
        accept: Callable[[str, Body], None],
    ) -> None:
        """Ask sites by name; every verified answer of the right kind is handed to `accept` and dropped.

        A refusal, an answer that does not verify, and one that `accept` does not take are noted in `refused`.
        """
        site_of = {self._nodes[site]: site for site in sites}
        requests = {node: self._envelope(request(site), site) for node, site in site_of.items()}

        def on_reply(node: int, data: bytes | None) -> None:
            if data is None:
                return
            site = site_of[node]
            try:
                envelope = self._verified(data, site)
                if envelope.kind != "refused":
                    body = read_body(envelope, kind)
                    self._keep_head(site, body.head)  # type: ignore[attr-defined]  # every reply has a head
                    accept(site, body)
            except FederationError as error:  # one site's bad answer, a forked ledger too, never ends the run
                self._note(site, type(error).__name__)

        self._exchange.exchange(requests, timeout_s=timeout_s, on_reply=on_reply)
        self.exchanges += 1

    def heads(self) -> list[pb.Head]:
        """The last head of every site that was heard, for the others to keep."""
        return [head_message(self._heads[site]) for site in sorted(self._heads)]

    def _welcome(self, node: int, data: bytes) -> None:
        try:
            envelope = self._verified(data, read_envelope(data).sender)
            if envelope.kind == "refused":
                return
            body = read_body(envelope, pb.Joined)
            if body.manifest_digest != self._run.manifest.digest:
                raise TrustError(f"{envelope.sender} did not agree to the manifest")
            _check_usable(RunPublicKeys(x25519=body.x25519, mlkem=body.mlkem))
            self._keep_head(envelope.sender, body.head)
        except TrustError as error:
            self._log("refused", error=type(error).__name__)
            return
        except FederationError as error:  # the signature held: the site itself is at fault, with a forked ledger
            self._note(envelope.sender, type(error).__name__)
            return
        self._nodes[envelope.sender] = node
        self.joined[envelope.sender] = data

    def _verified(self, data: bytes, site: str) -> pb.Envelope:
        """A reply that this site of the roster signed for this run; a refusal in it is noted."""
        if site not in self._run.manifest.names:
            raise TrustError(f"{site[:63]!r} is not in the roster")
        envelope = read_envelope(data)
        verify_envelope(
            envelope,
            key=self._run.trust.site_key(site),
            run_id=self._run.manifest.run_id,
            sender=site,
            recipient=COORDINATOR,
        )
        if envelope.kind == "refused":
            refusal = read_body(envelope, pb.Refused)
            self._keep_head(site, refusal.head)
            self._note(site, refusal.name if _ERROR_NAME.fullmatch(refusal.name) else UNNAMED)
        return envelope

    def _keep_head(self, site: str, message: pb.Head) -> None:
        head = head_from_message(message)
        if head.site != site:
            raise TrustError(f"{site} sent the head of another site's ledger")
        head.verify(self._run.trust.site_key(site))
        self._witnesses.record(head)
        if self._witnesses.contradicts(head):
            raise TrustError(f"{site} signed two different heads for entry {head.seq}: its ledger has two histories")
        self._heads[site] = head

    def _envelope(self, body: Message, recipient: str) -> bytes:
        return write_envelope(
            body, key=self._run.key, run_id=self._run.manifest.run_id, sender=COORDINATOR, recipient=recipient
        )

    def _note(self, site: str, name: str) -> None:
        self.refused[site] = name
        self._log("refused", site=site, error=name)

    def _log(self, event: str, **fields: str) -> None:
        if self._journal is not None:
            self._journal.write(event, run=self._run.manifest.run_id, **fields)


def _check_usable(keys: RunPublicKeys) -> None:
    """Refuse here what every other site would refuse, or one site's bad keys would drive the others out."""
    RunKeys.generate().exchange(keys)
    encapsulate(keys)
