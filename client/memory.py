"""Freed memory that the C library keeps, given back to the system."""

import ctypes
from functools import cache
from typing import Any, Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_MMAP_MAX: Final = -4
_LARGE_BYTES: Final = 256 << 10
_KEPT_BYTES: Final = 1 << 30


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
    _set(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def keep_freed_memory() -> None:
    """From here on, what is freed stays in the process, up to 1 GiB at the heap's end, however large a block is.

    A network's passes free and ask for the same blocks step after step, and the system clears every page that it gives
    again: up to a third of a step. Whoever ends the steps calls `give_back_freed_memory`. Does nothing where the C
    library has no such call.
    """
    _set(_M_MMAP_MAX, 0)  # no block is mapped from the system for itself
    _set(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def _set(option: int, value: int) -> None:
    call = getattr(ctypes.CDLL(None), "mallopt", None)
    if call is not None:
        call(option, value)


@cache
def _trim() -> Any:
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
