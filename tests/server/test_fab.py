import hashlib
import importlib
import io
import zipfile
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from flwr.cli.build import build_fab_from_disk
from flwr.cli.config_utils import load_and_validate
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.supercore.object_ref import validate

from common.errors import ConfigurationError
from server.app import run_directory

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # Flower's own


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    directory = tmp_path / "bundle"
    directory.mkdir()
    content = resources.files("server").joinpath("fab", "pyproject.toml").read_bytes()
    (directory / "pyproject.toml").write_bytes(content)
    return directory


def test_the_bundle_holds_its_pyproject_and_flowers_own_listing_only(bundle: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(bundle))) as archive:
        assert sorted(archive.namelist()) == [".info/CONTENT", "pyproject.toml"]


def test_a_file_that_lies_beside_it_is_not_shipped(bundle: Path) -> None:
    for name in ("client.py", "notes.md", "data.json", "more.toml"):
        (bundle / name).write_text("x = 1\n")
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(bundle))) as archive:
        shipped = [name for name in archive.namelist() if name != ".info/CONTENT"]
    assert shipped == ["pyproject.toml"]


def test_the_bundle_is_the_same_each_time_it_is_built(bundle: Path) -> None:
    first, second = (hashlib.sha256(build_fab_from_disk(bundle)).hexdigest() for _ in range(2))
    assert first == second


def test_flower_accepts_it_without_an_error_or_a_warning(bundle: Path) -> None:
    _, warnings = load_and_validate(bundle / "pyproject.toml")
    assert warnings == []


@pytest.mark.parametrize(("component", "kind"), [("serverapp", ServerApp), ("clientapp", ClientApp)])
def test_its_components_are_those_of_the_installed_packages(bundle: Path, component: str, kind: type) -> None:
    config, _ = load_and_validate(bundle / "pyproject.toml")
    reference = config["tool"]["flwr"]["app"]["components"][component]
    assert validate(reference, project_dir=bundle) == (True, None)
    module_name, _, attribute = reference.partition(":")
    found = find_spec(module_name)
    assert found is not None
    assert found.origin is not None
    assert not Path(found.origin).is_relative_to(bundle)
    assert isinstance(getattr(importlib.import_module(module_name), attribute), kind)


def test_the_run_config_has_the_run_directory_and_nothing_else(bundle: Path) -> None:
    config, _ = load_and_validate(bundle / "pyproject.toml")
    assert config["tool"]["flwr"]["app"]["config"] == {"run-dir": ""}


@pytest.mark.parametrize("named", ["", "/no/such/directory", 5])
def test_a_run_directory_that_does_not_exist_is_refused(named: str | int) -> None:
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={"run-dir": named})
    with pytest.raises(ConfigurationError, match="run-dir"):
        run_directory(context)
