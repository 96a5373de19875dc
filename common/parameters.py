"""A model's parameters as bytes: flat, little-endian float32, and their digest."""

import numpy as np
from numpy.typing import NDArray

from common.canonical import digest_bytes
from common.errors import TrustError


def parameters_to_bytes(parameters: NDArray[np.float32]) -> bytes:
    """Little-endian float32, 4 bytes a parameter."""
    return parameters.astype("<f4", copy=False).tobytes()


def parameters_from_bytes(data: bytes, *, dimension: int) -> NDArray[np.float32]:
    """Shape (dimension,); raises TrustError for another size or values that are not finite."""
    if len(data) != 4 * dimension:
        raise TrustError(f"a model of {dimension} parameters has {4 * dimension} bytes, not {len(data)}")
    parameters = np.frombuffer(data, dtype="<f4").astype(np.float32)
    if not np.isfinite(parameters).all():
        raise TrustError("a model holds values that are not finite numbers")
    return parameters


def parameters_digest(parameters: NDArray[np.float32]) -> str:
    """`sha256:<hex>` of `parameters_to_bytes`."""
    return digest_bytes("model", parameters_to_bytes(parameters))


def vector_to_bytes(vector: NDArray[np.uint32]) -> bytes:
    """A masked vector as it travels: little-endian uint32."""
    return vector.astype("<u4", copy=False).tobytes()


def vector_from_bytes(data: bytes, *, dimension: int) -> NDArray[np.uint32]:
    """Shape (dimension,); raises TrustError for another size."""
    if len(data) != 4 * dimension:
        raise TrustError(f"a masked vector of {dimension} coordinates has {4 * dimension} bytes, not {len(data)}")
    return np.frombuffer(data, dtype="<u4").astype(np.uint32)
