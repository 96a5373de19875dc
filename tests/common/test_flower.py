import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from common.flower import SHORT_BODY_BYTES, pack, unpack


@pytest.mark.parametrize("size_bytes", [1, SHORT_BODY_BYTES, SHORT_BODY_BYTES + 1])
def test_a_packed_body_comes_back_as_the_same_object(size_bytes: int) -> None:
    body = bytes(size_bytes)
    assert unpack(pack(body)) is body


def test_a_short_body_is_the_only_entry_of_one_config_record() -> None:
    assert pack(b"abc") == RecordDict({"fedward": ConfigRecord({"body": b"abc"})})


def test_a_long_body_is_one_uint8_array() -> None:
    content = pack(bytes(SHORT_BODY_BYTES + 1))
    ((record,),) = [list(content.array_records.values())]
    (array,) = record.values()
    assert (array.dtype, tuple(array.shape)) == ("uint8", (SHORT_BODY_BYTES + 1,))


def test_an_empty_body_is_refused() -> None:
    with pytest.raises(ValueError, match="never empty"):
        pack(b"")


def test_a_body_above_the_limit_is_not_packed() -> None:
    with pytest.raises(ValueError, match="11 bytes; the limit is 10"):
        pack(b"x" * 11, limit_bytes=10)


def test_a_body_above_the_limit_is_not_unpacked() -> None:
    with pytest.raises(ValueError, match="11 bytes; the limit is 10"):
        unpack(pack(b"x" * 11), limit_bytes=10)


def _array(
    dtype: str = "uint8", shape: tuple[int, ...] = (3,), stype: str = "fedward.raw", data: bytes = b"abc"
) -> Array:
    return Array(dtype, shape, stype, data)


def _content(array: Array) -> RecordDict:
    return RecordDict({"fedward": ArrayRecord({"body": array})})


def test_a_short_body_is_read_from_an_array_too() -> None:
    assert unpack(_content(_array())) == b"abc"


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"other": ConfigRecord({"body": b"abc"})}),
        RecordDict({"fedward": ConfigRecord()}),
        RecordDict({"fedward": ConfigRecord({"other": b"abc"})}),
        RecordDict({"fedward": ConfigRecord({"body": b"abc", "more": 1})}),
        RecordDict({"fedward": ConfigRecord({"body": "abc"})}),
        RecordDict({"fedward": ConfigRecord({"body": [b"abc"]})}),
        RecordDict({"fedward": ConfigRecord({"body": b""})}),
        RecordDict({"fedward": ConfigRecord({"body": bytes(SHORT_BODY_BYTES + 1)})}),
        RecordDict({"fedward": MetricRecord({"body": 1})}),
        RecordDict({"other": ArrayRecord({"body": _array()})}),
        RecordDict({"fedward": ArrayRecord()}),
        RecordDict({"fedward": ArrayRecord({"other": _array()})}),
        RecordDict({"fedward": ArrayRecord({"body": _array(), "more": _array()})}),
        RecordDict({"fedward": ArrayRecord({"body": _array()}), "more": ConfigRecord()}),
        _content(_array(dtype="float32")),
        _content(_array(stype="numpy.ndarray")),
        _content(_array(shape=(2,))),
        _content(_array(shape=(3, 1))),
        _content(_array(shape=(0,), data=b"")),
        _content(Array(np.zeros(3, dtype=np.uint8))),
    ],
)
def test_any_other_shape_is_refused(content: RecordDict) -> None:
    with pytest.raises(ValueError, match="message"):
        unpack(content)
