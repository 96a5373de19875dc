"""What was registered, by the name that people gave it: `datasets.sealed`, for the site's own eyes.

Records are features in a fixed order and labels as indices. Of which classes, and under which public backbone, stands
here: a plan that means others would learn from the wrong labels or from foreign features without anybody noticing.
"""

import json
from typing import Literal

from pydantic import Field

from client.home import SiteHome
from common.canonical import canonical_json
from common.errors import DataRefused
from common.plan import TrainingPlan
from common.settings import Settings, parse_settings

CATALOGUE_FILE = "datasets.sealed"


class Dataset(Settings):
    """One registered data set.

    Attributes:
        population: Whose budget it spends.
        records, quarantined, rejected: What became of the table's rows; records were released.
        patients: Of this data set.
        classes: Names, in the order of the labels' indices.
        inputs: Shape of one record.
        backbone: What features were computed with; `none` for a table's own columns.
        weights: `sha256:<hex>` of the backbone's weights; empty without one.
        schema_digest: Of the declared schema.
        added: When, RFC 3339.
    """

    population: str
    records: int = Field(ge=0)
    quarantined: int = Field(ge=0)
    rejected: int = Field(ge=0)
    patients: int = Field(ge=0)
    classes: tuple[str, ...]
    inputs: tuple[int, ...]
    backbone: str = "none"
    weights: str = ""
    schema_digest: str
    added: str


class Catalogue(Settings):
    """Every data set by name, newest of a population last."""

    version: Literal[1] = 1
    datasets: dict[str, Dataset] = Field(default_factory=dict)

    def of_population(self, population: str) -> tuple[str, Dataset] | None:
        """The data set whose records a population has; None if it was registered without a catalogue."""
        found = [(name, dataset) for name, dataset in self.datasets.items() if dataset.population == population]
        return found[-1] if found else None


def read_catalogue(home: SiteHome) -> Catalogue:
    """What was registered; empty before the first data set. Raises TrustError if the file was changed."""
    try:
        content = home.unseal(home.root / CATALOGUE_FILE)
    except FileNotFoundError:
        return Catalogue()
    return parse_settings(json.loads(content), Catalogue, source=CATALOGUE_FILE)


def enter_dataset(home: SiteHome, name: str, dataset: Dataset) -> None:
    """Enter a data set; the one whose records it replaced leaves the list."""
    kept = {
        other: known for other, known in read_catalogue(home).datasets.items() if known.population != dataset.population
    }
    kept.pop(name, None)
    document = Catalogue(datasets={**kept, name: dataset}).model_dump(mode="json")
    home.seal(home.root / CATALOGUE_FILE, canonical_json(document))


def check_registered(home: SiteHome, plan: TrainingPlan, population: str) -> None:
    """Return only if a population was registered for the plan's classes and backbone, as far as that is known.

    Raises:
        DataRefused: Otherwise.
    """
    known = read_catalogue(home).of_population(population)
    if known is None:
        return
    name, dataset = known
    if dataset.classes != plan.task.classes:
        raise DataRefused(
            f"{home.name}: data set {name!r} was registered for the classes {list(dataset.classes)}, the plan has "
            f"{list(plan.task.classes)}, in this order",
            hint="register the data set again with --classes as in the plan",
        )
    asked = (plan.model.backbone, plan.model.weights)
    if asked != (dataset.backbone, dataset.weights):
        raise DataRefused(
            f"{home.name}: data set {name!r} has the features of backbone {dataset.backbone!r} with weights "
            f"{dataset.weights[:19] or 'none'}, the plan wants {asked[0]!r} with {asked[1][:19] or 'none'}",
            hint="register the data set again with the weights that the plan pins",
        )
