"""A small federation of real parts: homes with keys, tables through the real intake, a signed plan, a coordinator."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from google.protobuf.message import Message
from numpy.typing import NDArray

from client.agent import SiteAgent
from client.data.intake import intake_table
from client.data.registry import load_dataset
from client.deid.rules import TableSchema
from client.guard import grid_of
from client.home import SiteHome, create_home
from client.runstate import load_state
from client.training.engine import choose_engine
from common import wire_pb2 as pb
from common.canonical import canonical_json
from common.crypto.keys import SigningKey
from common.crypto.masking import apply_masks
from common.crypto.ring import from_ring, quantise
from common.errors import PrivacyBudgetExhausted
from common.journal import Journal
from common.model import dimension, normalise
from common.parameters import parameters_to_bytes, vector_from_bytes
from common.plan import Manifest, RosterEntry, TrainingPlan
from common.privacy.entries import parse_line
from common.privacy.events import MechanismEvent
from common.privacy.ledger import BudgetLedger
from common.runplan import build_manifest, calibrate_plan
from common.trust import TrustFile
from common.wire import (
    ANY_SITE,
    COORDINATOR,
    LEAVES_A_SITE,
    REACHES_A_SITE,
    read_body,
    read_envelope,
    verify_envelope,
    write_envelope,
)
from server.coordinator import RunResult, run_from_directory
from server.exchange import GridExchange
from server.rundir import PreparedRun, RunSettings, prepare_run
from simulations.flower_private import task_identity
from simulations.identities import IDENTITY_RULES, add_identities, identifiers_of
from simulations.inline_grid import InlineGrid, Tap, site_handlers
from simulations.sites import budget_for, policy_text

PASSPHRASE = b"a passphrase for tests only"
POPULATION = "ward"
RUN_ID = "demo-1"
CLASSES = ("healthy", "ill")
PATIENTS = {"east": 14, "north": 23, "south": 9, "west": 18}

Handle = Callable[[bytes], bytes]


def make_plan(
    *,
    features: int = 4,
    rounds: int = 3,
    spare_attempts: int = 2,
    mode: str = "pooled",
    minimum_cohort: int = 3,
    **privacy: float,
) -> TrainingPlan:
    """A plan for a linear model over `features` numbers; further names go into its privacy section."""
    document: dict[str, Any] = {
        "task": {"kind": "tabular-classification", "classes": list(CLASSES), "positive": "ill"},
        "model": {"inputs": [features]},
        "normalisation": {"limit": 3.0},
        "training": {"mode": mode, "rounds": rounds, "spare_attempts": spare_attempts, "server_optimizer": "sgd"},
        "privacy": {"epsilon": 3.0, "delta": 1e-5, "nominal_patients": 64, **privacy},
        "secure_sum": {"minimum_cohort": minimum_cohort},
    }
    return TrainingPlan.model_validate(document)


def make_schema(features: int) -> TableSchema:
    """What a site declares about `make_table`; the insurance number stays undeclared."""
    label = {"action": "keep", "type": "category", "values": list(CLASSES), "role": "label"}
    sizes = {"action": "keep", "type": "number", "role": "feature", "columns": [f"size {n}" for n in range(features)]}
    return TableSchema.model_validate(
        {
            "mode": "safe_harbor",
            "as_of_year": 2026,
            "columns": {**IDENTITY_RULES, "diagnosis": label},
            "families": {"sizes": sizes},
        }
    )


def make_table(site: str, *, patients: int, features: int = 4) -> pl.DataFrame:
    """Invented patients with numbers that tell ill from healthy; every third patient has a second record."""
    random = np.random.default_rng([len(site), patients])
    ill = np.arange(patients) % 2
    values = random.normal(loc=ill[:, None], scale=0.7, size=(patients, features))
    columns = {"diagnosis": [CLASSES[label] for label in ill]}
    columns |= {f"size {number}": values[:, number] for number in range(features)}
    table = add_identities(pl.DataFrame(columns), site=site, seed=7)
    return pl.concat([table, table[::3]])


@dataclass(frozen=True, kw_only=True)
class Federation:
    """Sites that have data and approved the plan, and a coordinator that prepared a run, all below `root`."""

    root: Path
    plan: TrainingPlan
    manifest: Manifest
    coordinator: SigningKey
    trust: TrustFile
    homes: Mapping[str, SiteHome]
    identifiers: tuple[tuple[str, ...], ...]

    @property
    def names(self) -> list[str]:
        """The sites, sorted."""
        return list(self.manifest.names)

    def copy_to(self, root: Path) -> "Federation":
        """The same federation with a life of its own."""
        shutil.copytree(self.root, root)
        homes = {name: replace(home, root=root / "sites" / name) for name, home in self.homes.items()}
        return replace(self, root=root, homes=homes)

    def under(self, plan: TrainingPlan, **changes: Any) -> "Federation":
        """The same sites under another plan, approved and prepared; `changes` go into its manifest."""
        manifest = make_manifest(plan, self.homes, self.coordinator)
        if changes:
            manifest = Manifest.model_validate({**manifest.to_json(), **changes})
        for home in self.homes.values():
            home.approve(plan.digest, population=POPULATION)
        changed = replace(self, plan=plan, manifest=manifest)
        changed.prepare()
        return changed

    def prepare(self, **settings: Any) -> PreparedRun:
        """Write the coordinator's files; `settings` are changes to how it runs."""
        return prepare_run(
            self.root,
            plan=self.plan,
            manifest=self.manifest,
            trust=self.trust,
            key=self.coordinator,
            passphrase=PASSPHRASE,
            settings=RunSettings.model_validate({"keep_models": True, "setup_timeout_s": 0.5, **settings}),
        )

    def open_agent(self, name: str, *, journal: Journal | None = None) -> SiteAgent:
        """One site's agent, from its disk."""
        return SiteAgent.open(self.homes[name].root, passphrase=PASSPHRASE, journal=journal)

    def agents(self, *, journal: Journal | None = None) -> AbstractContextManager[dict[str, Handle]]:
        """What answers for each site, by name."""
        return self.agents_of(*self.names, journal=journal)

    @contextmanager
    def agents_of(self, *names: str, journal: Journal | None = None) -> Iterator[dict[str, Handle]]:
        """What answers for some sites, by name."""
        with ExitStack() as opened:
            yield {name: opened.enter_context(self.open_agent(name, journal=journal)).handle for name in names}

    def train(
        self, handlers: Mapping[str, Handle], *, tap: Tap | None = None, journal: Journal | None = None
    ) -> RunResult:
        """The coordinator's run over Flower's Grid, with these functions as its nodes."""
        nodes = site_handlers({number: handlers[name] for number, name in enumerate(sorted(handlers), start=1)})
        with task_identity():
            exchange = GridExchange(InlineGrid(nodes, tap=tap))
            return run_from_directory(self.root, exchange, passphrase=PASSPHRASE, journal=journal)

    @contextmanager
    def ledger(self, name: str) -> Iterator[BudgetLedger]:
        """A site's ledger while no agent holds it."""
        home = self.homes[name]
        with BudgetLedger.open(home.ledger_path, site=name, key=home.identity) as ledger:
            yield ledger

    def charged(self, name: str) -> dict[tuple[int, int], str]:
        """State of each (round, attempt) that a site charged in this run."""
        with self.ledger(name) as ledger:
            account = ledger.account(POPULATION)
            lines = self.homes[name].ledger_path.read_bytes().splitlines()
            keys = [key for line in lines if (key := parse_line(line)[0].key) and key.run_id == self.manifest.run_id]
            states = {key: charge.state.value for key in keys if (charge := account.attempt(key))}
            return {(key.round_number, key.attempt): state for key, state in states.items()}

    # The coordinator's messages, written by hand.

    def envelope(self, body: Message, recipient: str, *, key: SigningKey | None = None, run_id: str = "") -> bytes:
        """A request as the coordinator signs it."""
        run_id = run_id or self.manifest.run_id
        return write_envelope(body, key=key or self.coordinator, run_id=run_id, sender=COORDINATOR, recipient=recipient)

    def offer(
        self, *, plan: TrainingPlan | None = None, manifest: Manifest | None = None, heads: Sequence[pb.Head] = ()
    ) -> bytes:
        """An offer of this plan and manifest, or of others."""
        plan, manifest = plan or self.plan, manifest or self.manifest
        body = pb.Offer(plan=canonical_json(plan.to_json()), manifest=canonical_json(manifest.to_json()), heads=heads)
        return self.envelope(body, ANY_SITE, run_id=manifest.run_id)

    def round_request(
        self,
        site: str,
        round_number: int = 1,
        attempt: int = 1,
        *,
        cohort: Sequence[str] = (),
        parameters: NDArray[np.float32] | None = None,
        ciphertexts: Sequence[pb.Ciphertext] = (),
        heads: Sequence[pb.Head] = (),
    ) -> bytes:
        """A request for one attempt, over all sites and at the zero model unless said."""
        body = pb.Round(
            round=round_number,
            attempt=attempt,
            cohort=list(cohort) or self.names,
            parameters=parameters_to_bytes(self.zero_model if parameters is None else parameters),
            ciphertexts=[item for item in ciphertexts if item.recipient == site],
            heads=heads,
        )
        return self.envelope(body, site)

    @property
    def zero_model(self) -> NDArray[np.float32]:
        """Where a linear model starts."""
        return np.zeros(dimension(self.plan.model, len(CLASSES)), dtype=np.float32)

    def opened(self, site: str, reply: bytes) -> Any:
        """A site's reply, verified and typed."""
        envelope = read_envelope(reply)
        verify_envelope(
            envelope,
            key=self.trust.site_key(site),
            run_id=envelope.run_id,
            sender=site,
            recipient=COORDINATOR,
        )
        kind = {found.DESCRIPTOR.name.lower(): found for found in LEAVES_A_SITE}[envelope.kind]
        return read_body(envelope, kind)

    def shake_hands(self, handlers: Mapping[str, Handle]) -> list[pb.Ciphertext]:
        """Offer and key exchange by hand; returns every ciphertext."""
        joined = [handlers[name](self.offer()) for name in self.names]
        request = pb.Keys(joined=joined)
        replies = {name: handlers[name](self.envelope(request, name)) for name in self.names}
        return [item for name in self.names for item in self.opened(name, replies[name]).ciphertexts]


