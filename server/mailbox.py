"""Signed questions to sites by name, verified answers, and the ledger heads that come with them."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from server.addresses import Addresses
from server.rundir import PreparedRun

UNNAMED: Final = "Unnamed"
ASKED_AGAIN: Final = frozenset({"PlanNotApproved"})
"""Refusals after which a site is invited again: somebody there may be deciding just now."""
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
        """One reply or None for each node; a request may be looked up more than once and is the same each time."""
        ...


class Mailbox:
    """The coordinator's post office for one run.

    Attributes:
        addresses: Which node speaks for which site.
        joined: Each site's signed agreement, as it first came.
        refused: The name of the last refusal of each site that refused.
        exchanges: How many times the sites were asked.
    """

    def __init__(self, run: PreparedRun, exchange: Exchange, *, journal: Journal | None) -> None:
        self._run = run
        self._exchange = exchange
        self._journal = journal
        self._heads: dict[str, SignedHead] = {}
        self._told: dict[str, str] = {}
        self._witnesses = WitnessBook(run.root / "witnesses.jsonl", holder=COORDINATOR)
        self.addresses = Addresses()
        self.joined: dict[str, bytes] = {}
        self.refused: dict[str, str] = {}
        self.exchanges = 0

    @property
    def reachable(self) -> list[str]:
        """The sites that a node speaks for, sorted."""
        return self.addresses.sites

    def connected(self) -> list[int]:
        """The nodes that are connected."""
        return self._exchange.node_ids()

    def invite(self, offer: pb.Offer, *, timeout_s: float, closing: bool = False) -> list[str]:
        """Ask every connected node that speaks for nobody yet to join; who it is, its signature proves.

        A site that joined before is welcome again with the same run keys, its earlier agreement stays the one that is
        relayed.

        Args:
            offer: Plan and manifest, once more to whoever has them.
            timeout_s: Longest wait for all answers.
            closing: The run is over, so that sites may have forgotten their run keys.

        Returns:
            The sites that were welcomed, sorted.
        """
        connected = self.connected()
        nodes = self.addresses.invitable(connected)
        if not nodes:
            return []
        request, welcomed = self._envelope(offer, ANY_SITE), list[str]()

        def on_reply(node: int, data: bytes | None) -> None:
            site = None if data is None else self._welcome(node, data, connected=connected, closing=closing)
            if site is not None:
                welcomed.append(site)

        self._exchange.exchange(dict.fromkeys(nodes, request), timeout_s=timeout_s, on_reply=on_reply)
        self.exchanges += 1
        return sorted(welcomed)

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

        A refusal, an answer that does not verify, and one that `accept` does not take are noted in `refused`. A site
        that no node speaks for is not asked.

        Args:
            request: Called when a site's request is sent, and again if it is sent again; the same every time.
        """
        here = set(self.reachable)
        site_of = {self.addresses.node_of(site): site for site in sites if site in here}

        def envelope(node: int) -> bytes:
            return self._envelope(request(site_of[node]), site_of[node])

        def on_reply(node: int, data: bytes | None) -> None:
            if data is None:
                return
            site = site_of[node]
            try:
                reply = self._verified(data, site)
                if reply.kind != "refused":
                    body = read_body(reply, kind)
                    self._keep_head(site, body.head)  # type: ignore[attr-defined]  # every reply has a head
                    accept(site, body)
                    self._told.pop(site, None)
            except FederationError as error:  # one site's bad answer, a forked ledger too, never ends the run
                self._note(site, type(error).__name__)

        requests = _WrittenWhenSent(list(site_of), envelope)
        self._exchange.exchange(requests, timeout_s=timeout_s, on_reply=on_reply)
        self.exchanges += 1

    def heads(self) -> list[pb.Head]:
        """The last head of every site that was heard, for the others to keep."""
        return [head_message(self._heads[site]) for site in sorted(self._heads)]

    def restore(self, *, joined: Mapping[str, bytes], heads: Iterable[SignedHead], exchanges: int) -> None:
        """Go on from a checkpoint."""
        self.joined, self.exchanges = dict(joined), exchanges
        self._heads = {head.site: head for head in heads}

    def _welcome(self, node: int, data: bytes, *, connected: list[int], closing: bool) -> str | None:
        """The site that joined through this node, or None."""
        try:
            envelope = self._verified(data, read_envelope(data).sender)
            if envelope.kind == "refused":
                if self.refused[envelope.sender] not in ASKED_AGAIN:
                    self.addresses.pass_over(node)
                return None
            body = read_body(envelope, pb.Joined)
            if body.manifest_digest != self._run.manifest.digest:
                raise TrustError(f"{envelope.sender} did not agree to the manifest")
            _check_usable(RunPublicKeys(x25519=body.x25519, mlkem=body.mlkem))
            if not closing:
                self._check_same_keys(envelope.sender, body)
            self._keep_head(envelope.sender, body.head)
            if not self.addresses.take(envelope.sender, node, connected=connected):
                self._log("refused", site=envelope.sender, reason="a second node of this site")
                return None
        except TrustError as error:
            self.addresses.pass_over(node)
            self._log("refused", error=type(error).__name__)
            return None
        except FederationError as error:  # the signature held: the site itself is at fault, with a forked ledger
            self.addresses.pass_over(node)
            self._note(envelope.sender, type(error).__name__)
            return None
        self.joined.setdefault(envelope.sender, data)
        self.refused.pop(envelope.sender, None)
        self._told.pop(envelope.sender, None)
        return envelope.sender

    def _check_same_keys(self, site: str, body: pb.Joined) -> None:
        """Return only if a site that joined before has the run keys that the others know, if they know any."""
        if site in self.joined:
            known = read_body(read_envelope(self.joined[site]), pb.Joined)
            if (known.x25519, known.mlkem) != (body.x25519, body.mlkem):
                raise TrustError(f"{site} joined again with other run keys: its state was lost, or it is there twice")

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
        """Remember a refusal; a site that says the same no to every invitation gets one line of the log."""
        self.refused[site] = name
        if self._told.get(site) != name:
            self._told[site] = name
            self._log("refused", site=site, error=name)

    def _log(self, event: str, **fields: str) -> None:
        if self._journal is not None:
            self._journal.write(event, run=self._run.manifest.run_id, **fields)


class _WrittenWhenSent(Mapping[int, bytes]):
    """Requests that exist one at a time: each is written when it is looked up, and not kept."""

    def __init__(self, nodes: list[int], write: Callable[[int], bytes]) -> None:
        self._nodes = nodes
        self._write = write

    def __getitem__(self, node: int) -> bytes:
        return self._write(node)

    def __iter__(self) -> Iterator[int]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)


def _check_usable(keys: RunPublicKeys) -> None:
    """Refuse here what every other site would refuse, or one site's bad keys would drive the others out."""
    RunKeys.generate().exchange(keys)
    encapsulate(keys)
