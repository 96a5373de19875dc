"""Which data a site has, whose budget each data set spends, and the sealed features themselves."""

import hmac
import json
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from client.data.catalogue import check_registered
from client.home import SiteHome
from client.training.batch import PatientBatch
from common.canonical import canonical_json
from common.errors import DataRefused, LedgerCorrupt
from common.plan import TrainingPlan
from common.privacy.admission import AdmissionFilter
from common.privacy.budget import PrivacyBudget, PrivacyUnit
from common.privacy.ledger import BudgetLedger


@dataclass(frozen=True, slots=True, kw_only=True)
class DataParts:
    """The records of one population, every patient in exactly one part; each part's units are those of the budget.

    Attributes:
        patients: Of both parts together; patients, whatever the budget's unit is.
    """

    training: PatientBatch
    held_out: PatientBatch
    patients: int


def register_dataset(
    home: SiteHome,
    ledger: BudgetLedger,
    *,
    dataset: str,
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    classes: int,
    patients: Sequence[str],
    patient_ids: Sequence[str],
    admission: AdmissionFilter,
    record_ids: Sequence[str] | None = None,
) -> str:
    """Seal a data set and tie it to the population whose budget it spends.

    A data set that shares a patient with a population joins it, whatever its name; otherwise it opens a population
    of its own name, with the budget that the site's policy gives that name.

    Args:
        features: Shape (n, *inputs), finite.
        labels: Shape (n,), class indices below `classes`.
        classes: How many classes were declared, whether or not all occur.
        patients: n pseudonyms, one a record.
        patient_ids: Every patient's own identifier, for keyed tags; the identifiers themselves are not kept.
        record_ids: n identifiers, one a record, by which patients are drawn for evaluation (`draw_lots`); by default
            the pseudonyms.

    Returns:
        The name of the population.

    Raises:
        DataRefused: If it is empty, has values that are no finite numbers or labels that are no class, belongs to two
            populations, or the policy has no budget for it.
        LedgerCorrupt: If the ledger lacks a population that was registered here.
    """
    if len(labels) == 0:
        raise DataRefused(f"{home.name}: data set {dataset!r} has 0 records", hint="register at least one patient")
    broken = int(np.count_nonzero(~np.isfinite(features).reshape(len(features), -1).all(axis=1)))
    if broken:
        raise DataRefused(
            f"{home.name}: {broken} of {len(features)} records hold values that are not finite numbers",
            hint="impute or remove them before registration; a missing value is not a number",
        )
    strange = int(np.count_nonzero((labels < 0) | (labels >= classes)))
    if strange:
        raise DataRefused(f"{home.name}: {strange} of {len(labels)} labels are not one of {classes} classes")
    known = _populations(home)
    check_populations(home, ledger)
    tags = _tags(home, patient_ids)
    shared = [name for name, held in known.items() if not tags.isdisjoint(held)]
    if len(shared) > 1:
        raise DataRefused(f"{home.name}: data set {dataset!r} shares patients with {len(shared)} populations")
    population = shared[0] if shared else dataset
    if population not in ledger.populations:
        _open_population(home, ledger, population, admission)
    _, first, codes = np.unique(np.asarray(patients, dtype=str), return_index=True, return_inverse=True)
    order = np.argsort(codes, kind="stable")
    named = patients if record_ids is None else record_ids
    arrays: dict[str, NDArray[np.generic]] = {
        "features": np.ascontiguousarray(features[order], dtype=np.float32),
        "labels": np.ascontiguousarray(labels[order], dtype=np.int64),
        "patients": np.ascontiguousarray(codes[order], dtype=np.int64),
        "classes": np.array([classes], dtype=np.int64),
        "lots": draw_lots(home, [named[row] for row in first]),
    }
    # Whose budget it is stands on disk before there is anything to train on: no crash lets a patient have two.
    known[population] = sorted(tags | set(known.get(population, ())))
    home.seal(home.root / "populations.sealed", canonical_json(known))
    home.seal(home.root / "data" / f"{population}.sealed", save(arrays))
    return population


def load_dataset(home: SiteHome, population: str, *, classes: int) -> PatientBatch:
    """The records of a population; an empty batch if none are there any more.

    Raises:
        DataRefused: If they were registered for another number of classes. Whether the labels that occur would do is
            not looked at: a plan with fewer classes would learn from the answer whether the others occur.
    """
    return _read(home, population, classes=classes)[0]


def load_parts(
    home: SiteHome,
    population: str,
    *,
    classes: int,
    held_out: float | None,
    unit: PrivacyUnit = PrivacyUnit.PATIENT,
) -> DataParts:
    """The records of a population, parted into patients to train on and patients to evaluate.

    Who is held out follows from the site's own secret and the patient: the same for every run over the population, and
    for a larger share the same patients and more. No plan and no coordinator can choose it.

    Args:
        held_out: Share of the patients; None trains on all.
        unit: With RECORD every record of either part stands as a patient of its own. Who is held out is still decided
            for whole patients.

    Raises:
        DataRefused: As `load_dataset`, and if the data was registered before lots were drawn.
    """
    batch, lots = _read(home, population, classes=classes)
    if held_out is None:
        nobody = PatientBatch.empty(classes=classes)
        return DataParts(training=_in_units(batch, unit), held_out=nobody, patients=batch.patient_count)
    if batch.patient_count and lots is None:
        raise DataRefused(
            f"{home.name}: the records of {population!r} were registered before patients were drawn for evaluation",
            hint="register them again",
        )
    drawn = is_held_out(lots, held_out) if lots is not None else np.zeros(0, dtype=np.bool_)
    training, evaluated = batch.select(np.flatnonzero(~drawn)), batch.select(np.flatnonzero(drawn))
    return DataParts(
        training=_in_units(training, unit), held_out=_in_units(evaluated, unit), patients=batch.patient_count
    )


