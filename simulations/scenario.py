"""A scenario: which data, how it is spread over sites, what is stripped from it, and the plan to train."""

import difflib
import math
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from client.deid.rules import TableSchema
from common.errors import ConfigurationError
from common.plan import MAXIMUM_SITES, MINIMUM_SITES, TrainingPlan
from common.settings import Settings, parse_settings, read_settings


class DataSection(Settings):
    """Where the records come from and which of them are public.

    Attributes:
        source: `sklearn:breast_cancer`, or `images` (a directory given with --data, with an index.csv).
        positive: The class that counts as positive.
        public_rows: Public rows (patients, for images), fixed by the scenario and the same for every seed.
        public_tuning_rows: How many of those serve normalisation constants and tuning; the others are the test rows.
    """

    source: Literal["sklearn:breast_cancer", "images"]
    positive: str
    public_rows: int = Field(ge=10)
    public_tuning_rows: int = Field(ge=2)

    @model_validator(mode="after")
    def _some_are_left_for_testing(self) -> Self:
        if self.public_tuning_rows >= self.public_rows:
            raise ValueError("public_tuning_rows must be below public_rows")
        return self


class SitesSection(Settings):
    """How the private rows are spread.

    Attributes:
        shares: Relative sizes; their number is `count`.
        label_skew: 0 gives every site the same mix of labels, 1 gives each one label as far as the sizes allow.
    """

    count: int = Field(ge=MINIMUM_SITES, le=MAXIMUM_SITES)
    shares: tuple[float, ...] = ()
    label_skew: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if self.shares and (len(self.shares) != self.count or min(self.shares) <= 0):
            raise ValueError(f"shares needs {self.count} positive numbers")
        return self

    @property
    def weights(self) -> tuple[float, ...]:
        """One weight a site, summing to 1; unequal by default, since hospitals are."""
        raw = self.shares or tuple(float(self.count - index) for index in range(self.count))
        return tuple(share / sum(raw) for share in raw)


class PoissonRecipe(Settings):
    """Tuned settings of Poisson-sampled DP-SGD for one epsilon."""

    epsilon: float = Field(gt=0)
    sampling_rate: float = Field(gt=0, le=1)
    steps: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    clipping_norm: float = Field(gt=0)
    averaging: float = Field(default=0.9, ge=0, lt=1)


class ComparisonSection(Settings):
    """Tuned settings of the peers in the comparison.

    Attributes:
        poisson: Of Poisson-sampled DP-SGD on the pooled rows; the entry nearest in log epsilon is taken.
        nonprivate_*: Of the runs without privacy: full-batch descent with momentum 0.9, and FedAvg.
        local_*: Of federated training with each site's own full noise.
    """

    poisson: tuple[PoissonRecipe, ...] = Field(min_length=1)
    nonprivate_rounds: int = Field(default=60, ge=1)
    nonprivate_learning_rate: float = Field(default=0.3, gt=0)
    nonprivate_local_steps: int = Field(default=5, ge=1)
    nonprivate_local_learning_rate: float = Field(default=0.3, gt=0)
    local_steps: int = Field(default=1, ge=1)
    local_learning_rate: float = Field(default=1.0, gt=0)

    def poisson_for(self, epsilon: float) -> PoissonRecipe:
        """The recipe tuned for the nearest epsilon."""
        return min(self.poisson, key=lambda recipe: abs(math.log(recipe.epsilon / epsilon)))


class Scenario(Settings):
    """One simulation, as its TOML file describes it."""

    version: Literal[1] = 1
    name: str = Field(default="", pattern=r"^([a-z0-9][a-z0-9-]{0,40})?$")
    title: str
    data: DataSection
    sites: SitesSection
    deid: TableSchema
    plan: TrainingPlan
    comparison: ComparisonSection


def scenario_names() -> list[str]:
    """The scenarios that come with Fedward."""
    folder = files("simulations") / "scenarios"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_scenario(name: str) -> Scenario:
    """A scenario by its name, or from a TOML file of one's own.

    Raises:
        ConfigurationError: If there is none of that name, or the file does not fit; the message names the nearest.
    """
    path = Path(name)
    if name.endswith(".toml"):
        scenario = read_settings(path, Scenario)
        return scenario.model_copy(update={"name": scenario.name or path.stem})
    known = scenario_names()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        nearest = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known)}"
        raise ConfigurationError(f"unknown scenario {name!r}; {nearest}", hint="or give the path of a .toml file")
    found = Path(str(files("simulations") / "scenarios" / f"{name}.toml"))
    return read_settings(found, Scenario).model_copy(update={"name": name})


def with_overrides(
    scenario: Scenario,
    *,
    sites: int | None = None,
    rounds: int | None = None,
    epsilon: float | None = None,
    mode: str | None = None,
) -> Scenario:
    """The scenario with what the command line says instead; checked as a whole again."""
    document: dict[str, Any] = scenario.model_dump(mode="json", exclude={"deid"})
    document["deid"] = scenario.deid
    if sites is not None and sites != scenario.sites.count:
        if sites < MINIMUM_SITES:
            raise ConfigurationError(
                f"--sites {sites}: the minimum is {MINIMUM_SITES}",
                hint="with two sites each learns the other's update from the sum",
            )
        document["sites"] = {"count": sites, "label_skew": scenario.sites.label_skew}
    plan = document["plan"]
    if rounds is not None:
        plan["training"]["rounds"] = rounds
    if epsilon is not None:
        plan["privacy"]["epsilon"] = epsilon
    if mode is not None:
        plan["training"]["mode"] = mode
        if mode == "local":
            plan["training"]["local_steps"] = scenario.comparison.local_steps
            plan["training"]["local_learning_rate"] = scenario.comparison.local_learning_rate
    return parse_settings(document, Scenario, source="the command line")
