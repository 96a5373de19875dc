import numpy as np
import pytest

from client.training.closed_form import CHUNK_RECORDS, ClosedFormEngine
from client.training.engine import choose_engine
from common.plan import ModelSection
from tests.contracts.clipped_sum import ClippedSumContract, by_the_loop


class TestClosedForm(ClippedSumContract):
    model = ModelSection(inputs=(6,))
    tolerance = 1e-9

    def engine(self):
        return ClosedFormEngine(self.model, self.classes)

    def test_more_patients_than_fit_in_a_chunk_agree_with_one_record_at_a_time(self):
        batch, parameters = self.batch([1] * (CHUNK_RECORDS + 3) + [2] * 5), self.parameters()
        found = self.engine().clipped_sum(parameters, batch, clipping_norm=0.3)
        expected = by_the_loop(self.model, self.classes, parameters, batch, clipping_norm=0.3)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)

    def test_the_largest_floats_are_clipped_and_not_dropped(self):
        one = self.batch([1])
        huge = type(one)(
            features=np.full((1, 6), 3e38, dtype=np.float32),
            labels=np.zeros(1, dtype=np.int64),
            patients=np.zeros(1, dtype=np.int64),
            classes=self.classes,
        )
        found = self.engine().clipped_sum(np.zeros_like(self.parameters()), huge, clipping_norm=1.0)
        assert np.linalg.norm(found) == pytest.approx(1 - 1e-4)


class TestClosedFormForTwoClasses(ClippedSumContract):
    model = ModelSection(inputs=(4,))
    classes = 2
    tolerance = 1e-9

    def engine(self):
        return ClosedFormEngine(self.model, self.classes)


def test_another_head_is_refused():
    with pytest.raises(ValueError, match="linear"):
        ClosedFormEngine(ModelSection(head="mlp", inputs=(4,), hidden=(3,)), 2)


def test_a_linear_head_gets_the_closed_form():
    engine, reason = choose_engine(ModelSection(inputs=(4,)), 2)
    assert isinstance(engine, ClosedFormEngine)
    assert reason.startswith("closed form")
