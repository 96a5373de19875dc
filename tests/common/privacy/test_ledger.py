import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from common.crypto.keys import SigningKey
from common.errors import ConfigurationError, LedgerCorrupt, PolicyRefused, PrivacyBudgetExhausted, TrustError
from common.privacy.account import AttemptState
from common.privacy.admission import AdmissionFilter
from common.privacy.budget import PrivacyBudget
from common.privacy.entries import AttemptKey, LedgerHead
from common.privacy.events import MechanismEvent
from common.privacy.ledger import BudgetLedger
from common.privacy.witness import SignedHead

EventMaker = Callable[..., MechanismEvent]
LedgerOpener = Callable[..., BudgetLedger]
RELEASE = "sha256:" + "7" * 64


def open_breast(ledger: BudgetLedger, budget: PrivacyBudget) -> None:
    ledger.open_population("breast", budget=budget, admission=AdmissionFilter.gaussian())


def reserve(ledger: BudgetLedger, event: MechanismEvent, *, round_number: int = 0, attempt: int = 0) -> None:
    ledger.reserve("breast", run_id="run-1", round_number=round_number, attempt=attempt, event=event)


def test_a_new_ledger_is_empty(open_ledger: LedgerOpener) -> None:
    with open_ledger() as ledger:
        assert (ledger.head, ledger.populations) == (LedgerHead(), ())


def test_everything_charged_is_there_after_reopening(spent_ledger: bytes, open_ledger: LedgerOpener) -> None:
    with open_ledger() as ledger:
        account = ledger.account("breast")
    assert [account.count(state) for state in AttemptState] == [1, 2, 1]
    assert ledger.head.seq == 8


def test_reserved_settled_and_burned_answers_all_count(
    spent_ledger: bytes, open_ledger: LedgerOpener, make_event: EventMaker
) -> None:
    with open_ledger() as ledger:
        assert ledger.events("breast") == (make_event(),) * 4


def test_a_line_has_exactly_the_fields_of_its_version(spent_ledger: bytes) -> None:
    fields = {"v", "seq", "time", "population", "kind", "run", "round", "attempt", "event", "prev", "sig"}
    assert all(json.loads(line).keys() == fields for line in spent_ledger.splitlines())


def test_no_epsilon_of_an_event_is_ever_stored(spent_ledger: bytes) -> None:
    assert all(b"epsilon" not in line for line in spent_ledger.splitlines()[1:])


def test_a_reservation_beyond_the_budget_writes_nothing(
    open_ledger: LedgerOpener, ledger_path: Path, budget: PrivacyBudget, make_event: EventMaker
) -> None:
    with open_ledger() as ledger:
        open_breast(ledger, budget)
        reserve(ledger, make_event(1.8))
        before = ledger_path.read_bytes()
        with pytest.raises(PrivacyBudgetExhausted, match="would reach"):
            reserve(ledger, make_event(1.8), round_number=1)
        assert ledger_path.read_bytes() == before


def test_a_refused_reservation_can_be_followed_by_a_smaller_one(
    open_ledger: LedgerOpener, budget: PrivacyBudget, make_event: EventMaker
) -> None:
    with open_ledger() as ledger:
        open_breast(ledger, budget)
        with pytest.raises(PrivacyBudgetExhausted):
            reserve(ledger, make_event(0.5))
        reserve(ledger, make_event(20.0))
        assert len(ledger.events("breast")) == 1


def test_every_attempt_is_charged_once(
    open_ledger: LedgerOpener, budget: PrivacyBudget, make_event: EventMaker
) -> None:
    with open_ledger() as ledger:
        open_breast(ledger, budget)
        reserve(ledger, make_event())
        with pytest.raises(PolicyRefused, match="round 0, attempt 0"):
            reserve(ledger, make_event())
        reserve(ledger, make_event(), attempt=1)


def test_a_repeat_is_refused_after_a_restart_too(
    open_ledger: LedgerOpener, budget: PrivacyBudget, make_event: EventMaker
) -> None:
    with open_ledger() as ledger:
        open_breast(ledger, budget)
        reserve(ledger, make_event())
    with open_ledger() as ledger, pytest.raises(PolicyRefused):
        reserve(ledger, make_event())