def count_patients(home: SiteHome, population: str) -> int:
    """How many patients of a population have records here; for the site's own eyes alone. 0 if there are none."""
    try:
        arrays = load(home.unseal(home.root / "data" / f"{population}.sealed"))
    except FileNotFoundError:
        return 0
    return len(np.unique(arrays["patients"]))


def check_data(home: SiteHome, plan: TrainingPlan, population: str, *, minimum_patients: int) -> None:
    """Return only if a population's records are what a plan learns from, and enough of them.

    Raises:
        DataRefused: With the number and its limit, which no refusal on the wire carries.
    """
    parts = load_parts(home, population, classes=len(plan.task.classes), held_out=plan.evaluation.held_out)
    check_enough(home, parts, minimum_patients=minimum_patients)
    check_registered(home, plan, population)
    found = parts.training.features.shape[1:]
    if found != plan.model.inputs:
        raise DataRefused(
            f"{home.name}: the records of {population!r} have the shape {list(found)}, the plan learns from "
            f"{list(plan.model.inputs)}",
            hint="register the data under the schema that the consortium agreed on",
        )


def check_enough(home: SiteHome, parts: DataParts, *, minimum_patients: int) -> None:
    """Return only if there are as many patients as the policy asks for; else raise DataRefused."""
    if parts.patients < minimum_patients:
        raise DataRefused(
            f"{home.name}: {parts.patients} patients are fewer than minimum_patients = {minimum_patients}",
            hint="register more patients, or lower minimum_patients in policy.toml and sign it",
        )


def population_of(home: SiteHome, patient_ids: Sequence[str]) -> str | None:
    """The population that one of these patients belongs to already; None if all of them are new.

    Raises:
        DataRefused: If they belong to more than one.
    """
    tags = _tags(home, patient_ids)
    shared = [name for name, held in _populations(home).items() if not tags.isdisjoint(held)]
    if len(shared) > 1:
        raise DataRefused(f"{home.name}: the table shares patients with {len(shared)} populations")
    return shared[0] if shared else None


def draw_lots(home: SiteHome, identifiers: Sequence[str]) -> NDArray[np.uint64]:
    """One number for each patient, uniform in 0..2**64-1 to whoever lacks the site's secret, and always the same."""
    key = home.secret("tags")
    lots = [hmac.digest(key, b"held-out\0" + _one_spelling(patient).encode(), "sha256")[:8] for patient in identifiers]
    return np.array([int.from_bytes(lot, "big") for lot in lots], dtype=np.uint64)


def is_held_out(lots: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """Which patients are evaluated and never trained on: those whose lot lies below `share` of the range."""
    return lots < np.uint64(math.floor(math.ldexp(share, 64)))


def check_populations(home: SiteHome, ledger: BudgetLedger) -> None:
    """Return only if every population with data here stands in the ledger; else it was deleted or replaced.

    Raises:
        LedgerCorrupt: Otherwise. A ledger that begins anew would give spent populations a fresh budget.
    """
    lost = _populations(home).keys() - set(ledger.populations)
    if lost:
        raise LedgerCorrupt(
            f"entry {ledger.head.seq + 1}: missing; {len(lost)} registered populations are not in this ledger",
            hint="the ledger was deleted or an old copy was restored; put back the newest copy of ledger.jsonl and "
            "ledger.head, and never begin a new one for the same patients",
        )


def _open_population(home: SiteHome, ledger: BudgetLedger, population: str, admission: AdmissionFilter) -> None:
    limit = home.policy().budget.get(population)
    if limit is None:
        raise DataRefused(
            f"{home.name}: the policy has no budget for population {population!r}",
            hint=f"add [budget.{population}] with epsilon, epsilon_alone and delta to policy.toml",
        )
    budget = PrivacyBudget(
        epsilon=limit.epsilon, epsilon_alone=limit.epsilon_alone, delta=limit.delta, unit=PrivacyUnit(limit.unit)
    )
    ledger.open_population(population, budget=budget, admission=admission)


def _read(home: SiteHome, population: str, *, classes: int) -> tuple[PatientBatch, NDArray[np.uint64] | None]:
    """All records and each patient's lot; no lots if they were registered before those existed."""
    try:
        arrays = load(home.unseal(home.root / "data" / f"{population}.sealed"))
    except FileNotFoundError:
        return PatientBatch.empty(classes=classes), None
    declared = int(arrays["classes"][0]) if "classes" in arrays else classes
    if declared != classes:
        raise DataRefused(f"{home.name}: the data has {declared} classes, the plan {classes}")
    batch = PatientBatch(
        features=arrays["features"], labels=arrays["labels"], patients=arrays["patients"], classes=classes
    )
    return batch, arrays.get("lots")


def _in_units(batch: PatientBatch, unit: PrivacyUnit) -> PatientBatch:
    return batch.by_record() if unit is PrivacyUnit.RECORD else batch


def _populations(home: SiteHome) -> dict[str, list[str]]:
    try:
        known: dict[str, list[str]] = json.loads(home.unseal(home.root / "populations.sealed"))
    except FileNotFoundError:
        return {}
    return known


def _tags(home: SiteHome, patient_ids: Sequence[str]) -> set[str]:
    key = home.secret("tags")
    return {hmac.digest(key, _one_spelling(patient).encode(), "sha256").hex() for patient in patient_ids}


def _one_spelling(patient: str) -> str:
    """An identifier without what differs between two exports of it: case, blanks, invisible characters, encoding."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", patient).casefold())
    return "".join(sign for sign in folded if not sign.isspace() and unicodedata.category(sign) not in ("Cc", "Cf"))
