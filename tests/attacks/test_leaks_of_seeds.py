"""No seed of any settings, command or document reaches the noise: seeds fix splits and first models, nothing else."""

import ast
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chi2

from client.guard import attempt_event
from common.plan import Manifest, TrainingPlan
from common.policy import SitePolicy
from common.settings import Settings
from server.rundir import RunSettings
from simulations.run import Simulation, SimulationOptions, simulate
from simulations.scenario import Scenario
from tests.simulations.small import changed, silent

ROOT = Path(__file__).parents[2]
LEVEL = 1e-6
SUSPICIOUS = ("seed", "random", "rng", "generator", "entropy", "deterministic", "nonce", "noise_source")
DRAWS_NOISE = ("client/update.py", "client/evaluation.py", "client/training/local.py", "common/privacy/noise.py")

TENSOR_STREAMS = {"normal_", "uniform_", "random_", "bernoulli_", "exponential_"}
TORCH_STREAMS = {"manual_seed", "seed", "Generator", "rand", "rand_like", "randn", "randn_like", "randint", "randperm"}
TORCH_STREAMS |= {"normal", "bernoulli", "multinomial", "poisson"}

# Streams of a fixed seed in code that runs at a site, and what for. None of these modules may draw or import noise.
FIXED_STREAMS = {
    "client/training/self_check.py": "made-up records and weights on which an engine is checked",
    "client/training/opacus_hooks.py": "made-up records and weights on which an engine is checked",
    "common/model.py": "the public first model",
}