def test_a_population_keeps_its_first_budget(open_ledger: LedgerOpener, budget: PrivacyBudget) -> None:
    with open_ledger() as ledger:
        open_breast(ledger, budget)
        with pytest.raises(ConfigurationError, match="already open"):
            open_breast(ledger, PrivacyBudget(epsilon=9, epsilon_alone=9, delta=1e-5))


def test_populations_are_charged_apart(
    open_ledger: LedgerOpener, budget: PrivacyBudget, make_event: EventMaker
) -> None:
    with open_ledger() as ledger:
        open_breast(ledger, budget)
        ledger.open_population("xray", budget=budget, admission=AdmissionFilter.rdp(budget))
        reserve(ledger, make_event())
        assert (len(ledger.events("breast")), len(ledger.events("xray"))) == (1, 0)


def test_an_unknown_population_has_no_budget(open_ledger: LedgerOpener, make_event: EventMaker) -> None:
    with open_ledger() as ledger, pytest.raises(ConfigurationError, match="breast"):
        reserve(ledger, make_event())


def test_only_what_is_reserved_can_be_settled(open_ledger: LedgerOpener, budget: PrivacyBudget) -> None:
    with open_ledger() as ledger:
        open_breast(ledger, budget)
        with pytest.raises(ValueError, match="settle without a reserve"):
            ledger.settle("breast", run_id="run-1", round_number=0, attempt=0, release=RELEASE)


def test_what_is_burned_cannot_be_settled(
    open_ledger: LedgerOpener, budget: PrivacyBudget, make_event: EventMaker
) -> None:
    with open_ledger() as ledger:
        open_breast(ledger, budget)
        reserve(ledger, make_event())
        ledger.burn("breast", run_id="run-1", round_number=0, attempt=0)
        with pytest.raises(ValueError, match="already burned"):
            ledger.settle("breast", run_id="run-1", round_number=0, attempt=0, release=RELEASE)


def test_a_release_is_named_by_its_digest(
    open_ledger: LedgerOpener, budget: PrivacyBudget, make_event: EventMaker
) -> None:
    with open_ledger() as ledger:
        open_breast(ledger, budget)
        reserve(ledger, make_event())
        with pytest.raises(ValueError, match="release"):
            ledger.settle("breast", run_id="run-1", round_number=0, attempt=0, release="42")


def test_the_account_remembers_what_was_released(spent_ledger: bytes, open_ledger: LedgerOpener) -> None:
    with open_ledger() as ledger:
        charged = ledger.account("breast").attempt(AttemptKey(run_id="run-1", round_number=2, attempt=0))
    assert charged is not None
    assert charged.release == "sha256:" + "2" * 64


@pytest.mark.parametrize("wrong", [{"run_id": ""}, {"round_number": -1}, {"attempt": -1}])
def test_an_impossible_attempt_is_refused(
    open_ledger: LedgerOpener, budget: PrivacyBudget, make_event: EventMaker, wrong: dict[str, object]
) -> None:
    attempt = {"run_id": "run-1", "round_number": 0, "attempt": 0} | wrong
    with open_ledger() as ledger:
        open_breast(ledger, budget)
        with pytest.raises(ValueError):
            ledger.reserve("breast", event=make_event(), **attempt)  # type: ignore[arg-type]


def test_a_clock_without_a_zone_is_refused(open_ledger: LedgerOpener, budget: PrivacyBudget) -> None:
    with open_ledger(clock=lambda: datetime(2026, 1, 1)) as ledger, pytest.raises(ValueError, match="zone"):
        open_breast(ledger, budget)


def test_a_second_opener_is_told_that_the_ledger_is_in_use(open_ledger: LedgerOpener) -> None:
    with open_ledger(), pytest.raises(ConfigurationError, match="in use"):
        open_ledger()


