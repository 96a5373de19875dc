"""The coordinator over many sites of a large model: `python -m tests.server.many_sites SITES DIRECTORY`.

The sites sign what the protocol asks for and compute nothing; messages wait on disk, as they do in a SuperLink, so
that what this process needs is what the coordinator needs. Prints the largest resident size, in bytes.
"""

import resource
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from flwr.app import Message, RecordDict

from common import wire_pb2 as pb
from common.canonical import DIGEST_PREFIX
from common.crypto.keys import SigningKey
from common.crypto.masking import MLKEM_CIPHERTEXT_BYTES, RunKeys, mask_context
from common.flower import pack, unpack
from common.parameters import parameters_digest, parameters_from_bytes
from common.plan import Manifest, RosterEntry, TrainingPlan
from common.privacy.entries import LedgerHead
from common.privacy.witness import SignedHead
from common.runplan import build_manifest, calibrate_plan
from common.trust import TrustFile
from common.wire import (
    CIPHERTEXT_DOMAIN,
    COORDINATOR,
    ciphertext_statement,
    head_message,
    read_envelope,
    write_envelope,
)
from server.coordinator import run_from_directory
from server.exchange import GridExchange
from server.rundir import RunSettings, prepare_run
from simulations.flower_private import task_identity
from simulations.inline_grid import InlineGrid, site_handlers
from tests.flows.federation import PASSPHRASE, make_plan, request_in

HIDDEN = (1000, 1000)


class SpoolingGrid(InlineGrid):
    """Bodies wait in files until their reply is asked for."""

    def __init__(self, *arguments, spool: Path) -> None:
        super().__init__(*arguments)
        self._spool = spool

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        accepted = super().push_messages(messages)
        for message_id in accepted:
            (self._spool / message_id).write_bytes(unpack(self._pushed[message_id].content))
            self._pushed[message_id].content = RecordDict()
        return accepted

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        wanted = list(message_ids)
        for message_id in wanted:
            self._pushed[message_id].content = pack((self._spool / message_id).read_bytes())
        return super().pull_messages(wanted)


class SigningSite:
    """Answers everything with the right signature and a vector of zeros."""

    def __init__(self, name: str, key: SigningKey, manifest: Manifest) -> None:
        self._name, self._key, self._manifest = name, key, manifest
        self._keys = RunKeys.generate()
        head = LedgerHead(seq=1, digest=DIGEST_PREFIX + "ab" * 32)
        self._head = head_message(SignedHead.sign(key, site=name, head=head, run_id=manifest.run_id))

    def handle(self, data: bytes) -> bytes:
        body = self._answer(request_in(data))
        body.head.CopyFrom(self._head)
        run_id = self._manifest.run_id
        return write_envelope(body, key=self._key, run_id=run_id, sender=self._name, recipient=COORDINATOR)

    def _answer(self, request):
        public, digest = self._keys.public, self._manifest.digest
        if isinstance(request, pb.Offer):
            return pb.Joined(manifest_digest=digest, x25519=public.x25519, mlkem=public.mlkem)
        if isinstance(request, pb.Keys):
            names = sorted(read_envelope(data).sender for data in request.joined)
            return pb.Encapsulated(ciphertexts=[self._ciphertext(name) for name in names if name > self._name])
        if isinstance(request, pb.Round):
            model = parameters_from_bytes(request.parameters, dimension=self._manifest.dimension)
            context = mask_context(
                manifest_digest=digest,
                kind="train",
                round_number=request.round,
                attempt=request.attempt,
                cohort=list(request.cohort),
                model_digest=parameters_digest(model),
            )
            label = DIGEST_PREFIX + context.hex()
            vector = bytes(4 * self._manifest.dimension)
            return pb.Masked(round=request.round, attempt=request.attempt, context=label, vector=vector)
        return pb.Closed()

    def _ciphertext(self, recipient: str) -> pb.Ciphertext:
        item = pb.Ciphertext(sender=self._name, recipient=recipient, ciphertext=bytes(MLKEM_CIPHERTEXT_BYTES))
        item.signature = self._key.sign(CIPHERTEXT_DOMAIN, ciphertext_statement(self._manifest.digest, item))
        return item


def large_plan() -> TrainingPlan:
    """About a million parameters, two rounds."""
    document = make_plan(rounds=2, spare_attempts=0, clipping_norm=1.0).to_json()
    document["model"] |= {"head": "mlp", "hidden": list(HIDDEN)}
    return TrainingPlan.model_validate(document)


def main(sites: int, root: Path) -> None:
    """Run two rounds and say how large this process became."""
    plan, coordinator = large_plan(), SigningKey.generate()
    keys = {f"site-{number:02d}": SigningKey.generate() for number in range(1, sites + 1)}
    texts = {name: key.public_key.text for name, key in keys.items()}
    manifest = build_manifest(
        plan,
        run_id="large",
        roster=[RosterEntry(name=name, identity_key=text, nominal_patients=10) for name, text in texts.items()],
        coordinator_key=coordinator.public_key.text,
        noise_multiplier=calibrate_plan(plan),
    )
    trust = TrustFile(coordinator=coordinator.public_key.text, sites=texts)
    prepare_run(
        root,
        plan=plan,
        manifest=manifest,
        trust=trust,
        key=coordinator,
        passphrase=PASSPHRASE,
        settings=RunSettings(),
    )
    signing = [SigningSite(name, key, manifest).handle for name, key in keys.items()]
    with task_identity(), tempfile.TemporaryDirectory(dir=root) as spool:
        grid = SpoolingGrid(site_handlers(dict(enumerate(signing, start=1))), spool=Path(spool))
        result = run_from_directory(root, GridExchange(grid), passphrase=PASSPHRASE)
    if (result.rounds, result.left, result.bytes_up) != (2, {}, 4 * manifest.dimension):
        raise SystemExit(f"the run did not go as it should: {result}")
    sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
