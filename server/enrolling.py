"""Which enrolment belongs to a fingerprint that a site read out: exactly one, or an error."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from common.enrolment import Enrolment, read_enrolment, same_fingerprint
from common.errors import ConfigurationError, FederationError, TrustError

_DIGITS: Final = 32
_GROUP: Final = 4
_MOST_FILES: Final = 10_000


def read_fingerprints(words: Sequence[str]) -> list[str]:
    """Fingerprints as typed: one a word, or in groups of four that a shell took apart.

    Raises:
        ConfigurationError: If one has not 32 hex digits. A part of a fingerprint proves little.
    """
    if all(len(word) == _GROUP for word in words) and len(words) * _GROUP % _DIGITS == 0:
        count = _DIGITS // _GROUP
        words = ["".join(words[start : start + count]) for start in range(0, len(words), count)]
    return [_fingerprint(word) for word in words]


def match_enrolments(fingerprints: Sequence[str], source: Path) -> list[Enrolment]:
    """The enrolments with these fingerprints among the file `source` or the `*.json` of that directory.

    Files that hold no sound enrolment are passed over, and counted in the error if a fingerprint finds nothing.

    Raises:
        TrustError: If a fingerprint fits none, or two that differ, or one is given twice.
        ConfigurationError: If there is nothing to read.
    """
    found, unread = _read_all(source)
    matched: list[Enrolment] = []
    for fingerprint in fingerprints:
        fits = [enrolment for enrolment in found if same_fingerprint(enrolment.fingerprint, fingerprint)]
        different = list({enrolment.model_dump_json(): enrolment for enrolment in fits}.values())
        if not different:
            raise TrustError(_unmatched(fingerprint, found, unread, source), hint=_HINT)
        if len(different) > 1:
            raise TrustError(
                f"{source}: {len(different)} different enrolments of {different[0].name} fit {fingerprint}"
            )
        if different[0] in matched:
            raise ConfigurationError(f"the fingerprint of {different[0].name} is given twice")
        matched.append(different[0])
    return matched


_HINT: Final = (
    "have the site read it again, as fedward site init printed it; a file that was changed on its way has another"
)


def _unmatched(fingerprint: str, found: Sequence[Enrolment], unread: Sequence[str], source: Path) -> str:
    names = ", ".join(sorted({enrolment.name for enrolment in found})) or "none"
    fact = f"{source}: no enrolment has the fingerprint {fingerprint} (those that were read: {names})"
    return f"{fact}; {len(unread)} files were not sound: {', '.join(unread[:5])}" if unread else fact


def _read_all(source: Path) -> tuple[list[Enrolment], list[str]]:
    if not source.exists():
        raise ConfigurationError(f"{source}: there is no such file or directory")
    if not source.is_dir():
        return [read_enrolment(source)], []
    paths = sorted(source.glob("*.json"))
    if not paths or len(paths) > _MOST_FILES:
        raise ConfigurationError(
            f"{source}: holds {len(paths)} files *.json, 1 to {_MOST_FILES} are read",
            hint="put every site's enrolment.json there, under a name of its own",
        )
    found, unread = [], []
    for path in paths:
        try:
            found.append(read_enrolment(path))
        except FederationError:
            unread.append(path.name)
    return found, unread


def _fingerprint(word: str) -> str:
    bare = "".join(word.split()).replace("-", "").lower()
    if len(bare) != _DIGITS or not set(bare) <= set("0123456789abcdef"):
        raise ConfigurationError(
            f"{word[:60]!r} is no fingerprint: it has {_DIGITS} hex digits, in eight groups of four",
            hint='write it in quotes: "1a2b 3c4d …"; all of it counts',
        )
    return " ".join(bare[start : start + _GROUP] for start in range(0, _DIGITS, _GROUP))
