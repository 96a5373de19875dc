"""A table or a directory of pictures becomes a data set of this site, under a budget that its policy grants."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from client.data.catalogue import Dataset, enter_dataset, read_catalogue
from client.data.intake import FeatureMaker, intake_records
from client.data.pictures import open_backbone, picture_features
from client.data.readers import RawTable, read_table
from client.data.registry import population_of
from client.deid.report import DeidReport
from client.deid.rules import TableSchema, read_schema
from client.home import SiteHome
from client.policy_template import budget_lines
from common.enrolment import SiteName
from common.errors import ConfigurationError, DataRefused
from common.privacy.admission import AdmissionFilter
from common.privacy.budget import PrivacyBudget, PrivacyUnit
from common.privacy.ledger import BudgetLedger
from common.settings import Settings, parse_settings

INDEX_FILE: Final = "index.csv"
BACKBONE: Final = "squeezenet1_1"


class _Named(Settings):
    name: SiteName


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """A data set that was just registered.

    Attributes:
        opened: Whether its population is new in the ledger.
        joined: Whether its patients belonged to a population already, whatever the data set is called.
        replaced: Name of the data set whose records it replaced; empty if there were none.
    """

    name: str
    dataset: Dataset
    report: DeidReport
    opened: bool
    joined: bool
    replaced: str

    def to_json(self) -> dict[str, Any]:
        """The result of `fedward site dataset add`."""
        return {
            "version": 1,
            "name": self.name,
            **self.dataset.model_dump(mode="json"),
            "opened": self.opened,
            "joined": self.joined,
            "replaced": self.replaced,
            "deid": self.report.to_json(),
        }


def add_dataset(
    home: SiteHome,
    *,
    source: Path,
    schema_path: Path,
    name: str,
    classes: Sequence[str] = (),
    weights: Path | None = None,
    sampled: bool = False,
    replace: bool = False,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Added:
    """De-identify a table, register what is left, and open its population if its patients are new.

    Args:
        source: A CSV table, or a directory of pictures with `index.csv`. It is only read.
        schema_path: TOML; which column is whose, and what becomes of each.
        name: Of the data set, and of the population if one is opened.
        classes: Names in the order that plans use; by default the values of the schema's label column.
        weights: Of the backbone, for pictures.
        sampled: Open the population for plans that draw patients; by default for full batches, which cost less.
        replace: Put these records in the place of those that the population has.

    Raises:
        ConfigurationError: If an argument is wrong, or an agent is running. DataRefused: If the data cannot be
            registered, or the policy grants no budget. TrustError: If the policy is not signed.
    """
    parse_settings({"name": name}, _Named, source="--name")
    schema = read_schema(schema_path)
    known = _classes(schema, classes)
    table, pictures = (source / INDEX_FILE, source) if source.is_dir() else (source, None)
    _check_kind(schema, pictures, weights)
    with _ledger(home) as ledger:
        raw = read_table(table)
        population, joined = _population(home, raw, schema, name)
        replaced = _check_replaces(home, name, population, replace=replace)
        opened = population not in ledger.populations
        admission = _admission(home, ledger, population, sampled=sampled)
        maker, backbone_weights = _maker(home, schema, pictures, weights)
        taken = intake_records(
            home,
            ledger,
            raw=raw,
            schema=schema,
            dataset=name,
            classes=known,
            admission=admission,
            features=maker,
        )
        dataset = Dataset(
            population=taken.population,
            records=taken.report.released,
            quarantined=taken.report.quarantined,
            rejected=taken.report.rejected,
            patients=taken.patients,
            classes=known,
            inputs=taken.inputs,
            backbone=BACKBONE if maker else "none",
            weights=backbone_weights,
            schema_digest=schema.digest,
            added=clock().astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        )
        enter_dataset(home, name, dataset)
    return Added(name=name, dataset=dataset, report=taken.report, opened=opened, joined=joined, replaced=replaced)


def _classes(schema: TableSchema, given: Sequence[str]) -> tuple[str, ...]:
    values = schema.rules[schema.named("label")[0]].values
    classes = tuple(given) or values
    if len(set(classes)) != len(classes) or len(classes) < 2:
        raise ConfigurationError(f"--classes {','.join(classes)}: at least two names, each once")
    missing = sorted(set(values) - set(classes))
    if missing:
        raise ConfigurationError(
            f"--classes lacks {len(missing)} of the {len(values)} values that the schema lets the label have",
            hint=f"the label's values are {', '.join(values)}, in the order that plans use",
        )
    return classes


def _check_kind(schema: TableSchema, pictures: Path | None, weights: Path | None) -> None:
    named = schema.named("image")
    if pictures is None and named:
        raise ConfigurationError(
            f"the schema's column {named[0]!r} names pictures, and a single table was given",
            hint=f"give the pictures' directory, with the table in it as {INDEX_FILE}",
        )
    if pictures is not None and len(named) != 1:
        raise ConfigurationError(
            f"a directory of pictures needs one column with role 'image' in the schema, not {len(named)}",
            hint='columns.file = { action = "drop", role = "image" }',
        )
    if pictures is not None and schema.named("feature"):
        raise ConfigurationError(
            f"the schema has {len(schema.named('feature'))} columns with role 'feature' beside its pictures",
            hint="features come from the pictures alone here: take the role away",
        )
    if pictures is not None and weights is None:
        raise ConfigurationError(
            f"pictures need the weights of {BACKBONE}", hint="give --weights FILE, the safetensors that plans pin"
        )


def _population(home: SiteHome, raw: RawTable, schema: TableSchema, name: str) -> tuple[str, bool]:
    """The population whose patients these are, else one of the data set's own name; and whether it was there."""
    shared = population_of(home, raw.column(schema.named("patient")[0]).to_list())
    return (name, False) if shared is None else (shared, True)


