"""Simulated hospitals: real site directories with their own keys, rules, budgets and de-identified data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.data.intake import FeatureMaker, intake_table
from client.data.registry import draw_lots, is_held_out
from client.deid.report import DeidReport
from client.home import SiteHome, create_home
from common.charges import planned_events
from common.crypto.keys import SigningKey
from common.plan import Manifest, RosterEntry, TrainingPlan
from common.privacy.admission import AdmissionFilter, FilterCost
from common.privacy.budget import PrivacyBudget, PrivacyUnit, View
from common.privacy.ledger import BudgetLedger
from common.runplan import build_manifest
from common.trust import TrustFile
from simulations.datasets import SourceRows
from simulations.identities import add_identities, identifiers_of
from simulations.scenario import Scenario

LIMIT_STEP = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedSite:
    """One hospital of a simulation, and what only a simulator may know of it.

    Attributes:
        rows: Record indices of the source that belong to it.
        identifiers: For each of its patients every string that would identify the patient.
        held_out: Which of the rows the site evaluates and never trains on; None without evaluation.
    """

    home: SiteHome
    rows: NDArray[np.int64]
    patients: int
    deid: DeidReport
    identifiers: tuple[tuple[str, ...], ...]
    held_out: NDArray[np.bool_] | None = None

    @property
    def training_rows(self) -> NDArray[np.int64]:
        """The rows that the site trains on."""
        return self.rows if self.held_out is None else self.rows[~self.held_out]

    @property
    def held_out_rows(self) -> NDArray[np.int64]:
        """The rows that the site evaluates; none without evaluation."""
        return self.rows[:0] if self.held_out is None else self.rows[self.held_out]


def site_names(count: int, named: Sequence[str] = ()) -> list[str]:
    """The sites' own names, or else `hospital-1` …, padded so that they sort."""
    if named:
        return list(named)
    width = len(str(count))
    return [f"hospital-{number:0{width}d}" for number in range(1, count + 1)]


def create_homes(sites_dir: Path, *, count: int, passphrase: bytes, named: Sequence[str] = ()) -> list[SiteHome]:
    """Fresh site directories, each with its own keys."""
    return [create_home(sites_dir / name, name=name, passphrase=passphrase) for name in site_names(count, named)]


def make_roster(homes: Sequence[SiteHome], weights: Sequence[float], nominal_patients: int) -> tuple[RosterEntry, ...]:
    """Public roster: names, keys, and nominal sizes as the scenario publishes them, at least 1 each."""
    return tuple(
        RosterEntry(
            name=home.name,
            identity_key=home.identity.public_key.text,
            nominal_patients=max(1, round(weight * nominal_patients)),
        )
        for home, weight in zip(homes, weights, strict=True)
    )


def make_manifest(
    scenario: Scenario,
    plan: TrainingPlan,
    homes: Sequence[SiteHome],
    *,
    run_id: str,
    coordinator: SigningKey,
    noise_multiplier: float,
) -> Manifest:
    """The manifest of a simulated run."""
    return build_manifest(
        plan,
        run_id=run_id,
        roster=make_roster(homes, scenario.sites.weights, plan.privacy.nominal_patients),
        coordinator_key=coordinator.public_key.text,
        noise_multiplier=noise_multiplier,
    )


def pin_keys(homes: Sequence[SiteHome], coordinator: SigningKey) -> TrustFile:
    """What enrolment does out of band: every site gets the others' keys and the coordinator's."""
    trust = TrustFile(
        coordinator=coordinator.public_key.text,
        sites={home.name: home.identity.public_key.text for home in homes},
    )
    for home in homes:
        home.install_trust(trust)
    return trust


