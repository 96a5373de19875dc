import numpy as np
import pytest

from client.data.registry import load_dataset
from client.guard import Permit, grid_of, permit_attempt
from client.training.batch import PatientBatch
from client.training.engine import choose_engine
from client.update import LocalUpdate, compute_update, site_weight
from common.crypto.ring import quantise
from tests.flows.federation import CLASSES, POPULATION, Federation

SITE = "north"


def permit_for(federation: Federation, attempt: int = 1) -> Permit:
    with federation.ledger(SITE) as ledger:
        return permit_attempt(
            ledger,
            site=SITE,
            plan=federation.plan,
            manifest=federation.manifest,
            population=POPULATION,
            cohort=federation.names,
            round_number=1,
            attempt=attempt,
        )


def computed(federation: Federation, batch: PatientBatch, attempt: int = 1) -> LocalUpdate:
    engine, _ = choose_engine(federation.plan.model, len(CLASSES))
    return compute_update(permit_for(federation, attempt), engine=engine, batch=batch, parameters=federation.zero_model)


@pytest.fixture
def batch(federation: Federation) -> PatientBatch:
    return load_dataset(federation.homes[SITE], POPULATION, classes=len(CLASSES))


def test_a_pooled_update_is_the_clipped_sum_within_its_noise(federation: Federation, batch: PatientBatch) -> None:
    engine, _ = choose_engine(federation.plan.model, len(CLASSES))
    norm = federation.plan.privacy.clipping_norm
    total = engine.clipped_sum(federation.zero_model, batch, clipping_norm=norm)
    grid = grid_of(federation.plan, federation.manifest)
    noise = computed(federation, batch).units - quantise(total, grid)
    assert np.abs(noise).max() < 8 * permit_for(federation, attempt=2).noise_std
    assert np.abs(noise).max() > 0


def test_noise_is_drawn_anew_each_time(federation: Federation, batch: PatientBatch) -> None:
    first, second = computed(federation, batch, 1), computed(federation, batch, 2)
    assert not np.array_equal(first.units, second.units)


def test_nobodys_records_give_noise_alone(federation: Federation) -> None:
    units = computed(federation, PatientBatch.empty(classes=len(CLASSES))).units
    assert units.shape == (10,)
    assert 0 < np.abs(units).max() < 8 * permit_for(federation, attempt=2).noise_std


def test_a_local_update_is_a_weight_change_of_the_sites_public_weight(local_federation: Federation) -> None:
    batch = load_dataset(local_federation.homes[SITE], POPULATION, classes=len(CLASSES))
    update = computed(local_federation, batch)
    manifest, plan = local_federation.manifest, local_federation.plan
    nominal = manifest.entry(SITE).nominal_patients
    step = plan.training.local_learning_rate * manifest.noise_multiplier * plan.privacy.clipping_norm / nominal
    largest = (step * 8 + plan.training.local_learning_rate) * site_weight(nominal, manifest.nominal_patients)
    assert 0 < np.abs(update.units).max() < largest * manifest.scale


def test_weights_over_a_whole_roster_add_up_to_one() -> None:
    assert sum(site_weight(nominal, 64) for nominal in (14, 23, 9, 18)) == pytest.approx(1.0)


def test_an_update_prints_nothing_of_itself() -> None:
    assert repr(LocalUpdate(units=np.array([12345], dtype=np.int64))) == "LocalUpdate(…)"
