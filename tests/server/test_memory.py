"""How much the coordinator holds at a time."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
VECTOR_BYTES = 4 * 1_008_002


def largest_size(sites: int, root: Path) -> int:
    command = [sys.executable, "-m", "tests.server.many_sites", str(sites), str(root)]
    return int(subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, timeout=240).stdout)


def test_the_coordinators_memory_does_not_grow_with_its_sites(tmp_path: Path) -> None:
    """Sixteen sites more; were requests or replies kept, this would be sixteen vectors or more."""
    few, many = largest_size(4, tmp_path / "few"), largest_size(20, tmp_path / "many")
    assert many - few < 4 * VECTOR_BYTES
