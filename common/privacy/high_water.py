"""The last ledger entry that this machine wrote, in a file of its own that is overwritten in place."""

import json

from common.canonical import canonical_json
from common.errors import LedgerCorrupt
from common.privacy.entries import LedgerHead
from common.privacy.json_fields import exact_object, read_digest, read_whole

_MARK_VERSION = 1
_MARK_BYTES = 160


def encode_mark(head: LedgerHead) -> bytes:
    """Canonical JSON padded to a fixed length, so that overwriting never leaves a rest of the old mark."""
    text = canonical_json({"v": _MARK_VERSION, "seq": head.seq, "digest": head.digest})
    return text.ljust(_MARK_BYTES - 1) + b"\n"


def decode_mark(content: bytes) -> LedgerHead:
    """Read a mark; raises LedgerCorrupt if it is none."""
    try:
        fields = exact_object(json.loads(content), frozenset({"v", "seq", "digest"}), "a high-water mark")
        if read_whole(fields["v"], "v") != _MARK_VERSION:
            raise ValueError(f"version {fields['v']} is unknown; {_MARK_VERSION} is read here")
        seq = read_whole(fields["seq"], "seq")
        if seq < 0:
            raise ValueError(f"seq is at least 0, not {seq}")
        return LedgerHead(seq=seq, digest=read_digest(fields["digest"], "digest"))
    except ValueError as error:
        raise LedgerCorrupt(f"the high-water mark cannot be read: {error}") from error