def test_another_process_holding_the_lock_is_noticed(open_ledger: LedgerOpener, ledger_path: Path) -> None:
    hold = (
        "import fcntl, sys; lock = open(sys.argv[1], 'w'); fcntl.flock(lock, fcntl.LOCK_EX); "
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(ledger_path.with_suffix(".lock"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(ConfigurationError, match="in use"):
            open_ledger()
        process.communicate()
    open_ledger().close()


def test_closing_lets_the_next_one_in(open_ledger: LedgerOpener) -> None:
    open_ledger().close()
    open_ledger().close()


def test_a_failed_opening_lets_go_of_the_lock(
    spent_ledger: bytes, open_ledger: LedgerOpener, ledger_path: Path
) -> None:
    ledger_path.write_bytes(b"{}\n")
    with pytest.raises(LedgerCorrupt):
        open_ledger()
    with ledger_path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_closed_ledger_writes_no_more(open_ledger: LedgerOpener, budget: PrivacyBudget) -> None:
    with open_ledger() as ledger:
        pass
    with pytest.raises(ValueError, match="closed"):
        open_breast(ledger, budget)


def test_threads_charge_one_after_the_other(
    open_ledger: LedgerOpener, budget: PrivacyBudget, make_event: EventMaker
) -> None:
    with open_ledger() as ledger:
        open_breast(ledger, budget)
        threads = [
            threading.Thread(target=reserve, args=(ledger, make_event(1000.0)), kwargs={"round_number": number})
            for number in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with open_ledger() as ledger:
        assert len(ledger.events("breast")) == 16


@pytest.mark.parametrize("kept", [1, 60, 300])
def test_a_torn_last_line_is_dropped(
    spent_ledger: bytes, open_ledger: LedgerOpener, ledger_path: Path, budget: PrivacyBudget, kept: int
) -> None:
    ledger_path.write_bytes(spent_ledger + spent_ledger.splitlines()[-1][:kept])
    with open_ledger() as ledger:
        assert ledger.head.seq == 8
        ledger.open_population("xray", budget=budget, admission=AdmissionFilter.gaussian())
    open_ledger().close()


CRASH = """
import os, sys
from pathlib import Path
from common.crypto.keys import SigningKey
from common.privacy.events import MechanismEvent
from common.privacy.ledger import BudgetLedger
folder, last_step = Path(sys.argv[1]), sys.argv[2]
key = SigningKey.from_pem((folder / "key.pem").read_bytes(), b"a passphrase of the test")
ledger = BudgetLedger.open(folder / "ledger.jsonl", site="north", key=key)
event = MechanismEvent.from_json(__import__("json").loads((folder / "event.json").read_text()))
attempt = {"run_id": "run-1", "round_number": 0, "attempt": 0}
if last_step != "open":
    ledger.reserve("breast", event=event, **attempt)
if last_step == "settle":
    ledger.settle("breast", release="sha256:" + "7" * 64, **attempt)
if last_step == "burn":
    ledger.burn("breast", **attempt)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize(
    ("last_step", "charged", "unsettled"), [("open", 0, 0), ("reserve", 1, 1), ("settle", 1, 0), ("burn", 1, 0)]
)
def test_a_kill_after_any_step_keeps_what_was_charged(
    open_ledger: LedgerOpener,
    ledger_path: Path,
    site_key: SigningKey,
    budget: PrivacyBudget,
    make_event: EventMaker,
    last_step: str,
    charged: int,
    unsettled: int,
) -> None:
    with open_ledger() as ledger:
        open_breast(ledger, budget)
    folder = ledger_path.parent
    (folder / "key.pem").write_bytes(site_key.to_pem(b"a passphrase of the test"))
    (folder / "event.json").write_text(json.dumps(make_event().to_json()))
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", CRASH, str(folder), last_step]
    done = subprocess.run(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, check=False)
    assert done.returncode == -signal.SIGKILL
    with open_ledger() as ledger:
        account = ledger.account("breast")
        assert (account.reserves, len(account.unsettled)) == (charged, unsettled)


def test_a_full_disk_leaves_the_file_and_the_account_as_they_were(
    open_ledger: LedgerOpener, ledger_path: Path, budget: PrivacyBudget, make_event: EventMaker
) -> None:
    with open_ledger() as ledger:
        open_breast(ledger, budget)
        before = ledger_path.read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limits[1]))
        try:
            with pytest.raises(OSError):
                reserve(ledger, make_event())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (ledger_path.read_bytes(), ledger.events("breast")) == (before, ())
        reserve(ledger, make_event())
    with open_ledger() as ledger:
        assert len(ledger.events("breast")) == 1


def test_a_rolled_back_ledger_is_behind_its_mark(
    spent_ledger: bytes, open_ledger: LedgerOpener, ledger_path: Path
) -> None:
    ledger_path.write_bytes(b"".join(spent_ledger.splitlines(keepends=True)[:5]))
    with pytest.raises(LedgerCorrupt, match=r"entry 6: missing.*high-water mark"):
        open_ledger()


def test_a_deleted_ledger_is_behind_its_mark(spent_ledger: bytes, open_ledger: LedgerOpener, ledger_path: Path) -> None:
    ledger_path.unlink()
    with pytest.raises(LedgerCorrupt, match="entry 1: missing"):
        open_ledger()


def test_a_ledger_without_its_mark_is_refused(
    spent_ledger: bytes, open_ledger: LedgerOpener, ledger_path: Path
) -> None:
    ledger_path.with_suffix(".head").unlink()
    with pytest.raises(LedgerCorrupt, match=r"ledger\.head is missing"):
        open_ledger()


@pytest.mark.parametrize("content", [b"", b"{}", b'{"digest":"x","seq":-1,"v":1}', b'{"digest":1,"seq":1,"v":9}'])
def test_an_unreadable_mark_is_refused(
    spent_ledger: bytes, open_ledger: LedgerOpener, ledger_path: Path, content: bytes
) -> None:
    ledger_path.with_suffix(".head").write_bytes(content)
    with pytest.raises(LedgerCorrupt, match="high-water mark"):
        open_ledger()


def test_a_mark_that_lags_behind_after_a_power_cut_is_accepted(
    spent_ledger: bytes, open_ledger: LedgerOpener, ledger_path: Path, budget: PrivacyBudget
) -> None:
    old_mark = ledger_path.with_suffix(".head").read_bytes()
    with open_ledger() as ledger:
        ledger.open_population("xray", budget=budget, admission=AdmissionFilter.gaussian())
    ledger_path.with_suffix(".head").write_bytes(old_mark)
    with open_ledger() as ledger:
        assert ledger.head.seq == 9


def test_ledger_and_mark_rolled_back_together_are_behind_a_peers_head(
    spent_ledger: bytes, open_ledger: LedgerOpener, ledger_path: Path, budget: PrivacyBudget
) -> None:
    old_mark = ledger_path.with_suffix(".head").read_bytes()
    with open_ledger() as ledger:
        ledger.open_population("xray", budget=budget, admission=AdmissionFilter.gaussian())
        held = ledger.signed_head("run-1")
    ledger_path.write_bytes(spent_ledger)
    ledger_path.with_suffix(".head").write_bytes(old_mark)
    with pytest.raises(LedgerCorrupt, match="entry 9: missing; a witness"):
        open_ledger(heads=[held])


def test_a_fork_is_found_by_a_peers_head(
    spent_ledger: bytes, open_ledger: LedgerOpener, ledger_path: Path, budget: PrivacyBudget
) -> None:
    old_mark = ledger_path.with_suffix(".head").read_bytes()
    with open_ledger() as ledger:
        ledger.open_population("xray", budget=budget, admission=AdmissionFilter.gaussian())
        held = ledger.signed_head("run-1")
    ledger_path.write_bytes(spent_ledger)
    ledger_path.with_suffix(".head").write_bytes(old_mark)
    with open_ledger() as ledger:
        ledger.open_population("other", budget=budget, admission=AdmissionFilter.gaussian())
    with pytest.raises(LedgerCorrupt, match="entry 9: not the one"):
        open_ledger(heads=[held])


def test_a_false_head_does_not_pass_for_evidence(spent_ledger: bytes, open_ledger: LedgerOpener) -> None:
    false = SignedHead.sign(
        SigningKey.generate(), site="north", head=LedgerHead(seq=99, digest="sha256:" + "9" * 64), run_id="run-1"
    )
    with pytest.raises(TrustError, match="not signed by its key"):
        open_ledger(heads=[false])


def test_another_key_cannot_go_on_with_a_ledger(spent_ledger: bytes, open_ledger: LedgerOpener) -> None:
    with pytest.raises(LedgerCorrupt, match="entry 1"):
        open_ledger(key=SigningKey.generate())


def test_another_site_cannot_go_on_with_a_ledger(spent_ledger: bytes, open_ledger: LedgerOpener) -> None:
    with pytest.raises(LedgerCorrupt, match=r"entry 1.*'north'"):
        open_ledger(site="south")


def test_files_are_readable_by_their_owner_only(spent_ledger: bytes, ledger_path: Path) -> None:
    assert all(path.stat().st_mode & 0o077 == 0 for path in ledger_path.parent.iterdir())
