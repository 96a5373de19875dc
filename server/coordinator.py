"""One run from the coordinator's side: sites join, keys are exchanged, rounds are summed, the run is closed.

It sees masked vectors and their sum, never one site's update.

Before anything is asked that a site charges for, the checkpoint says so. A coordinator that died asks the same again,
and the sites answer with the bytes that they have stored: the run ends as if nothing had happened.
"""

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from common.errors import ConfigurationError, QuorumLost, RunStopped
from common.journal import Journal
from common.passphrase import read_passphrase
from server.checkpoints import refuse_if_over
from server.closing import RunResult, close_at_sites, release, write_result
from server.joining import Joining
from server.lock import exclusive
from server.mailbox import Exchange
from server.rounds import Rounds
from server.rundir import LOCK_FILE, PreparedRun, load_run
from server.standing import NOBODY, Standing

ENOUGH_ROUNDS: Final = 0.9
"""The share of its planned rounds with which a run is complete."""
LOCK_TIMEOUT_S: Final = 5.0
DISK_ERRORS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES})


def run_from_directory(
    run_dir: Path, exchange: Exchange, *, passphrase: bytes | None = None, journal: Journal | None = None
) -> RunResult:
    """Run what `prepare_run` prepared, or go on where an earlier process stopped.

    Args:
        run_dir: The run's directory.
        exchange: How nodes are asked.
        passphrase: Opens the coordinator's keys; comes from this machine's environment unless given.
        journal: Where to log.

    Raises:
        ConfigurationError: If the run is over, another process runs it, or the disk takes no more.
        FederationError: As `load_run` and `Coordinator.run`.
    """
    secret = read_passphrase(os.environ) if passphrase is None else passphrase
    run = load_run(run_dir, passphrase=secret)
    refuse_if_over(run_dir)
    with _alone(run), _disk_errors_named(run_dir):
        refuse_if_over(run_dir)
        return Coordinator(run, exchange, journal=journal).run()


class Coordinator:
    """Runs one prepared run over an exchange, once."""

    def __init__(
        self,
        run: PreparedRun,
        exchange: Exchange,
        *,
        journal: Journal | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._run = run
        self._manifest = run.manifest
        self._at = Standing(run, exchange, journal=journal)
        self._joining = Joining(
            run,
            self._at.mailbox,
            self._at.introductions,
            self._at.cohort,
            dismiss_revoked=self._at.dismiss_revoked,
            clock=clock,
            sleep=sleep,
        )
        self._rounds = Rounds(run, self._at, self._joining)

    def run(self) -> RunResult:
        """Train to the end of the plan, release the model, close the run at every site.

        A round for which no attempt is left is lost. With nine tenths of its rounds a run is complete all the same,
        and the result says how many there were.

        Raises:
            QuorumLost: If the sites run out, or too many rounds are lost. The run is closed first, so that
                reservations are burned and the last heads witnessed, and the model so far is released if a round was
                completed. Only if a resumed run does not find its sites, it stays open and can be resumed again.
            RunStopped: If the run directory has a file `stop`; closed and released likewise.
            TrustError: If the checkpoint is not this run's. ConfigurationError: If it cannot be read or written.
        """
        at, resumed, begun = self._at, self._at.load(), False
        if resumed:
            at.log("resumed", round=at.round_number, attempt=at.attempt, cohort=list(at.in_flight))
        if at.stage == "finish":
            self._joining.gather(at.cohort.present, on_wait=at.show, closing=True)
            return self._finish()
        try:
            self._join() if at.stage == "join" else self._rejoin()
            begun = True
            self._rounds.train()
            self._refuse_if_too_short()
        except QuorumLost as error:
            if resumed and not begun:
                raise
            at.failure = error
        except RunStopped as error:
            at.failure = error
        return self._finish()

    def _join(self) -> None:
        at, timeout_s = self._at, self._run.settings.setup_timeout_s
        at.save()
        self._joining.gather(self._manifest.names, on_wait=self._wait)
        self._joining.note_absent()
        at.cohort.require_quorum()
        at.save()  # whom every site is told of, before the first is told
        self._joining.introduce(timeout_s=timeout_s, patient=False)
        at.stage = "train"
        at.log("joined", cohort=at.cohort.present)

    def _rejoin(self) -> None:
        """Find the sites again after a restart; an attempt whose cohort is not complete is given up."""
        at = self._at
        self._rounds.remember_heads()
        self._joining.gather(at.cohort.present, on_wait=self._wait)
        self._joining.note_absent()
        try:
            at.cohort.require_quorum()
        except QuorumLost as error:
            raise QuorumLost(
                error.fact, hint="nothing was asked of the sites; resume the run again when they are back"
            ) from error
        if not set(at.in_flight) <= set(at.cohort.present):
            at.in_flight = NOBODY
        self._rounds.introduce()
        at.log("joined", cohort=at.cohort.present)

    def _refuse_if_too_short(self) -> None:
        """Return only if nearly all rounds are done: each lost attempt then cost a round at most, and no noise."""
        manifest, done = self._manifest, self._at.state.rounds
        if done < ENOUGH_ROUNDS * manifest.rounds:
            raise QuorumLost(
                f"{done} of {manifest.rounds} rounds were completed with {self._at.attempts} of "
                f"{manifest.rounds + manifest.spare_attempts} attempts",
                hint="plan more spare_attempts; the privacy budget is calibrated for them",
            )

    def _wait(self, waiting_for: dict[str, str]) -> None:
        self._at.show(waiting_for)
        self._at.refuse_if_stopped()

    def _finish(self) -> RunResult:
        """Close the run; what is done twice after a crash comes to the same."""
        at, run = self._at, self._run
        at.stage, at.in_flight = "finish", NOBODY
        at.dismiss_revoked()
        at.save()
        digest = release(run, at.state)
        close_at_sites(run, at.mailbox, model_digest=digest)
        result = write_result(
            run,
            at.mailbox,
            state=at.state,
            attempts=at.attempts,
            model_digest=digest,
            left=at.cohort.left,
            bytes_up=at.asking.bytes_up,
        )
        at.forget()
        at.log("closed", rounds=result.rounds, digest=digest)
        if at.failure is not None:
            raise at.failure
        return result


@contextmanager
def _alone(run: PreparedRun) -> Iterator[None]:
    """Hold the run's lock, if it keeps checkpoints: two coordinators would answer for each other's attempts."""
    if not run.settings.checkpoints:
        yield
        return
    with exclusive(run.root / LOCK_FILE, timeout_s=LOCK_TIMEOUT_S):
        yield


@contextmanager
def _disk_errors_named(run_dir: Path) -> Iterator[None]:
    """Say of a full or failing disk what it means for the run."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise ConfigurationError(
            f"{run_dir}: cannot be written: {error.strerror}",
            hint="mend the disk and resume the run; it goes on from its last checkpoint",
        ) from error
