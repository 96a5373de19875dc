"""The one shape in which bytes travel through Flower: a single ArrayRecord that holds a single uint8 array.

Flower stores an array as a buffer and cuts it into pieces of at most 5 MiB on its way; a ConfigRecord would travel as
one object. The buffer is the body itself, so that packing and unpacking copy nothing and parse nothing.
"""

from flwr.app import Array, ArrayRecord, RecordDict

DEFAULT_LIMIT_BYTES = 512 * 1024 * 1024

_RECORD = "fedward"
_ARRAY = "body"
_DTYPE = "uint8"
_RAW = "fedward.raw"


def pack(body: bytes, *, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> RecordDict:
    """The message content that carries a body; the content refers to the body's own buffer.

    Raises:
        ValueError: If the body is empty or longer than `limit_bytes`.
    """
    _check_size(len(body), limit_bytes)
    record = ArrayRecord()
    record[_ARRAY] = Array(_DTYPE, (len(body),), _RAW, body)
    content = RecordDict()
    content[_RECORD] = record
    return content


def unpack(content: RecordDict, *, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> bytes:
    """The body that `pack` put in; the returned object is the record's own buffer.

    Raises:
        ValueError: If the content has any other shape, is empty or is longer than `limit_bytes`.
    """
    record = _only(content, _RECORD)
    if not isinstance(record, ArrayRecord):
        raise ValueError(f"the message carries a {type(record).__name__}; only an ArrayRecord is accepted")
    array = _only(record, _ARRAY)
    if not isinstance(array, Array) or array.dtype != _DTYPE or array.stype != _RAW:
        raise ValueError(f"the message's array is not {_DTYPE} in the {_RAW} form")
    body = array.data
    if not isinstance(body, bytes) or tuple(array.shape) != (len(body),):
        raise ValueError("the message's array does not have the length that it declares")
    _check_size(len(body), limit_bytes)
    return body


def _only(mapping: RecordDict | ArrayRecord, expected_name: str) -> object:
    entries = list(mapping.items())
    if len(entries) != 1 or entries[0][0] != expected_name:
        raise ValueError(f"the message has {len(entries)} entries; exactly one, named {expected_name!r}, is accepted")
    return entries[0][1]


def _check_size(size_bytes: int, limit_bytes: int) -> None:
    if size_bytes == 0:
        raise ValueError("a message body is never empty")
    if size_bytes > limit_bytes:
        raise ValueError(f"the message body has {size_bytes:,} bytes; the limit is {limit_bytes:,}")