def budget_for(plan: TrainingPlan, manifest: Manifest) -> tuple[PrivacyBudget, AdmissionFilter]:
    """The smallest limits, in steps of 0.5 above the plan's epsilon, that let one run of the plan through.

    A simulated administrator reads what the plan would cost, evaluation included, and grants just that.
    """
    generous = PrivacyBudget(epsilon=1e6, epsilon_alone=1e6, delta=plan.privacy.delta)
    target = PrivacyBudget(
        epsilon=plan.privacy.epsilon, epsilon_alone=max(1e6, plan.privacy.epsilon), delta=plan.privacy.delta
    )
    admission = AdmissionFilter.gaussian() if manifest.sampling_rate == 1.0 else AdmissionFilter.rdp(target)
    total = FilterCost()
    for event, times in planned_events(manifest):
        one = admission.cost(event)
        total += FilterCost(trusted=one.trusted * times, alone=one.alone * times)
    limits = {}
    for view in View:
        reached = admission.reached_epsilon(total, generous.delta, view)
        steps = math.ceil(max(reached - plan.privacy.epsilon, 0.0) / LIMIT_STEP - 1e-9)
        limits[view] = plan.privacy.epsilon + steps * LIMIT_STEP
    budget = PrivacyBudget(
        epsilon=limits[View.TRUSTED],
        epsilon_alone=max(limits[View.TRUSTED], limits[View.ALONE]),
        delta=plan.privacy.delta,
        unit=PrivacyUnit(plan.privacy.unit),
    )
    return budget, admission


def policy_text(population: str, budget: PrivacyBudget, manifest: Manifest) -> bytes:
    """The policy.toml of a simulated hospital."""
    return (
        "version = 1\n"
        "minimum_patients = 1\n"
        f"minimum_cohort = {manifest.minimum_cohort}\n"
        f"colluding_at_least = {manifest.colluding}\n"
        f"maximum_delta = {budget.delta!r}\n"
        "auto_approve = false\n"
        f"[budget.{population}]\n"
        f"epsilon = {budget.epsilon!r}\n"
        f"epsilon_alone = {budget.epsilon_alone!r}\n"
        f"delta = {budget.delta!r}\n"
        f'unit = "{budget.unit.value}"\n'
    ).encode()


def open_site(
    home: SiteHome,
    *,
    source: SourceRows,
    rows: NDArray[np.int64],
    scenario: Scenario,
    plan: TrainingPlan,
    manifest: Manifest,
    records_dir: Path,
    seed: int,
    features: FeatureMaker | None = None,
) -> SimulatedSite:
    """Give a hospital its records, its rules and its budget, and approve the plan there.

    The raw table with invented identities is written to `records_dir`, which stands for the hospital's own systems and
    is no part of a run's results.
    """
    budget, admission = budget_for(plan, manifest)
    home.install_policy(policy_text(scenario.name, budget, manifest))
    table = _with_identities(source, rows, site=home.name, seed=seed)
    path = records_dir / f"{home.name}.csv"
    table.write_csv(path)
    with BudgetLedger.open(home.ledger_path, site=home.name, key=home.identity) as ledger:
        report = intake_table(
            home,
            ledger,
            path=path,
            schema=scenario.deid,
            dataset=scenario.name,
            classes=plan.task.classes,
            admission=admission,
            features=features,
        )
    home.approve(plan.digest, population=scenario.name)
    people = table.unique("mrn", keep="first", maintain_order=True)
    share = plan.evaluation.held_out
    drawn = None if share is None else is_held_out(draw_lots(home, table.get_column("mrn").to_list()), share)
    return SimulatedSite(
        home=home,
        rows=rows,
        patients=people.height,
        deid=report,
        identifiers=tuple(identifiers_of(row) for row in people.iter_rows(named=True)),
        held_out=drawn,
    )


def _with_identities(source: SourceRows, rows: NDArray[np.int64], *, site: str, seed: int) -> pl.DataFrame:
    """The hospital's own table: one invented person a patient, repeated on each of the patient's records."""
    _, person_of_row = np.unique(source.patients[rows], return_inverse=True)
    count = int(person_of_row.max()) + 1 if len(rows) else 0
    people = add_identities(pl.DataFrame({"patient_row": np.arange(count)}), site=site, seed=seed)
    people = people.drop("patient_row")
    return people[person_of_row].hstack(source.frame[rows].get_columns())
