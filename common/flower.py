"""How bytes travel through Flower: a short body as one entry of a ConfigRecord, a long one as one uint8 array.

Flower stores every part of a message for itself, and every part costs two requests. A ConfigRecord is one part. An
array is three and more: the record, its outline, and pieces of at most 5 MiB; its buffer is the body itself, so that
packing and unpacking it copy nothing and parse nothing.
"""

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

DEFAULT_LIMIT_BYTES = 512 * 1024 * 1024
SHORT_BODY_BYTES = 256 * 1024
"""Up to which a body travels in a ConfigRecord, which is copied and parsed on its way."""

_RECORD = "fedward"
_BODY = "body"
_DTYPE = "uint8"
_RAW = "fedward.raw"


def pack(body: bytes, *, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> RecordDict:
    """The message content that carries a body; the content refers to the body itself.

    Raises:
        ValueError: If the body is empty or longer than `limit_bytes`.
    """
    _check_size(len(body), limit_bytes)
    content = RecordDict()
    if len(body) <= SHORT_BODY_BYTES:
        content[_RECORD] = ConfigRecord({_BODY: bytes(body)})
    else:
        content[_RECORD] = ArrayRecord({_BODY: Array(_DTYPE, (len(body),), _RAW, body)})
    return content


def unpack(content: RecordDict, *, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> bytes:
    """The body that `pack` put in, or an array of any length; the returned object is the record's own.

    Raises:
        ValueError: If the content has any other shape, is empty or is longer than `limit_bytes`.
    """
    record = _only(content, _RECORD)
    if isinstance(record, ConfigRecord):
        return body_of(record, limit_bytes=limit_bytes)
    if not isinstance(record, ArrayRecord):
        raise ValueError(f"the message carries a {type(record).__name__}; no body travels in one")
    array = _only(record, _BODY)
    if not isinstance(array, Array) or array.dtype != _DTYPE or array.stype != _RAW:
        raise ValueError(f"the message's array is not {_DTYPE} in the {_RAW} form")
    body = array.data
    if not isinstance(body, bytes) or tuple(array.shape) != (len(body),):
        raise ValueError("the message's array does not have the length that it declares")
    _check_size(len(body), limit_bytes)
    return body


def body_of(record: ConfigRecord, *, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> bytes:
    """The short body that a record holds.

    Raises:
        ValueError: If it holds anything else, or a body that is empty or longer than is short or than `limit_bytes`.
    """
    body = _only(record, _BODY)
    if not isinstance(body, bytes):
        raise ValueError(f"the message's body is of the type {type(body).__name__}, not bytes")
    _check_size(len(body), min(SHORT_BODY_BYTES, limit_bytes))
    return body


def _only(mapping: RecordDict | ArrayRecord | ConfigRecord, expected_name: str) -> object:
    entries = list(mapping.items())
    if len(entries) != 1 or entries[0][0] != expected_name:
        raise ValueError(f"the message has {len(entries)} entries; exactly one, named {expected_name!r}, is accepted")
    return entries[0][1]


def _check_size(size_bytes: int, limit_bytes: int) -> None:
    if size_bytes == 0:
        raise ValueError("a message body is never empty")
    if size_bytes > limit_bytes:
        raise ValueError(f"the message body has {size_bytes:,} bytes; the limit is {limit_bytes:,}")
