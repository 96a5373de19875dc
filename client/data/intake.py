"""A table becomes a registered data set: read, de-identified under the declared schema, sealed, tied to a budget."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.data.readers import RawTable, read_table
from client.data.registry import register_dataset
from client.deid.clean import CleanTable
from client.deid.escrow import Escrow
from client.deid.report import DeidReport, require_registrable
from client.deid.rules import TableSchema
from client.deid.tabular import deidentify
from client.home import SiteHome
from common.canonical import canonical_json
from common.errors import DataRefused
from common.files import write_atomic
from common.privacy.admission import AdmissionFilter
from common.privacy.ledger import BudgetLedger

FeatureMaker = Callable[[CleanTable, RawTable], NDArray[np.float32]]


def intake_table(
    home: SiteHome,
    ledger: BudgetLedger,
    *,
    path: Path,
    schema: TableSchema,
    dataset: str,
    classes: Sequence[str],
    admission: AdmissionFilter,
    features: FeatureMaker | None = None,
) -> DeidReport:
    """Register one CSV table and write its `deid.json`.

    Args:
        path: The table as the site has it, identities included. It is only read.
        classes: Class names; a label's index in this list is what the model learns.
        features: Makes shape (n, *inputs) from what was released; by default the declared feature columns.

    Returns:
        What de-identification did: counts and digests.

    Raises:
        DataRefused: If nothing is left to register, a value is not a finite number, or the table does not fit.
    """
    return intake_records(
        home,
        ledger,
        raw=read_table(path),
        schema=schema,
        dataset=dataset,
        classes=classes,
        admission=admission,
        features=features,
    ).report


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """What became of a table.

    Attributes:
        population: Whose budget its records spend.
        patients: Released ones.
        inputs: Shape of one record.
    """

    report: DeidReport
    population: str
    patients: int
    inputs: tuple[int, ...]


def intake_records(
    home: SiteHome,
    ledger: BudgetLedger,
    *,
    raw: RawTable,
    schema: TableSchema,
    dataset: str,
    classes: Sequence[str],
    admission: AdmissionFilter,
    features: FeatureMaker | None = None,
) -> Intake:
    """As `intake_table`, of a table that was read already."""
    escrow = Escrow(
        home.root / "escrow.sealed",
        seal=lambda plain: home.seal_for("escrow", plain),
        unseal=lambda sealed: home.unseal_for("escrow", sealed),
    )
    clean, report = deidentify(raw, schema, key=home.secret("pseudonyms"), escrow=escrow)
    require_registrable(report)
    matrix = _declared_features(clean) if features is None else features(clean, raw)
    index = {name: position for position, name in enumerate(classes)}
    strangers = sorted(set(clean.labels()) - set(index))
    if strangers:
        raise DataRefused(f"{home.name}: {len(strangers)} declared labels are not among the classes {list(classes)}")
    identifiers = raw.column(schema.named("patient")[0])
    population = register_dataset(
        home,
        ledger,
        dataset=dataset,
        features=matrix,
        labels=np.array([index[label] for label in clean.labels()], dtype=np.int64),
        classes=len(classes),
        patients=clean.patient_codes(),
        patient_ids=identifiers.to_list(),
        record_ids=identifiers.gather(clean.source_rows).to_list(),
        admission=admission,
    )
    write_atomic(home.root / "deid.json", canonical_json(report.to_json()) + b"\n")
    return Intake(
        report=report,
        population=population,
        patients=len(set(clean.patient_codes())),
        inputs=matrix.shape[1:],
    )


def _declared_features(clean: CleanTable) -> NDArray[np.float32]:
    return clean.feature_matrix().astype(np.float32)
