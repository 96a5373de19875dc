import json
from pathlib import Path

import pytest


@pytest.fixture
def summary():
    """A summary.json of version 1 with every key that a report shows; its numbers are a sample, not a measurement."""
    return json.loads(Path(__file__).with_name("summary.json").read_text(encoding="utf-8"))
