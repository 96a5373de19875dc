"""What stays in a process after it was freed, counted in processes of their own: the C library's settings last."""

import ctypes
import resource
import subprocess
import sys

import pytest

BLOCK = 64 << 20
PAGES = BLOCK // resource.getpagesize()

_COUNT = f"""
import ctypes, resource, sys
from client.memory import give_back_freed_memory, keep_freed_memory, map_large_blocks

library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]

def resident():
    return int(open("/proc/self/statm").read().split()[1])

def write_and_free():
    block = library.malloc({BLOCK})
    ctypes.memset(block, 1, {BLOCK})
    library.free(block)

{{first}}
write_and_free()
kept, faults = resident(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    write_and_free()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
give_back_freed_memory()
print(faults, kept - resident())
"""

pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt") or not sys.platform.startswith("linux"),
    reason="the C library of this system has no such settings",
)


def counted(first: str) -> tuple[int, int]:
    """Page faults of four blocks after a first one, and pages that giving back has freed."""
    ran = subprocess.run(  # this interpreter, and a text from above
        [sys.executable, "-c", _COUNT.format(first=first)], capture_output=True, text=True, timeout=60, check=True
    )
    faults, freed = map(int, ran.stdout.split())
    return faults, freed


def test_kept_memory_is_used_again_until_it_is_given_back() -> None:
    faults, freed = counted("keep_freed_memory()")
    assert faults < PAGES // 8
    assert freed > PAGES * 7 // 8


def test_mapped_blocks_are_the_systems_as_soon_as_they_are_freed() -> None:
    _, freed = counted("map_large_blocks()")
    assert freed < PAGES // 8
