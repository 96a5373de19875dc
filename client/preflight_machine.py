"""Whether the machine will do: Python, Flower's version, disk, memory, and the device of the gradients."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Final

from client.plans import OfferedPlan, read_offers
from client.preflight_finding import Finding, Premises, Verdict, size, worst

OLDEST_PYTHON: Final = (3, 11)
DISK_WANTED_BYTES: Final = 1 << 30
MEMORY_WANTED_BYTES: Final = 2 << 30
MEMORY_NEEDED_BYTES: Final = 1 << 30
LEDGER_BYTES_A_CHARGE: Final = 2048  # reserve and settle, about 700 bytes each
BYTES_A_PARAMETER: Final = 4 + 8  # of the answer, and of the update that local training keeps
DEVICE_TIMEOUT_S: Final = 120.0

_REQUIREMENT = re.compile(r"^flwr\s*(?P<range>[<>=!~0-9.,\s]+)(;|$)")
_ASK_TORCH = """
import torch
found = torch.cuda.is_available()
print(torch.__version__, torch.cuda.get_device_name() if found else "", sep="\\n")
"""


def check_python(premises: Premises) -> Iterator[Finding]:
    """The interpreter."""
    shown = ".".join(map(str, sys.version_info[:3]))
    old = sys.version_info[:2] < OLDEST_PYTHON
    yield Finding(
        check="python",
        looked_at=sys.executable,
        verdict=worst((old, Verdict.WRONG)),
        found=f"Python {shown}; {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} or newer is needed",
        mend="install a newer Python and Fedward into it" if old else "",
    )


def check_flower(premises: Premises) -> Iterator[Finding]:
    """Flower's version, which the courier's private names are pinned to."""
    try:
        installed, wanted = version("flwr"), _wanted_flower()
    except PackageNotFoundError as error:
        yield Finding(
            check="flower",
            looked_at="installed packages",
            verdict=Verdict.WRONG,
            found=f"{error.name} is not installed",
            mend="install Fedward with its dependencies: pip install fedward",
        )
        return
    fits = _fits(installed, wanted)
    yield Finding(
        check="flower",
        looked_at="installed packages",
        verdict=worst((not fits, Verdict.WRONG)),
        found=f"flwr {installed}; {wanted} is needed",
        mend="" if fits else f"pip install 'flwr{wanted}'",
    )


def check_disk(premises: Premises) -> Iterator[Finding]:
    """Room for the ledger and for the answers that wait to be sent."""
    found = os.statvfs(premises.home)
    free = found.f_bavail * found.f_frsize
    need = sum(map(_disk_bytes, read_offers(premises.home, premises.key).offers))
    read_only = bool(found.f_flag & os.ST_RDONLY)
    no_room = free < need + DISK_WANTED_BYTES // 16
    tight = free < need + DISK_WANTED_BYTES
    no_names = found.f_files > 0 and found.f_favail < 1000
    facts = [f"{size(free)} free; {size(DISK_WANTED_BYTES)} is wanted"]
    facts += [f"{size(need)} more for the plans that lie here"] if need else []
    facts += ["the file system is read-only"] if read_only else []
    facts += [f"only {found.f_favail} more files fit"] if no_names else []
    verdict = worst((no_room or read_only or no_names, Verdict.WRONG), (tight, Verdict.WARNING))
    yield Finding(
        check="disk",
        looked_at=f"the file system of {premises.home}",
        verdict=verdict,
        found="; ".join(facts),
        mend="" if verdict is Verdict.FINE else "free some space: a site that cannot write its ledger answers nothing",
    )


def check_memory(premises: Premises) -> Iterator[Finding]:
    """Memory that agent and courier could have now."""
    free = _available_memory_bytes()
    if free is None:
        yield Finding(
            check="memory",
            looked_at="/proc/meminfo",
            verdict=Verdict.SKIPPED,
            found="this system does not say how much memory is available",
        )
        return
    verdict = worst((free < MEMORY_NEEDED_BYTES, Verdict.WRONG), (free < MEMORY_WANTED_BYTES, Verdict.WARNING))
    yield Finding(
        check="memory",
        looked_at="/proc/meminfo and the control group's limit",
        verdict=verdict,
        found=f"{size(free)} available; {size(MEMORY_NEEDED_BYTES)} is needed, {size(MEMORY_WANTED_BYTES)} wanted",
        mend="" if verdict is Verdict.FINE else "end other programs, or give this machine or container more memory",
    )


def check_device(premises: Premises) -> Iterator[Finding]:
    """Whether torch sees the device that node.toml names; asked in a process of its own."""
    device, looked_at = premises.node.device, f"device = {premises.node.device!r} in node.toml, and torch"
    if device == "cpu":
        yield Finding(check="device", looked_at=looked_at, verdict=Verdict.FINE, found="gradients on the CPU")
        return
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH], capture_output=True, timeout=DEVICE_TIMEOUT_S, check=True, text=True
        )
        torch, name = asked.stdout.splitlines()[:2]
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        yield Finding(
            check="device",
            looked_at=looked_at,
            verdict=Verdict.WRONG,
            found=f"torch could not be asked ({type(error).__name__})",
            mend=f"see what this says: {sys.executable} -c 'import torch'",
        )
        return
    missing = device == "cuda" and not name
    yield Finding(
        check="device",
        looked_at=looked_at,
        verdict=worst((missing, Verdict.WRONG)),
        found=f"torch {torch} sees {name or 'no GPU'}" + ("" if name or missing else "; gradients on the CPU"),
        mend='install the GPU\'s driver and a torch built for it, or write device = "auto"' if missing else "",
    )


def _disk_bytes(offer: OfferedPlan) -> int:
    """The ledger's growth, and twice the largest answer: a file is replaced only once its successor is whole."""
    charges = offer.plan.attempts + offer.plan.evaluation_attempts
    return LEDGER_BYTES_A_CHARGE * charges + 2 * BYTES_A_PARAMETER * offer.manifest.dimension


def _wanted_flower() -> str:
    for line in requires("fedward") or ():
        if match := _REQUIREMENT.match(line):
            return ",".join(sorted(match["range"].replace(" ", "").split(","), reverse=True))
    raise PackageNotFoundError("fedward")


def _fits(installed: str, wanted: str) -> bool:
    """Whether a version lies in a range of `>=` and `<`, the only ones that the project uses."""
    number = _numbers(installed)
    for part in wanted.split(","):
        bound = _numbers(part.lstrip("<>="))
        if (part.startswith(">=") and number < bound) or (part.startswith("<") and number >= bound):
            return False
    return True


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def _available_memory_bytes() -> int | None:
    """What the kernel calls available, or what the control group still allows if that is less."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    free = int(fields["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return free
    return free if limit == "max" else min(free, int(limit) - int(used))
