"""Where a run stands: all that changes while it runs, saved before every step and restored after a crash."""

from typing import Final

from common import errors
from common.errors import FederationError, QuorumLost, RunStopped
from common.journal import Journal
from common.model import initial_parameters
from common.privacy.witness import SignedHead
from common.wire import head_from_message
from server.aggregate import ServerState
from server.attempts import Attempts
from server.belonging import REVOKED, Belonging
from server.checkpoints import Checkpoint, CheckpointStore, Failure
from server.cohort import Cohort
from server.evaluation import EVALUATION_FILE, Evaluations
from server.introductions import Introductions
from server.mailbox import Exchange, Mailbox
from server.moments import time_text, utc_now
from server.progress import Progress, Stage, write_progress
from server.rundir import STOP_FILE, PreparedRun

NOBODY: Final[tuple[str, ...]] = ()


class Standing:
    """One run's state and the parts that hold it.

    Attributes:
        state: The model and what the optimizer remembers.
        round_number: The round that is worked on.
        attempt: Of this round, or of its evaluation; 0 before the first.
        in_flight: The cohort of that attempt, from before it is sent until its sum is dealt with.
        attempts: Of the whole run, evaluations not counted.
        failure: The error with which the run ends once it is closed.
    """

    def __init__(self, run: PreparedRun, exchange: Exchange, *, journal: Journal | None) -> None:
        manifest = run.manifest
        self._run = run
        self._journal = journal
        self._store = CheckpointStore(run)
        self._belonging = Belonging(run)
        self.mailbox = Mailbox(run, exchange, journal=journal)
        self.introductions = Introductions(manifest, run.trust)
        acquainted = self.introductions.acquainted
        self.cohort = Cohort(manifest.names, minimum=manifest.minimum_cohort, acquainted=acquainted)
        self.evaluations = Evaluations(run.plan, manifest, path=run.root / EVALUATION_FILE, acquainted=acquainted)
        self.asking = Attempts(run, self.mailbox, self.introductions)
        self.state = ServerState.start(
            initial_parameters(run.plan.model, len(run.plan.task.classes), seed=run.settings.seed)
        )
        self.stage: Stage = "join"
        self.round_number = 1
        self.attempt = 0
        self.in_flight = NOBODY
        self.attempts = 0
        self.failure: FederationError | None = None

    def save(self) -> None:
        """Make all of it durable, if the run keeps checkpoints."""
        if self._run.settings.checkpoints:
            self._store.save(self._checkpoint(), self.state)
            self.show({})

    def load(self) -> bool:
        """Restore the last checkpoint, if there is one; whether there was.

        Raises:
            TrustError: If it was changed or is another run's. ConfigurationError: If it cannot be read or is gone.
        """
        found = self._store.load() if self._run.settings.checkpoints else None
        if found is None:
            return False
        checkpoint, state = found
        if state is not None:
            self.state = state
        self.stage, self.round_number = checkpoint.stage, checkpoint.round_number
        self.attempt, self.in_flight = checkpoint.attempt, checkpoint.in_flight
        self.attempts, self.asking.bytes_up = checkpoint.attempts, checkpoint.bytes_up
        heads = [SignedHead.from_json(head) for head in checkpoint.heads]
        self.mailbox.restore(joined=checkpoint.joined, heads=heads, exchanges=checkpoint.exchanges)
        self.mailbox.addresses.restore(checkpoint.nodes)
        self.introductions.restore(checkpoint.told, checkpoint.unsent)
        self.cohort.restore(checkpoint.cohort)
        self.evaluations.restore(checkpoint.evaluations)
        self.failure = None if checkpoint.failure is None else _raised(checkpoint.failure)
        return True

    def forget(self) -> None:
        """Remove the checkpoint: the run is over."""
        self._store.remove()

    def show(self, waiting_for: dict[str, str]) -> None:
        """Write `progress.json`, if the run keeps checkpoints."""
        if not self._run.settings.checkpoints:
            return
        manifest = self._run.manifest
        progress = Progress(
            run_id=manifest.run_id,
            time=time_text(utc_now()),
            stage=self.stage,
            rounds=self.state.rounds,
            of=manifest.rounds,
            attempts=self.attempts,
            attempts_planned=manifest.rounds + manifest.spare_attempts,
            present=tuple(site for site in self.cohort.present if site not in waiting_for),
            left=dict(self.cohort.left),
            waiting_for=waiting_for,
        )
        write_progress(self._run.root, progress)

    def refuse_if_stopped(self) -> None:
        """Return only if nobody asked for the run to be stopped; else raise RunStopped."""
        if (self._run.root / STOP_FILE).exists():
            done, planned = self.state.rounds, self._run.manifest.rounds
            raise RunStopped(
                f"the run was stopped after {done} of {planned} rounds; it is closed at the sites",
                hint="the model so far is released; what was charged stays charged" if done else "",
            )

    def dismiss_revoked(self) -> frozenset[str]:
        """Let those sites go for good that are members no more, and return them."""
        gone = self._belonging.gone()
        for site in sorted(gone):
            self.mailbox.addresses.dismiss(site)
            if self.cohort.left.get(site) != REVOKED:
                self.cohort.refused(site, REVOKED)
                self.log("refused", site=site, error=REVOKED)
        return gone

    def log(self, event: str, **fields: str | int | list[str]) -> None:
        """Write a line of the run's log."""
        if self._journal is not None:
            self._journal.write(event, run=self._run.manifest.run_id, **fields)

    def _checkpoint(self) -> Checkpoint:
        failure = self.failure
        return Checkpoint(
            run_id=self._run.manifest.run_id,
            manifest_digest=self._run.manifest.digest,
            stage=self.stage,
            round_number=self.round_number,
            attempt=self.attempt,
            in_flight=self.in_flight,
            attempts=self.attempts,
            exchanges=self.mailbox.exchanges,
            bytes_up=self.asking.bytes_up,
            joined=self.mailbox.joined,
            nodes=self.mailbox.addresses.to_json(),
            heads=tuple(head_from_message(head).to_json() for head in self.mailbox.heads()),
            told={site: tuple(others) for site, others in self.introductions.told_json().items()},
            unsent=tuple(self.introductions.unsent_bytes()),
            cohort=self.cohort.record(),
            evaluations=self.evaluations.record(),
            failure=failure and Failure(error=type(failure).__name__, fact=failure.fact, hint=failure.hint),
        )


def _raised(failure: Failure) -> FederationError:
    """The error that a run was about to end with."""
    kind = getattr(errors, failure.error, QuorumLost)
    raised: FederationError = kind(failure.fact, hint=failure.hint)
    return raised
