"""The rounds of a run: each a securely summed step of the model, and an evaluation where one is due.

A site that is missing or refuses is left out and the round is tried again with the rest, as long as a cohort and spare
attempts are left. An evaluation is a sum like a round; one that cannot be completed is noted as missing, and the
training goes on.
"""

import numpy as np
from numpy.typing import NDArray

from common import wire_pb2 as pb
from common.errors import AttemptLost, QuorumLost
from common.parameters import parameters_to_bytes
from server.aggregate import descent_direction, server_step
from server.belonging import REVOKED
from server.cohort import Cohort
from server.joining import Joining
from server.rundir import PreparedRun
from server.secagg import SealedSum
from server.standing import NOBODY, Standing


class Rounds:
    """Goes through the rounds of one run from where it stands."""

    def __init__(self, run: PreparedRun, standing: Standing, joining: Joining) -> None:
        self._run = run
        self._manifest = run.manifest
        self._at = standing
        self._joining = joining
        self._heads: list[pb.Head] | None = None

    def remember_heads(self) -> None:
        """Ask the attempt in flight with the heads that are known now, whatever is heard before it is asked."""
        self._heads = self._at.mailbox.heads()

    def introduce(self) -> None:
        """Let everybody who is there know everybody who joined."""
        at = self._at
        if at.introductions.not_told(at.cohort.present, at.mailbox.joined):
            at.save()  # whom every site is told of, before the first is told
            self._joining.introduce(timeout_s=self._run.settings.round_timeout_s, patient=True)

    def train(self) -> None:
        """Every round that is left, each with its evaluation if one is due.

        Raises:
            QuorumLost: If too few sites are left. RunStopped: If somebody asked for it.
        """
        at, due = self._at, self._manifest.evaluated_rounds
        while at.round_number <= self._manifest.rounds:
            if at.stage == "train" and self._round():
                self._keep_model()
                if at.round_number in due:
                    at.stage, at.attempt = "evaluate", 0
            if at.stage == "evaluate":
                self._evaluate()
            at.stage, at.round_number, at.attempt = "train", at.round_number + 1, 0

    def _round(self) -> bool:
        """Move the model by one round; False if no attempt is left for it, and the round is lost."""
        at, manifest = self._at, self._manifest
        if not at.attempt:
            at.cohort.next_round()
            self._let_in()
        while at.in_flight or (
            at.attempt <= manifest.spare_attempts and at.attempts < manifest.rounds + manifest.spare_attempts
        ):
            at.refuse_if_stopped()
            if not at.in_flight:
                at.dismiss_revoked()
                at.in_flight = tuple(at.cohort.select())
                at.attempt += 1
                at.attempts += 1
                self._heads = None
                at.save()
            chosen = list(at.in_flight)
            sealed = self._ask(pb.Round, chosen, at.state.current.astype(np.float32))
            at.log("attempt", round=at.round_number, attempt=at.attempt, cohort=chosen)
            self._note_missing(at.cohort, chosen, sealed.missing)
            if not sealed.missing:
                self._step(sealed.open(), chosen)
                return True
        return False

    def _let_in(self) -> None:
        if self._joining.invite_late():
            self._at.log("joined", cohort=self._at.cohort.present)
        self.introduce()

    def _step(self, total: NDArray[np.float64], chosen: list[str]) -> None:
        manifest = self._manifest
        nominal = sum(manifest.entry(site).nominal_patients for site in chosen)
        direction = descent_direction(
            total, mode=manifest.mode, cohort_nominal=nominal, nominal=manifest.nominal_patients
        )
        self._at.state = server_step(self._at.state, direction, self._run.plan.training)

    def _evaluate(self) -> None:
        """Evaluate the released model over the sites that are there; training goes on whatever comes of it."""
        at = self._at

        def ask(cohort: Cohort, chosen: list[str], attempt: int) -> SealedSum:
            at.refuse_if_stopped()
            if not at.in_flight:
                at.in_flight, at.attempt = tuple(chosen), attempt
                self._heads = None
                at.save()
            sealed = self._ask(pb.Evaluate, chosen, at.state.released)
            at.log("evaluation", round=at.round_number, attempt=attempt, cohort=chosen)
            self._note_missing(cohort, chosen, sealed.missing)
            return sealed

        opened = at.evaluations.evaluate(
            at.round_number, at.cohort.present, ask, attempts=at.attempt, in_flight=list(at.in_flight)
        )
        if not opened:
            at.log("evaluation", round=at.round_number, error=QuorumLost.__name__)

    def _ask(
        self, kind: type[pb.Round] | type[pb.Evaluate], chosen: list[str], model: NDArray[np.float32]
    ) -> SealedSum:
        """Ask the attempt in flight; the first one after a restart with the heads that it was sent with."""
        at, heads = self._at, self._heads
        self._heads = None
        sealed = at.asking.ask(kind, chosen, at.round_number, at.attempt, model, heads=heads)
        at.in_flight = NOBODY
        return sealed

    def _note_missing(self, cohort: Cohort, chosen: list[str], missing: list[str]) -> None:
        refused, gone = self._at.mailbox.refused, self._at.dismiss_revoked()
        for site in missing:
            if site in gone:
                cohort.refused(site, REVOKED)
            elif refused.get(site) == AttemptLost.__name__:
                del refused[site]  # the site is there again, and takes part in the next attempt
                cohort.silent(site)
            elif site in refused:
                cohort.refused(site, refused[site])
            else:
                cohort.silent(site)
        cohort.answered(set(chosen) - set(missing))

    def _keep_model(self) -> None:
        if self._run.settings.keep_models:
            path = self._run.model_path(self._at.state.rounds)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(parameters_to_bytes(self._at.state.released))
