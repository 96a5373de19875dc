"""Whether anything that left still tells whose record it was: a search for every identifier of every record.

Each identifier is searched as it is, as JSON and HTML escape it, all three case-folded, and inside base64 at
any alignment (both alphabets). Compressed and encrypted content is not opened. An all-digit identifier counts
only where no further digit adjoins it, or the tail of some float would be a telephone number.

How: the first eight bytes of every pattern are hashed into a bit table, every eight-byte window of the data is
looked up in it at once, and the few windows that pass are compared with the patterns themselves.
"""

import base64
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

WINDOW_BYTES = 8
_TABLE_BITS = 22
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

Words = NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Hit:
    """An identifier that was found. It says whose and which, never the value.

    Attributes:
        record: Position of the record among those given to the scan.
        kind: Which of the record's identifiers.
        encoding: "plain", "json", "html" or "base64".
        file: Where, relative to the scanned directory; "" for bytes, and for a file whose name is the hit.
    """

    record: int
    kind: str
    encoding: str
    file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualReport:
    """What one directory's scan covered and found.

    Attributes:
        files: Files read.
        bytes: Their bytes together.
        identifiers: Distinct identifiers searched for.
        hits: What was found, once a file, record, kind and encoding.
    """

    files: int
    bytes: int
    identifiers: int
    hits: tuple[Hit, ...]


class ResidualScan:
    """A search for many identifiers at once."""

    def __init__(self, identifiers: Sequence[Sequence[str]], *, kinds: Sequence[str] = ()) -> None:
        """Prepare the search.

        Args:
            identifiers: One sequence a record; an empty string is no identifier.
            kinds: What each position of a record's sequence is; positions without a kind are numbered.

        Raises:
            ValueError: If there is nothing to search for, or an identifier has fewer than 8 bytes and would be
                found by chance.
        """
        self._folded = _PatternSet()
        self._encoded = _PatternSet()
        distinct: set[str] = set()
        for record, strings in enumerate(identifiers):
            for position, text in enumerate(strings):
                if text:
                    distinct.add(text)
                    self._add(text, record, kinds[position] if position < len(kinds) else f"identifier {position}")
        if not distinct:
            raise ValueError("a scan for no identifiers finds nothing and shows nothing")
        self.identifiers = len(distinct)
        self._folded.freeze()
        self._encoded.freeze()

    def scan_bytes(self, data: bytes) -> list[Hit]:
        """Every identifier in `data`, once a record, kind and encoding, in order."""
        folded = data.decode("utf-8", errors="replace").casefold().encode()
        standard = data.translate(bytes.maketrans(b"-_", b"+/"))
        return sorted(self._folded.found_in(folded) | self._encoded.found_in(standard))

    def scan_tree(self, directory: Path) -> ResidualReport:
        """Scan every regular file below `directory`, contents and relative names; links are not followed."""
        hits: set[Hit] = set()
        files = size_bytes = 0
        for path in sorted(directory.rglob("*")):
            if path.is_symlink() or not path.is_file():
                continue
            content, name = path.read_bytes(), str(path.relative_to(directory))
            files += 1
            size_bytes += len(content)
            in_name = self.scan_bytes(name.encode())
            shown = "" if in_name else name
            hits.update(
                Hit(record=hit.record, kind=hit.kind, encoding=hit.encoding, file=shown)
                for hit in [*in_name, *self.scan_bytes(content)]
            )
        return ResidualReport(files=files, bytes=size_bytes, identifiers=self.identifiers, hits=tuple(sorted(hits)))

    def _add(self, text: str, record: int, kind: str) -> None:
        plain = _folded(text)
        if len(plain) < WINDOW_BYTES:
            raise ValueError(f"{kind} of record {record} has {len(plain)} bytes; below {WINDOW_BYTES} chance finds it")
        forms = {_folded(html.escape(text)): "html", plain: "plain"}
        for escaped in (json.dumps(text), json.dumps(text, ensure_ascii=False)):
            forms.setdefault(_folded(escaped[1:-1]), "json")
        for pattern, encoding in forms.items():
            self._folded.add(pattern, Hit(record=record, kind=kind, encoding=encoding))
        for pattern in _base64_forms(text.encode()):
            self._encoded.add(pattern, Hit(record=record, kind=kind, encoding="base64"))


class _PatternSet:
    """Byte strings of at least eight bytes and the hits that each one means."""

    def __init__(self) -> None:
        self._meaning: dict[bytes, list[Hit]] = {}
        self._lengths: dict[bytes, tuple[int, ...]] = {}
        self._table = np.zeros(1 << _TABLE_BITS, dtype=np.bool_)

    def add(self, pattern: bytes, hit: Hit) -> None:
        self._meaning.setdefault(pattern, []).append(hit)

    def freeze(self) -> None:
        lengths: dict[bytes, set[int]] = {}
        for pattern in self._meaning:
            lengths.setdefault(pattern[:WINDOW_BYTES], set()).add(len(pattern))
        self._lengths = {start: tuple(sorted(found)) for start, found in lengths.items()}
        self._table[_hashes(np.frombuffer(b"".join(self._lengths), dtype=np.uint64))] = True

    def found_in(self, data: bytes) -> set[Hit]:
        hits: set[Hit] = set()
        for offset in range(min(WINDOW_BYTES, max(0, len(data) - WINDOW_BYTES + 1))):
            count = (len(data) - offset) // WINDOW_BYTES
            windows = np.frombuffer(data, dtype=np.uint64, count=count, offset=offset)
            for index in np.flatnonzero(self._table[_hashes(windows)]).tolist():
                hits.update(self._matches_at(data, offset + index * WINDOW_BYTES))
        return hits

    def _matches_at(self, data: bytes, start: int) -> list[Hit]:
        hits: list[Hit] = []
        for length in self._lengths.get(data[start : start + WINDOW_BYTES], ()):
            pattern = data[start : start + length]
            if pattern in self._meaning and not (pattern.isdigit() and _inside_number(data, start, length)):
                hits += self._meaning[pattern]
        return hits


def _hashes(windows: Words) -> Words:
    """Multiplicative hashing: the top bits of each eight-byte word times an odd constant."""
    return (windows * _MULTIPLIER) >> np.uint64(64 - _TABLE_BITS)


def _inside_number(data: bytes, start: int, length: int) -> bool:
    return data[max(0, start - 1) : start].isdigit() or data[start + length : start + length + 1].isdigit()


def _folded(text: str) -> bytes:
    return text.casefold().encode()


def _base64_forms(raw: bytes) -> list[bytes]:
    """The characters that `raw` fixes in base64 of something that holds it, for each of the three alignments."""
    forms = []
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + raw)
        first = -(-before * 8 // 6)
        last = (before + len(raw)) * 8 // 6
        forms.append(encoded[first:last])
    return forms
