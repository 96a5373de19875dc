"""An agent that also holds a SqueezeNet: python -m simulations.bench.deployment_agent HOME WEIGHTS.

It opens the site as the agent does, listens as the agent does, reads the network and computes features of pictures as a
registration would, and says in one JSON document what memory it holds.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Final

import numpy as np

from client.agent import SiteAgent
from client.agent_service import AgentService, serving
from client.features import extract, load_backbone
from common.canonical import DIGEST_PREFIX
from common.passphrase import read_passphrase
from simulations.bench.deployment_memory import Memory, memory_of_self

PICTURES: Final = 48
BACKBONE: Final = "squeezenet1_1"


def measure(home: Path, weights: Path) -> Memory:
    """The memory of this process once it has done all that."""
    from hashlib import sha256

    random = np.random.default_rng(0)
    pictures = (random.integers(0, 256, size=(224, 224, 3), dtype=np.uint8) for _ in range(PICTURES))
    with SiteAgent.open(home, passphrase=read_passphrase(os.environ), device="cpu") as agent:
        service = AgentService(agent.handle, site=agent.home.name, version="0", on_failure=lambda _name: None)
        with serving(service, home / "run" / "a.sock", group=""):
            expected = f"{DIGEST_PREFIX}{sha256(weights.read_bytes()).hexdigest()}"
            backbone = load_backbone(BACKBONE, weights, expected=expected)
            features = extract(backbone, pictures, device="cpu")
            if features.shape != (PICTURES, backbone.width):
                raise ValueError(f"features have the shape {features.shape}")
            return memory_of_self()


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description="Say what memory an agent with a SqueezeNet holds.")
    parser.add_argument("home", type=Path)
    parser.add_argument("weights", type=Path)
    arguments = parser.parse_args()
    found = measure(arguments.home, arguments.weights)
    sys.stdout.write(json.dumps({"held_bytes": found.resident_bytes, "peak_bytes": found.peak_bytes}) + "\n")


if __name__ == "__main__":
    main()