def make_manifest(plan: TrainingPlan, homes: Mapping[str, SiteHome], coordinator: SigningKey) -> Manifest:
    """The manifest of a run of the plan over these sites."""
    roster = [
        RosterEntry(name=name, identity_key=home.identity.public_key.text, nominal_patients=PATIENTS[name])
        for name, home in homes.items()
    ]
    return build_manifest(
        plan,
        run_id=RUN_ID,
        roster=roster,
        coordinator_key=coordinator.public_key.text,
        noise_multiplier=calibrate_plan(plan),
    )


def make_federation(
    root: Path, *, sites: int = 4, plan: TrainingPlan | None = None, epsilon_limits: Mapping[str, float] | None = None
) -> Federation:
    """Homes, keys, rules, data and approvals for the first `sites` names, and a prepared run.

    Args:
        epsilon_limits: A smaller budget for some sites; the others get just what the plan needs.
    """
    plan = plan or make_plan()
    features = plan.model.inputs[0]
    coordinator = SigningKey.generate()
    names = sorted(PATIENTS)[:sites]
    homes = {name: create_home(root / "sites" / name, name=name, passphrase=PASSPHRASE) for name in names}
    trust = TrustFile(
        coordinator=coordinator.public_key.text,
        sites={name: home.identity.public_key.text for name, home in homes.items()},
    )
    manifest = make_manifest(plan, homes, coordinator)
    budget, admission = budget_for(plan, manifest)
    identifiers: list[tuple[str, ...]] = []
    tables = root.with_name(f"{root.name}-tables")
    tables.mkdir()
    for name, home in homes.items():
        home.install_trust(trust)
        limit = (epsilon_limits or {}).get(name)
        own = budget if limit is None else replace(budget, epsilon=limit)
        home.install_policy(policy_text(POPULATION, own, manifest))
        table = make_table(name, patients=PATIENTS[name], features=features)
        table.write_csv(tables / f"{name}.csv")
        with BudgetLedger.open(home.ledger_path, site=name, key=home.identity) as ledger:
            intake_table(
                home,
                ledger,
                path=tables / f"{name}.csv",
                schema=make_schema(features),
                dataset=POPULATION,
                classes=CLASSES,
                admission=admission,
            )
        home.approve(plan.digest, population=POPULATION)
        identifiers += [identifiers_of(row) for row in table.unique("mrn").iter_rows(named=True)]
    made = Federation(
        root=root,
        plan=plan,
        manifest=manifest,
        coordinator=coordinator,
        trust=trust,
        homes=homes,
        identifiers=tuple(identifiers),
    )
    made.prepare()
    return made


