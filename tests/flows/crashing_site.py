"""Site processes that die at a chosen step: `python -m tests.flows.crashing_site STEP=ROOT ... < request`.

Nothing is cleaned up: each process ends inside the call, as it would when the machine loses power. Their exit codes
stand on stdout.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from client.agent import SiteAgent
from client.home import open_home
from common.privacy.ledger import BudgetLedger
from common.privacy.noise import discrete_gaussian
from common.privacy.witness import WitnessBook
from tests.flows.federation import PASSPHRASE

STEPS = ("before reserve", "after reserve", "before settle", "after settle")
DIED = 77


class DyingLedger(BudgetLedger):
    """A ledger whose process ends right before or right after one of its entries is on disk."""

    step = ""

    def reserve(self, population: str, **entry: Any) -> None:
        self._die_at("before reserve")
        super().reserve(population, **entry)
        self._die_at("after reserve")

    def settle(self, population: str, **entry: Any) -> None:
        self._die_at("before settle")
        super().settle(population, **entry)
        self._die_at("after settle")

    def _die_at(self, step: str) -> None:
        if self.step == step:
            os._exit(DIED)


def main(step: str, root: Path, request: bytes) -> None:
    """Answer the request, or die on the way."""
    DyingLedger.step = step
    home = open_home(root, passphrase=PASSPHRASE)
    with DyingLedger.open(home.ledger_path, site=home.name, key=home.identity) as ledger:
        agent = SiteAgent(home, ledger, WitnessBook(home.witness_path, holder=home.name), journal=None, device="cpu")
        agent.handle(request)


if __name__ == "__main__":
    received = sys.stdin.buffer.read()
    discrete_gaussian(1, 8.0)  # its library is loaded once, before the processes part
    ends = []
    for argument in sys.argv[1:]:
        chosen_step, _, site_root = argument.partition("=")
        child = os.fork()
        if child == 0:
            main(chosen_step, Path(site_root), received)
            os._exit(0)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    sys.stdout.write(json.dumps(ends))