def python_files(*packages: str) -> Iterator[tuple[str, ast.Module]]:
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def names_in(tree: ast.Module) -> set[str]:
    """Names that a value can be given by: fields, parameters, keyword arguments, keys of literal dictionaries."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.keyword) and node.arg:
            found.add(node.arg)
        elif isinstance(node, ast.Dict):
            found |= {key.value for key in node.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}
    return found


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def seeded_streams(tree: ast.Module) -> list[str]:
    """Uses of generators that a seed could steer; one that the operating system seeds is none."""
    return [found for node in ast.walk(tree) if (found := _seeded_import(node) or _seeded_call(node))]


def _seeded_import(node: ast.AST) -> str:
    if isinstance(node, ast.Import):
        return next((alias.name for alias in node.names if alias.name.split(".")[0] == "random"), "")
    if isinstance(node, ast.ImportFrom) and node.module:
        by_module = node.module == "random" or node.module.endswith(".random")
        by_name = {alias.name for alias in node.names} & {"random", "default_rng", "manual_seed", "PCG64"}
        return node.module if by_module or by_name else ""
    return ""


def _seeded_call(node: ast.AST) -> str:
    if not isinstance(node, ast.Call):
        return ""
    name = dotted(node.func)
    if name.startswith(("np.random.", "numpy.random.", "torch.random.", "random.")):
        fresh = name.endswith("default_rng") and not node.args and not node.keywords
        return "" if fresh else name
    last = name.split(".")[-1]
    return name if last in TENSOR_STREAMS or (name.startswith("torch.") and last in TORCH_STREAMS) else ""


# Settings.


def models_in(model: type[Settings]) -> set[type[Settings]]:
    """A settings model and all that stand in it."""
    found: set[type[Settings]] = set()
    waiting: list[object] = [model]
    while waiting:
        kind = waiting.pop()
        if isinstance(kind, type) and issubclass(kind, Settings) and kind not in found:
            found.add(kind)
            waiting += [field.annotation for field in kind.model_fields.values()]
        waiting += list(getattr(kind, "__args__", ()))
    return found


def suspicious_fields(*models: type[Settings]) -> set[tuple[str, str]]:
    every = set().union(*(models_in(model) for model in models))
    return {
        (model.__name__, name)
        for model in every
        for name in model.model_fields
        if any(word in name for word in SUSPICIOUS)
    }


def test_what_a_site_agrees_to_has_no_field_for_a_seed() -> None:
    assert len(models_in(TrainingPlan)) >= 8
    assert suspicious_fields(TrainingPlan, Manifest, SitePolicy) == set()


def test_the_only_seed_of_all_settings_is_the_coordinators_for_the_first_model() -> None:
    assert suspicious_fields(Scenario, RunSettings) == {("RunSettings", "seed")}


def test_a_field_for_a_seed_would_be_found() -> None:
    class NoiseSection(Settings):
        noise_seed: int = 0

    class Plan(Settings):
        sections: tuple[NoiseSection | None, ...] = ()

    assert suspicious_fields(Plan) == {("NoiseSection", "noise_seed")}


# Code.


def test_no_code_of_a_site_takes_a_seed() -> None:
    taking = {path for path, tree in python_files("client") if any("seed" in name for name in names_in(tree))}
    assert taking == set()


def test_in_the_shared_code_only_the_first_model_takes_a_seed() -> None:
    taking = {path for path, tree in python_files("common") if any("seed" in name for name in names_in(tree))}
    assert taking - {path for path in taking if path.startswith("common/report/")} == {"common/model.py"}


def test_code_that_runs_at_a_site_has_fixed_streams_for_known_ends_only() -> None:
    found = {path for path, tree in python_files("client", "common") if seeded_streams(tree)}
    assert found == FIXED_STREAMS.keys()


def test_no_module_with_a_fixed_stream_draws_noise() -> None:
    for path, tree in python_files("client", "common"):
        if path in FIXED_STREAMS:
            modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
            assert not {module for module in modules if module and "noise" in module}, path


@pytest.mark.parametrize("path", DRAWS_NOISE)
def test_where_noise_is_drawn_or_added_there_is_no_other_randomness(path: str) -> None:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert seeded_streams(tree) == []


def test_the_noise_itself_imports_nothing_that_has_a_seed() -> None:
    allowed = {"math", "os", "numpy", "numpy.typing", "opendp.prelude", "dataclasses", "decimal", "fractions"}
    allowed |= {"functools", "cryptography.hazmat.primitives.ciphers.aead", "common.privacy.keystream_noise"}
    allowed |= {"concurrent.futures", "itertools", "common.processors", "common.privacy.block_table"}
    for path in ("noise", "keystream_noise", "block_table"):
        tree = ast.parse((ROOT / f"common/privacy/{path}.py").read_text(encoding="utf-8"))
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
        assert imported <= allowed


def test_everything_that_draws_noise_is_looked_at_here() -> None:
    drawing = {
        path
        for path, tree in python_files("client")
        if any(isinstance(node, ast.ImportFrom) and node.module == "common.privacy.noise" for node in ast.walk(tree))
    }
    assert drawing == {"client/update.py", "client/evaluation.py"}


@pytest.mark.parametrize(
    "code",
    [
        "import random",
        "from numpy.random import default_rng",
        "import numpy as np\nnp.random.seed(plan.seed)",
        "import numpy as np\nnoise = np.random.default_rng(7).normal(size=3)",
        "import numpy as np\nnoise = np.random.default_rng(seed=7)",
        "import torch\ntorch.manual_seed(7)",
        "import torch\nnoise = torch.normal(0.0, 1.0, (3,))",
        "import torch\nnoise = torch.empty(3).normal_()",
        "import torch\nsource = torch.Generator()",
    ],
)
def test_a_stream_that_a_seed_steers_is_found(code: str) -> None:
    assert seeded_streams(ast.parse(code))


@pytest.mark.parametrize("code", ["import os\nos.urandom(8)", "import numpy as np\nfresh = np.random.default_rng()"])
def test_the_operating_systems_randomness_is_none(code: str) -> None:
    assert not seeded_streams(ast.parse(code))


# Two runs of one seed.


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Simulation, Simulation]:
    scenario = changed("breast", plan__training__rounds=1, plan__training__server_optimizer="sgd")
    first, second = (
        simulate(scenario, SimulationOptions(out=tmp_path_factory.mktemp(name) / "run", seed=7), report=silent)
        for name in ("first", "second")
    )
    return first, second


def test_runs_of_one_seed_have_the_same_splits_people_and_plan(twice: tuple[Simulation, Simulation]) -> None:
    first, second = twice
    assert [site.identifiers for site in first.sites] == [site.identifiers for site in second.sites]
    assert first.plan.digest == second.plan.digest


def test_runs_of_one_seed_have_different_noise_of_the_full_size(twice: tuple[Simulation, Simulation]) -> None:
    """The first step from one model over one split: what differs is the noise, and it differs by two whole noises."""
    first, second = twice
    manifest, plan, sites = first.manifest, first.plan, len(first.sites)
    event = attempt_event(manifest, cohort_size=sites)
    share = event.noise_multiplier_alone * event.sensitivity / manifest.scale
    step = plan.training.learning_rate / manifest.nominal_patients
    difference = (first.history[0] - second.history[0]).astype(np.float64) / (step * share * math.sqrt(2 * sites))
    total = float(np.square(difference).sum())
    assert min(chi2.cdf(total, difference.size), chi2.sf(total, difference.size)) > LEVEL / 2


def test_runs_of_another_seed_have_other_splits(twice: tuple[Simulation, Simulation], tmp_path: Path) -> None:
    """So that the seed is not simply without effect."""
    first, _ = twice
    other = simulate(first.scenario, SimulationOptions(out=tmp_path / "run", seed=8), report=silent)
    assert [site.identifiers for site in other.sites] != [site.identifiers for site in first.sites]
