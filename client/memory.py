"""Freed memory that the C library keeps, given back to the system."""

import ctypes
from functools import cache
from typing import Any, Final

_M_MMAP_THRESHOLD: Final = -3
_LARGE_BYTES: Final = 256 << 10


def give_back_freed_memory() -> None:
    """Return whole free pages; does nothing where the C library has no such call.

    The library keeps what was freed below about 32 MB, in pieces between what lives. For large networks that would
    stand beside a sum of the same size.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


def map_large_blocks() -> None:
    """From here on, blocks of 256 KiB and more go back to the system when they are freed.

    The C library would learn from the first of them to keep the later ones. Does nothing where it has no such call.
    """
    option = getattr(ctypes.CDLL(None), "mallopt", None)
    if option is not None:
        option(_M_MMAP_THRESHOLD, _LARGE_BYTES)


@cache
def _trim() -> Any:
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
