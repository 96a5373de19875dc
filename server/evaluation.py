"""The evaluations of one run: who is asked, what opened, and what stands in `evaluation.json`."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.canonical import canonical_json
from common.errors import QuorumLost
from common.files import write_atomic
from common.plan import Manifest, TrainingPlan
from common.runplan import evaluation_grid, score_layout
from common.settings import Settings
from server.cohort import Acquainted, Cohort, CohortRecord
from server.score_metrics import METHOD, measure_scores
from server.secagg import SealedSum

EVALUATION_FILE: Final = "evaluation.json"
LEFT_TRAINING: Final = "LeftTraining"

# cohort bookkeeping, chosen sites, attempt -> what they answered; who is missing is noted in the bookkeeping
AskCohort = Callable[[Cohort, list[str], int], SealedSum]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OpenedEvaluation:
    """One evaluation whose sum opened.

    Attributes:
        sites: How many sites the sum is of.
        total: Shape (d,), in patients, noise included.
    """

    round_number: int
    attempt: int
    sites: int
    total: NDArray[np.float64]


class OpenedRecord(Settings):
    """An opened evaluation, as it stands in a checkpoint."""

    round_number: int
    attempt: int
    sites: int
    total: tuple[float, ...]


class EvaluationsRecord(Settings):
    """What the evaluations of a run remember, as it stands in a checkpoint."""

    attempts: int
    missing: tuple[int, ...]
    opened: tuple[OpenedRecord, ...]
    cohort: CohortRecord


class Evaluations:
    """Runs evaluations over the sites that are there.

    Who refuses here, or is silent in two evaluations, is not asked for another one; training does not mind. Who left
    the training and came back is asked again.

    Attributes:
        opened: Those that were completed.
        missing: Rounds whose evaluation could not be completed.
        attempts: How often the sites were asked.
    """

    def __init__(self, plan: TrainingPlan, manifest: Manifest, *, path: Path, acquainted: Acquainted = sorted) -> None:
        self._plan = plan
        self._manifest = manifest
        self._path = path
        self._cohort = Cohort(manifest.names, minimum=manifest.minimum_cohort, acquainted=acquainted)
        self.opened: list[OpenedEvaluation] = []
        self.missing: list[int] = []
        self.attempts = 0

    def evaluate(
        self,
        round_number: int,
        present: Collection[str],
        ask: AskCohort,
        *,
        attempts: int = 0,
        in_flight: Sequence[str] = (),
    ) -> bool:
        """One evaluation, tried again with fewer sites as long as attempts and a cohort are left; whether it opened.

        `evaluation.json` is written anew in either case.

        Args:
            round_number: After which it is due.
            present: Who takes part in the training.
            ask: Asks one cohort.
            attempts: How many were made of this evaluation before a restart.
            in_flight: The cohort of the last of them if it is to be asked again.
        """
        if not attempts:
            self._cohort.next_round()
        for site, reason in list(self._cohort.left.items()):
            if site in present and reason == LEFT_TRAINING:
                self._cohort.returned(site)
        for site in set(self._cohort.present) - set(present):
            self._cohort.refused(site, LEFT_TRAINING)
        try:
            self.opened.append(self._try(round_number, ask, attempts, list(in_flight)))
        except QuorumLost:
            self.missing.append(round_number)
        write_atomic(self._path, canonical_json(self.to_json()) + b"\n", mode=0o644)
        return round_number not in self.missing

    def record(self) -> EvaluationsRecord:
        """What a checkpoint keeps."""
        opened = (
            OpenedRecord(
                round_number=one.round_number, attempt=one.attempt, sites=one.sites, total=tuple(one.total.tolist())
            )
            for one in self.opened
        )
        return EvaluationsRecord(
            attempts=self.attempts, missing=tuple(self.missing), opened=tuple(opened), cohort=self._cohort.record()
        )

    def restore(self, record: EvaluationsRecord) -> None:
        """Go on from a checkpoint."""
        self.attempts, self.missing = record.attempts, list(record.missing)
        self._cohort.restore(record.cohort)
        self.opened = [
            OpenedEvaluation(
                round_number=one.round_number, attempt=one.attempt, sites=one.sites, total=np.array(one.total)
            )
            for one in record.opened
        ]

    def _try(self, round_number: int, ask: AskCohort, attempt: int, chosen: list[str]) -> OpenedEvaluation:
        while True:
            if not chosen:
                chosen = self._choose(round_number, attempt)
                attempt += 1
            sealed = ask(self._cohort, chosen, attempt)
            if not sealed.missing:
                total = sealed.open()
                return OpenedEvaluation(round_number=round_number, attempt=attempt, sites=len(chosen), total=total)
            chosen = []

    def _choose(self, round_number: int, attempts: int) -> list[str]:
        """The cohort of the next attempt, which is counted, after so many attempts of this evaluation."""
        manifest, chosen = self._manifest, self._cohort.select()
        if self.attempts >= manifest.evaluation_attempts or attempts > manifest.spare_attempts:
            raise QuorumLost(f"no attempts are left for the evaluation after round {round_number}")
        self.attempts += 1
        return chosen

    def to_json(self) -> dict[str, Any]:
        """The document of `evaluation.json` v1."""
        section = self._plan.evaluation
        return {
            "version": 1,
            "run_id": self._manifest.run_id,
            "held_out": section.held_out,
            "bins": section.bins,
            "target_epsilon": section.epsilon,
            "delta": self._plan.privacy.delta,
            "noise_multiplier": self._manifest.evaluation_noise_multiplier,
            "attempts": self.attempts,
            "attempts_planned": self._manifest.evaluation_attempts,
            "missing": self.missing,
            "method": METHOD,
            "evaluations": [self._opened_json(opened) for opened in self.opened],
        }

    def _opened_json(self, opened: OpenedEvaluation) -> dict[str, Any]:
        noise_std = sum_noise_std(self._plan, self._manifest, sites=opened.sites)
        measured = measure_scores(opened.total, score_layout(self._plan), noise_std=noise_std)
        return {
            "round": opened.round_number,
            "attempt": opened.attempt,
            "sites": opened.sites,
            "noise_std": noise_std,
            "patients": measured.pop("patients").to_json(),
            "metrics": {name: metric.to_json() for name, metric in measured.items()},
            "histogram": opened.total.tolist(),
        }


def sum_noise_std(plan: TrainingPlan, manifest: Manifest, *, sites: int) -> float:
    """Standard deviation of each count of an opened sum, in patients, when every site of it added its noise."""
    grid = evaluation_grid(plan, manifest)
    shares = sites - manifest.colluding if manifest.mode == "pooled" else 1
    own = grid.share_std(noise_multiplier=manifest.evaluation_noise_multiplier or 0.0, noise_shares=shares)
    return own * math.sqrt(sites) / grid.scale
