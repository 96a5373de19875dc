"""One attempt: the same question to every site of a cohort, and the sum of what they answer."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from common import wire_pb2 as pb
from common.canonical import DIGEST_PREFIX
from common.crypto.masking import mask_context
from common.errors import SecureSumAborted
from common.parameters import parameters_digest, parameters_to_bytes, vector_from_bytes
from common.runplan import evaluation_grid, training_grid
from server.introductions import Introductions
from server.mailbox import Mailbox
from server.rundir import PreparedRun
from server.secagg import SealedSum

Asked = type[pb.Round] | type[pb.Evaluate]


class Attempts:
    """Asks the attempts of one run.

    Attributes:
        bytes_up: Largest masked update that one site sent.
    """

    def __init__(self, run: PreparedRun, mailbox: Mailbox, introductions: Introductions) -> None:
        self._run = run
        self._mailbox = mailbox
        self._introductions = introductions
        self.bytes_up = 0

    def ask(
        self,
        kind: Asked,
        chosen: list[str],
        round_number: int,
        attempt: int,
        parameters: NDArray[np.float32],
        *,
        heads: Sequence[pb.Head] | None = None,
    ) -> SealedSum:
        """What the cohort answered to one attempt; it opens only if nobody is missing.

        Asked again with the same arguments, the sites are sent the same bytes and answer with what they have stored.

        Args:
            kind: Train, or evaluate.
            chosen: The cohort, sorted.
            round_number: From 1.
            attempt: From 1 in every round.
            parameters: The model, shape (d,).
            heads: What the sites are told of each other's ledgers; by default what is known now.
        """
        manifest, training = self._run.manifest, kind is pb.Round
        context = mask_context(
            manifest_digest=manifest.digest,
            kind="train" if training else "evaluate",
            round_number=round_number,
            attempt=attempt,
            cohort=chosen,
            model_digest=parameters_digest(parameters),
        )
        grid = (training_grid if training else evaluation_grid)(self._run.plan, manifest)
        sealed = SealedSum(cohort=chosen, context=DIGEST_PREFIX + context.hex(), grid=grid)
        body, known = parameters_to_bytes(parameters), self._mailbox.heads() if heads is None else heads

        def request(site: str) -> pb.Round | pb.Evaluate:
            return kind(
                round=round_number,
                attempt=attempt,
                cohort=chosen,
                parameters=body,
                ciphertexts=self._introductions.unsent(site),
                heads=known,
            )

        def accept(site: str, answer: pb.Masked | pb.Histogram) -> None:
            if (answer.round, answer.attempt) != (round_number, attempt):
                raise SecureSumAborted(f"{site} answered another attempt")
            sealed.add(site, context=answer.context, vector=vector_from_bytes(answer.vector, dimension=grid.dimension))
            self._introductions.delivered(site)
            if training:
                self.bytes_up = max(self.bytes_up, len(answer.vector))

        self._mailbox.refused.clear()
        reply: type[pb.Masked] | type[pb.Histogram] = pb.Masked if training else pb.Histogram
        self._mailbox.ask(chosen, request, reply, timeout_s=self._run.settings.round_timeout_s, accept=accept)
        return sealed