# What a site may do to a message, and what only a test may look at.


def request_in(data: bytes) -> Any:
    """The body of a coordinator's request."""
    envelope = read_envelope(data)
    kind = {found.DESCRIPTOR.name.lower(): found for found in REACHES_A_SITE}[envelope.kind]
    return read_body(envelope, kind)


def is_round(data: bytes, *wanted: tuple[int, int]) -> bool:
    """Whether a request is for one of these (round, attempt)s; for any at all if none is given."""
    body = request_in(data)
    return isinstance(body, pb.Round) and (not wanted or (body.round, body.attempt) in wanted)


def silent_at(handle: Handle, *attempts: tuple[int, int]) -> Handle:
    """A site that these requests never reach."""

    def answer(data: bytes) -> bytes:
        if is_round(data) and is_round(data, *attempts):
            raise TimeoutError
        return handle(data)

    return answer


def lost_at(handle: Handle, *attempts: tuple[int, int]) -> Handle:
    """A site that answers, but whose answers to these requests get lost on their way."""

    def answer(data: bytes) -> bytes:
        reply = handle(data)
        if is_round(data, *attempts):
            raise TimeoutError
        return reply

    return answer


def unmasked_units(federation: Federation, name: str, answer: pb.Masked, cohort: Sequence[str]) -> NDArray[np.int64]:
    """A site's contribution without its masks: only the site, which knows the pair secrets, could work it out."""
    state = load_state(federation.homes[name], federation.manifest.run_id)
    size = federation.manifest.dimension
    mask = apply_masks(
        np.zeros(size, dtype=np.uint32),
        own_name=name,
        pair_secrets={peer: state.pair_secrets[peer] for peer in cohort if peer != name},
        context=bytes.fromhex(answer.context.removeprefix("sha256:")),
    )
    return from_ring(vector_from_bytes(answer.vector, dimension=size) - mask)


def clipped_units(federation: Federation, name: str) -> NDArray[np.int64]:
    """A site's true clipped sum at the zero model, on the grid and without noise."""
    plan = federation.plan
    batch = load_dataset(federation.homes[name], POPULATION, classes=len(CLASSES))
    batch = replace(batch, features=normalise(plan.normalisation, batch.features))
    engine, _ = choose_engine(plan.model, len(CLASSES))
    total = engine.clipped_sum(federation.zero_model, batch, clipping_norm=plan.privacy.clipping_norm)
    return quantise(total, grid_of(plan, federation.manifest))


def spend_everything(ledger: BudgetLedger, event: MechanismEvent) -> None:
    """What other runs might do to a budget: charge until nothing fits any more."""
    for number in range(1000):
        try:
            ledger.reserve(POPULATION, run_id="another-run", round_number=number, attempt=1, event=event)
        except PrivacyBudgetExhausted:
            return
