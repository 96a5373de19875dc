"""Which random code stands for whom: the one place where a site can find its way back.

Codes come from the operating system's randomness and from nothing about the patient (45 CFR 164.514(c)). The
mapping lies sealed on the site's disk, and it is there before any code is used: a code that a crash could
forget would make one patient two.
"""

import base64
import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import DataRefused
from common.files import write_atomic

VERSION = 1
_CODE_BYTES = 15

Seal = Callable[[bytes], bytes]
Mapping = dict[str, dict[str, str]]


class Escrow:
    """Random codes and the identifiers behind them, by namespace: the patients, or a column's name."""

    def __init__(self, path: Path, *, seal: Seal, unseal: Seal) -> None:
        """Use the mapping at `path`; nothing is read or written yet.

        Args:
            path: The sealed file; made on first use.
            seal: Authenticated encryption under the site's storage key.
            unseal: Its inverse; raises for a wrong key or a changed byte.
        """
        self._path = path
        self._seal = seal
        self._unseal = unseal

    def codes(self, namespace: str, identifiers: Iterable[str]) -> dict[str, str]:
        """The code of each identifier, new ones drawn; an issued code stands for itself.

        Case is folded: two spellings of one record number must not make two patients of one.

        Guarantee: the mapping is on disk when this returns, and two processes never give one patient two codes.

        Raises:
            DataRefused: If the escrow is not one that this version can read.
        """
        with self._locked():
            mapping = self._load()
            known = mapping.setdefault(namespace, {})
            issued = set(known.values())
            found: dict[str, str] = {}
            fresh = False
            for identifier in identifiers:
                if identifier in issued:
                    found[identifier] = identifier
                    continue
                folded = identifier.casefold()
                if folded not in known:
                    known[folded] = _new_code(issued)
                    issued.add(known[folded])
                    fresh = True
                found[identifier] = known[folded]
            if fresh:
                self._save(mapping)
        return found

    def identifier_of(self, namespace: str, code: str) -> str:
        """Who a code stands for, in folded case; raises DataRefused if this escrow never issued it."""
        with self._locked():
            known = self._load().get(namespace, {})
        for identifier, issued in known.items():
            if issued == code:
                return identifier
        raise DataRefused("the escrow holds no such code", hint="it may come from another site or another escrow")

    def __repr__(self) -> str:
        return "Escrow(sealed)"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._path.with_name(f"{self._path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _load(self) -> Mapping:
        if not self._path.exists():
            return {}
        content = json.loads(self._unseal(self._path.read_bytes()))
        if content.get("version") != VERSION:
            raise DataRefused(f"the escrow has version {content.get('version')}, this program reads {VERSION}")
        codes: Mapping = content["codes"]
        return codes

    def _save(self, mapping: Mapping) -> None:
        content = json.dumps({"version": VERSION, "codes": mapping}, separators=(",", ":"), sort_keys=True)
        write_atomic(self._path, self._seal(content.encode()))


def _new_code(issued: set[str]) -> str:
    while True:
        code = base64.b32encode(secrets.token_bytes(_CODE_BYTES)).decode()
        if code not in issued:
            return code
