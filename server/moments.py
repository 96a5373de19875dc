"""Times in the coordinator's documents: RFC 3339 in UTC with seconds, which sort as texts."""

from datetime import UTC, datetime
from typing import Annotated, Final

from pydantic import AfterValidator

_FORM: Final = "%Y-%m-%dT%H:%M:%SZ"


def utc_now() -> datetime:
    """The machine's clock."""
    return datetime.now(UTC)


def time_text(moment: datetime) -> str:
    """`2026-11-23T16:20:41Z`; raises ValueError for a time without a zone."""
    if moment.tzinfo is None:
        raise ValueError("a document's time has a zone")
    return moment.astimezone(UTC).strftime(_FORM)


def read_time(text: str) -> str:
    """The text itself, if it is the one spelling of a time; raises ValueError if not."""
    if datetime.strptime(text, _FORM).strftime(_FORM) != text:
        raise ValueError(f"a time is written like 2026-11-23T16:20:41Z, not {text[:40]!r}")
    return text


TimeText = Annotated[str, AfterValidator(read_time)]
