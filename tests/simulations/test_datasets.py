from pathlib import Path

import numpy as np
import pytest

from common.errors import ConfigurationError, DataRefused
from simulations.datasets import SourceRows, load_source, split_public
from simulations.scenario import DataSection, load_scenario

BREAST = load_scenario("breast")
IMAGES = DataSection(source="images", positive="ill", public_rows=10, public_tuning_rows=4)
CLASSES = ("healthy", "ill")


@pytest.fixture(scope="module")
def breast() -> SourceRows:
    return load_source(BREAST.data, BREAST.plan.task.classes, None)


def test_the_breast_data_are_569_patients_with_30_measurements(breast: SourceRows) -> None:
    assert (breast.frame.height, len(breast.patient_keys), len(breast.feature_columns)) == (569, 569, 30)
    assert int(breast.labels.sum()) == 212


def test_143_patients_are_public_and_426_private(breast: SourceRows) -> None:
    split = split_public(breast, BREAST.data, name="breast")
    assert (len(split.tuning), len(split.test), len(split.private)) == (43, 100, 426)


def test_no_patient_is_public_and_private_or_in_both_public_parts(breast: SourceRows) -> None:
    split = split_public(breast, BREAST.data, name="breast")
    everybody = np.concatenate([split.tuning, split.test, split.private])
    assert sorted(everybody.tolist()) == list(range(569))


def test_the_public_parts_have_the_datas_mix_of_labels(breast: SourceRows) -> None:
    split = split_public(breast, BREAST.data, name="breast")
    share = breast.patient_labels.mean()
    for part in (split.tuning, split.test, split.private):
        assert abs(breast.patient_labels[part].sum() - share * len(part)) <= 1


def test_the_split_depends_on_the_scenarios_name_and_on_no_seed(breast: SourceRows) -> None:
    first, again, other = (split_public(breast, BREAST.data, name=name) for name in ("breast", "breast", "other"))
    np.testing.assert_array_equal(first.test, again.test)
    assert not np.array_equal(first.test, other.test)


def test_a_plan_with_other_classes_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="has the classes"):
        load_source(BREAST.data, ("benign", "unknown"), None)


def test_public_rows_that_leave_none_private_are_refused(breast: SourceRows) -> None:
    data = BREAST.data.model_copy(update={"public_rows": 569})
    with pytest.raises(DataRefused, match="569 patients leave none private beside 569 public ones"):
        split_public(breast, data, name="breast")


def write_index(directory: Path, *rows: str) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "index.csv").write_text("\n".join(["file,label,patient", *rows]) + "\n")
    return directory


def test_an_index_of_images_groups_its_records_by_patient(tmp_path: Path) -> None:
    source = load_source(IMAGES, CLASSES, write_index(tmp_path, "1.png,ill,p2", "2.png,healthy,p1", "3.png,ill,p2"))
    assert source.patients.tolist() == [1, 0, 1]
    assert source.patient_keys == ("p1", "p2")
    assert source.patient_labels.tolist() == [0, 1]
    assert source.rows_of(np.array([1])).tolist() == [0, 2]


def test_images_lie_beside_the_index_or_in_a_folder_of_that_name(tmp_path: Path) -> None:
    write_index(tmp_path, "1.png,ill,p1")
    assert load_source(IMAGES, CLASSES, tmp_path).directory == tmp_path
    (tmp_path / "images").mkdir()
    assert load_source(IMAGES, CLASSES, tmp_path).directory == tmp_path / "images"


def test_an_image_scenario_needs_a_directory() -> None:
    with pytest.raises(ConfigurationError, match="needs a directory of images") as refused:
        load_source(IMAGES, CLASSES, None)
    assert "--data DIR" in refused.value.hint


def test_a_directory_without_an_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataRefused, match=r"there is no index\.csv"):
        load_source(IMAGES, CLASSES, tmp_path)


def test_labels_that_the_plan_does_not_know_are_counted_and_not_shown(tmp_path: Path) -> None:
    write_index(tmp_path, "1.png,ill,p1", "2.png,Octavia,p2")
    with pytest.raises(DataRefused, match="1 labels are not among the plan's classes") as refused:
        load_source(IMAGES, CLASSES, tmp_path)
    assert "Octavia" not in str(refused.value)


def test_an_index_without_the_named_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_text("name,what\n1.png,ill\n")
    with pytest.raises(DataRefused, match="columns file, label, patient"):
        load_source(IMAGES, CLASSES, tmp_path)
