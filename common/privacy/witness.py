"""Who vouches for a ledger's end: heads that a site signed and others keep."""

import base64
import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.canonical import canonical_json
from common.crypto.keys import SigningKey, VerifyKey
from common.errors import LedgerCorrupt
from common.privacy.entries import LedgerHead
from common.privacy.json_fields import exact_object, read_digest, read_signature, read_text, read_whole

HEAD_VERSION = 1
HEAD_DOMAIN = "ledger-head"
_LOOK_BACK_BYTES = 4096
_HEAD_FIELDS = frozenset({"v", "site", "seq", "head", "run", "sig"})
_LINE_FIELDS = _HEAD_FIELDS | {"held_by"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedHead:
    """A site's signed statement of where its ledger ended.

    Attributes:
        site: Whose ledger.
        seq: Number of its last entry.
        digest: Digest of its last line.
        run_id: The run in whose message it was sent.
        signature: 64 bytes by the site's identity key.
    """

    site: str
    seq: int
    digest: str
    run_id: str
    signature: bytes

    def __post_init__(self) -> None:
        if self.seq < 0:
            raise ValueError(f"a head's seq is at least 0, not {self.seq}")
        read_digest(self.digest, "a head's digest")

    @classmethod
    def sign(cls, key: SigningKey, *, site: str, head: LedgerHead, run_id: str) -> "SignedHead":
        """State the end of one's own ledger."""
        signature = key.sign(HEAD_DOMAIN, _statement(site, head.seq, head.digest, run_id))
        return cls(site=site, seq=head.seq, digest=head.digest, run_id=run_id, signature=signature)

    def verify(self, key: VerifyKey) -> None:
        """Return only if the site's key signed this; raises TrustError."""
        key.verify(HEAD_DOMAIN, _statement(self.site, self.seq, self.digest, self.run_id), self.signature)

    def to_json(self) -> dict[str, Any]:
        """The object that travels in messages."""
        return {
            "v": HEAD_VERSION,
            "site": self.site,
            "seq": self.seq,
            "head": self.digest,
            "run": self.run_id,
            "sig": base64.b64encode(self.signature).decode(),
        }

    @classmethod
    def from_json(cls, value: object) -> "SignedHead":
        """Read what `to_json` wrote, signature unchecked; raises ValueError for anything else."""
        fields = exact_object(value, _HEAD_FIELDS, "a signed head")
        if read_whole(fields["v"], "v") != HEAD_VERSION:
            raise ValueError(f"a signed head has version {HEAD_VERSION}, not {fields['v']}")
        return cls(
            site=read_text(fields["site"], "site"),
            seq=read_whole(fields["seq"], "seq"),
            digest=read_digest(fields["head"], "head"),
            run_id=read_text(fields["run"], "run"),
            signature=read_signature(fields["sig"]),
        )


class WitnessBook:
    """An append-only file of heads, each with the name of who holds it. Several holders may share a file.

    Signatures are the caller's to verify before `record`, and a reader's to verify again: the book pins no keys.
    """

    def __init__(self, path: Path, *, holder: str) -> None:
        """Open or begin a book; reading changes nothing. Raises LedgerCorrupt if a line cannot be read."""
        self._path = path
        self._holder = read_text(holder, "holder")
        self._heads: dict[str, dict[tuple[int, str], SignedHead]] = {}
        self._held: set[tuple[str, str, int, str]] = set()
        *lines, _ = (path.read_bytes() if path.exists() else b"").split(b"\n")
        for number, line in enumerate(lines, start=1):
            held_by, head = self._read_line(line, number)
            self._take(head, held_by)

    def record(self, *heads: SignedHead) -> None:
        """Keep heads, on disk before this returns; what is already held is not written again.

        Two heads of one entry with different digests prove that the site's ledger has two histories. Both are kept:
        no ledger passes an audit against both.

        Raises:
            OSError: If they cannot be written; the book then holds what it held before.
        """
        new = {(head.site, head.seq, head.digest): head for head in heads}
        added = [head for key, head in new.items() if (self._holder, *key) not in self._held]
        if not added:
            return
        lines = [canonical_json({**head.to_json(), "held_by": self._holder}) + b"\n" for head in added]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "r+b", buffering=0) as stream:
            fcntl.flock(handle, fcntl.LOCK_EX)
            size_bytes = _whole_lines(handle)
            os.ftruncate(handle, size_bytes)  # a line that a crash cut off was never promised to anyone
            left = memoryview(b"".join(lines))
            try:
                while left:
                    left = left[stream.write(left) :]
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, size_bytes)
                raise
        for head in added:
            self._take(head, self._holder)

    def contradicts(self, head: SignedHead) -> bool:
        """Whether another digest is held for the same entry of the same site."""
        return any(seq == head.seq and digest != head.digest for seq, digest in self._heads.get(head.site, {}))

    def heads(self, site: str) -> tuple[SignedHead, ...]:
        """Every held head of one site, by entry number."""
        return tuple(head for _, head in sorted(self._heads.get(site, {}).items()))

    def latest(self, site: str) -> SignedHead | None:
        """The head with the highest entry number, or None."""
        held = self.heads(site)
        return held[-1] if held else None

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites that any head is held of, sorted."""
        return tuple(sorted(self._heads))

    def _read_line(self, line: bytes, number: int) -> tuple[str, SignedHead]:
        try:
            fields = exact_object(json.loads(line), _LINE_FIELDS, "a witness line")
            head = SignedHead.from_json({name: fields[name] for name in _HEAD_FIELDS})
            return read_text(fields["held_by"], "held_by"), head
        except ValueError as error:
            raise LedgerCorrupt(f"{self._path.name}, line {number}: {error}") from error

    def _take(self, head: SignedHead, held_by: str) -> None:
        self._heads.setdefault(head.site, {}).setdefault((head.seq, head.digest), head)
        self._held.add((held_by, head.site, head.seq, head.digest))


def _whole_lines(handle: int) -> int:
    """Bytes of an open file up to and with its last newline."""
    end = os.fstat(handle).st_size
    while end:
        start = max(end - _LOOK_BACK_BYTES, 0)
        newline = os.pread(handle, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _statement(site: str, seq: int, digest: str, run_id: str) -> bytes:
    return canonical_json({"v": HEAD_VERSION, "site": site, "seq": seq, "head": digest, "run": run_id})