def _check_replaces(home: SiteHome, name: str, population: str, *, replace: bool) -> str:
    """The data set whose records would be replaced; raises DataRefused unless that is meant."""
    if not (home.root / "data" / f"{population}.sealed").exists():
        return ""
    known = read_catalogue(home).of_population(population)
    old = population if known is None else known[0]
    if not replace:
        raise DataRefused(
            f"{home.name}: population {population!r} has the records of data set {old!r}, and {name!r} would replace "
            "them; a population has one table",
            hint="put all of its patients' records into one table and give --replace; what was spent stays spent",
        )
    return old


def _admission(home: SiteHome, ledger: BudgetLedger, population: str, *, sampled: bool) -> AdmissionFilter:
    """How a population's charges will be summed; raises DataRefused if the policy gives it no budget."""
    limit = home.policy().budget.get(population)
    if limit is None:
        raise DataRefused(
            f"{home.name}: policy.toml grants population {population!r} no budget, and data is registered under one",
            hint=f"add these lines with your own limits, then fedward site policy --install policy.toml\n"
            f"{budget_lines(population)}",
        )
    if population in ledger.populations:
        return ledger.account(population).terms.admission
    budget = PrivacyBudget(
        epsilon=limit.epsilon, epsilon_alone=limit.epsilon_alone, delta=limit.delta, unit=PrivacyUnit(limit.unit)
    )
    return AdmissionFilter.rdp(budget) if sampled else AdmissionFilter.gaussian()


def _maker(
    home: SiteHome, schema: TableSchema, pictures: Path | None, weights: Path | None
) -> tuple[FeatureMaker | None, str]:
    if pictures is None or weights is None:
        return None, ""
    backbone = open_backbone(BACKBONE, weights)
    return picture_features(home, backbone, pictures, column=schema.named("image")[0]), backbone.weights


@contextmanager
def _ledger(home: SiteHome) -> Iterator[BudgetLedger]:
    try:
        ledger = BudgetLedger.open(home.ledger_path, site=home.name, key=home.identity)
    except ConfigurationError as error:
        raise ConfigurationError(
            error.fact,
            hint="the agent holds it while it runs: stop it, register the data, start it again "
            "(systemctl stop fedward-agent, or end fedward site up)",
        ) from error
    with ledger:
        yield ledger
