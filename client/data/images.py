"""Pictures from a data directory as pixels of one size, read so that a hostile file costs nothing but itself."""

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from common.canonical import DIGEST_PREFIX
from common.errors import DataRefused

PICTURE_SIZE = 224
LARGEST_FILE_BYTES = 64 << 20
LARGEST_PIXELS = 50_000_000

_FORMATS = ("JPEG", "PNG")
_EIGHT_BIT_MODES = frozenset({"L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"})


def read_images(directory: Path, names: Sequence[str]) -> Iterator[NDArray[np.uint8]]:
    """The pictures in the order of `names`, each uint8 of shape (224, 224, 3), RGB, upright.

    A picture of another size is resized as a whole, so that nothing at its edge is lost; grey becomes three equal
    channels. Only JPEG and PNG with 8 bits a channel are read.

    Args:
        directory: The data directory; a name may lead below it and never out of it, also not by a link.

    Raises:
        DataRefused: At the first picture that cannot be read. The message holds its row (from 1) and the number of
            rows, never its name, which often is a patient's.
    """
    for row, content in enumerate(_contents(directory, names), start=1):
        yield _decode(content, where=f"picture {row} of {len(names)}")


def image_digests(directory: Path, names: Sequence[str]) -> tuple[str, ...]:
    """`sha256:<hex>` of every picture's file, in the order of `names`; raises DataRefused as `read_images` does."""
    return tuple(DIGEST_PREFIX + hashlib.sha256(content).hexdigest() for content in _contents(directory, names))


def _contents(directory: Path, names: Sequence[str]) -> Iterator[bytes]:
    root = directory.resolve()
    for row, name in enumerate(names, start=1):
        yield _read_inside(root, name, where=f"picture {row} of {len(names)}")


def _read_inside(root: Path, name: str, *, where: str) -> bytes:
    try:
        path = (root / name).resolve(strict=True)
        if not path.is_relative_to(root):
            raise DataRefused(f"{where} lies outside the data directory", hint="copy the file into it")
        # A pipe that nobody writes to would hold the reader up, and the last component may have become a link.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as stream:
            facts = os.fstat(stream.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise DataRefused(f"{where} is not a regular file")
            content = stream.read(LARGEST_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise DataRefused(f"{where} cannot be opened: {type(error).__name__}", hint="check the index file") from None
    if len(content) > LARGEST_FILE_BYTES:
        raise DataRefused(f"{where} has more than {LARGEST_FILE_BYTES} bytes")
    return content


def _decode(content: bytes, *, where: str) -> NDArray[np.uint8]:
    try:
        upright = _upright(content, where=where)
    except DataRefused:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataRefused(f"{where} has far more pixels than {LARGEST_PIXELS}") from None
    except Exception as error:
        # Pillow stumbles over a broken file in a dozen ways (OSError, SyntaxError, struct.error, …), each of which is
        # the file's fault. Its texts may quote the file, so only the kind is told.
        raise DataRefused(
            f"{where} is not a whole JPEG or PNG: {type(error).__name__}", hint="replace or remove the file"
        ) from None
    if upright.size != (PICTURE_SIZE, PICTURE_SIZE):
        upright = upright.resize((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.BILINEAR)
    return np.asarray(upright, dtype=np.uint8)


def _upright(content: bytes, *, where: str) -> Image.Image:
    with Image.open(BytesIO(content), formats=_FORMATS) as picture:
        pixels = picture.width * picture.height
        if pixels > LARGEST_PIXELS:
            raise DataRefused(f"{where} has {pixels} pixels, and the most is {LARGEST_PIXELS}")
        if picture.mode not in _EIGHT_BIT_MODES:
            raise DataRefused(
                f"{where} does not have 8 bits a channel (mode {picture.mode})",
                hint="apply the display window before it is stored as a picture",
            )
        return ImageOps.exif_transpose(picture).convert("RGB")
