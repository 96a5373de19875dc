"""Events, budgets and ledgers as the tests of this folder use them."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from common.crypto.keys import SigningKey
from common.privacy.admission import AdmissionFilter
from common.privacy.budget import PrivacyBudget
from common.privacy.events import MechanismEvent, TrustMode
from common.privacy.ledger import BudgetLedger

EventMaker = Callable[..., MechanismEvent]
LedgerOpener = Callable[..., BudgetLedger]


@pytest.fixture(scope="session")
def make_event() -> EventMaker:
    def make(
        noise_multiplier: float = 20.0,
        sampling_rate: float = 1.0,
        steps: int = 1,
        mode: TrustMode = TrustMode.POOLED,
        cohort_size: int = 4,
        colluding: int = 1,
    ) -> MechanismEvent:
        return MechanismEvent(
            mode=mode,
            noise_multiplier=noise_multiplier,
            sensitivity=1100.5,
            cohort_size=cohort_size,
            colluding=colluding,
            sampling_rate=sampling_rate,
            steps=steps,
            manifest_digest="sha256:" + "ab" * 32,
        )

    return make


@pytest.fixture(scope="session")
def site_key() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture(scope="session")
def budget() -> PrivacyBudget:
    return PrivacyBudget(epsilon=3.0, epsilon_alone=5.7, delta=1e-5)


@pytest.fixture
def ledger_path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


@pytest.fixture
def open_ledger(ledger_path: Path, site_key: SigningKey) -> LedgerOpener:
    def open_at(**changed: object) -> BudgetLedger:
        settings = {"site": "north", "key": site_key, "clock": lambda: datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)}
        return BudgetLedger.open(ledger_path, **(settings | changed))  # type: ignore[arg-type]

    return open_at


@pytest.fixture
def spent_ledger(open_ledger: LedgerOpener, ledger_path: Path, budget: PrivacyBudget, make_event: EventMaker) -> bytes:
    """Eight lines: one open, three reserves of which two settle and one burns, one reserve left as it is."""
    with open_ledger() as ledger:
        ledger.open_population("breast", budget=budget, admission=AdmissionFilter.gaussian())
        for number in range(3):
            ledger.reserve("breast", run_id="run-1", round_number=number, attempt=0, event=make_event())
            if number == 1:
                ledger.burn("breast", run_id="run-1", round_number=number, attempt=0)
            else:
                release = "sha256:" + f"{number}" * 64
                ledger.settle("breast", run_id="run-1", round_number=number, attempt=0, release=release)
        ledger.reserve("breast", run_id="run-1", round_number=3, attempt=0, event=make_event())
    return ledger_path.read_bytes()
