import numpy as np
import pytest

from common.errors import TrustError
from common.parameters import (
    parameters_digest,
    parameters_from_bytes,
    parameters_to_bytes,
    vector_from_bytes,
    vector_to_bytes,
)


def test_parameters_are_little_endian_float32() -> None:
    assert parameters_to_bytes(np.array([1.0, -2.5], dtype=np.float32)) == bytes.fromhex("0000803f000020c0")


def test_parameters_survive_their_bytes() -> None:
    parameters = np.array([0.1, -0.0, 3e38], dtype=np.float32)
    np.testing.assert_array_equal(parameters_from_bytes(parameters_to_bytes(parameters), dimension=3), parameters)


def test_a_masked_vector_is_little_endian_uint32_and_survives_its_bytes() -> None:
    vector = np.array([1, 2**32 - 1], dtype=np.uint32)
    assert vector_to_bytes(vector) == bytes.fromhex("01000000ffffffff")
    np.testing.assert_array_equal(vector_from_bytes(vector_to_bytes(vector), dimension=2), vector)


@pytest.mark.parametrize("read", [parameters_from_bytes, vector_from_bytes])
@pytest.mark.parametrize("size", [0, 7, 9, 12])
def test_another_size_is_refused_with_both_numbers(read, size: int) -> None:
    with pytest.raises(TrustError, match=f"8 bytes, not {size}"):
        read(bytes(size), dimension=2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_model_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(TrustError, match="not finite"):
        parameters_from_bytes(np.array([0.0, value], dtype="<f4").tobytes(), dimension=2)


def test_what_was_read_can_be_changed_without_changing_the_message() -> None:
    data = bytes(8)
    parameters_from_bytes(data, dimension=2)[0] = 1
    assert data == bytes(8)


def test_a_digest_tells_models_apart_also_the_two_zeros() -> None:
    digests = {parameters_digest(np.array([value], dtype=np.float32)) for value in (0.0, -0.0, 1.0)}
    assert len(digests) == 3
