import os
import struct
import zlib
from contextlib import suppress
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from client.data.images import LARGEST_FILE_BYTES, PICTURE_SIZE, image_digests, read_images
from common.errors import DataRefused

SECRET = "jane-1961.png"


def picture(width=224, height=224, *, mode="RGB", kind="PNG", **options):
    rng = np.random.default_rng(0)
    channels = {"RGB": (3,), "RGBA": (4,), "L": ()}[mode]
    stream = BytesIO()
    Image.fromarray(rng.integers(0, 256, (height, width, *channels), dtype=np.uint8)).save(stream, kind, **options)
    return stream.getvalue()


def put(directory, content, name=SECRET):
    (directory / name).write_bytes(content)
    return directory


def refuse(directory, name=SECRET, names=None):
    with pytest.raises(DataRefused) as refusal:
        list(read_images(directory, names or [name]))
    told = refusal.value.fact + refusal.value.hint
    assert "jane" not in told
    assert str(directory) not in told
    return refusal.value.fact


def test_a_picture_of_the_right_size_comes_through_unchanged(tmp_path):
    content = picture()
    (found,) = read_images(put(tmp_path, content), [SECRET])
    np.testing.assert_array_equal(found, np.asarray(Image.open(BytesIO(content))))


@pytest.mark.parametrize(("width", "height"), [(300, 500), (10, 10), (1, 900)])
def test_another_size_is_resized(tmp_path, width, height):
    (found,) = read_images(put(tmp_path, picture(width, height)), [SECRET])
    assert found.shape == (PICTURE_SIZE, PICTURE_SIZE, 3)
    assert found.dtype == np.uint8


def test_grey_becomes_three_equal_channels(tmp_path):
    (found,) = read_images(put(tmp_path, picture(mode="L")), [SECRET])
    assert (found[..., 0] == found[..., 1]).all()
    assert (found[..., 0] == found[..., 2]).all()


def test_a_picture_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    stream = BytesIO()
    half_white = np.zeros((224, 224, 3), dtype=np.uint8)
    half_white[:112] = 255
    Image.fromarray(half_white).save(stream, "PNG", exif=exif)
    (found,) = read_images(put(tmp_path, stream.getvalue()), [SECRET])
    assert found[0, 0, 0] == 0
    assert found[-1, 0, 0] == 255


def test_pictures_come_in_the_order_of_their_names(tmp_path):
    for name, value in (("a.png", 10), ("b.png", 200)):
        Image.new("RGB", (224, 224), (value,) * 3).save(tmp_path / name)
    assert [int(found[0, 0, 0]) for found in read_images(tmp_path, ["b.png", "a.png", "b.png"])] == [200, 10, 200]


@pytest.mark.parametrize("name", ["../jane.png", "/etc/hostname", "sub/../../jane.png"])
def test_a_path_out_of_the_directory_is_refused(tmp_path, name):
    inside = tmp_path / "data"
    (inside / "sub").mkdir(parents=True)
    put(tmp_path, picture(), "jane.png")
    assert refuse(inside, name) == "picture 1 of 1 lies outside the data directory"


def test_a_link_out_of_the_directory_is_refused(tmp_path):
    inside = tmp_path / "data"
    inside.mkdir()
    (inside / SECRET).symlink_to(put(tmp_path, picture(), "other.png") / "other.png")
    assert refuse(inside) == "picture 1 of 1 lies outside the data directory"


def test_a_pipe_is_refused_and_does_not_hold_the_reader_up(tmp_path):
    os.mkfifo(tmp_path / SECRET)
    assert refuse(tmp_path) == "picture 1 of 1 is not a regular file"


def test_a_directory_is_refused(tmp_path):
    (tmp_path / SECRET).mkdir()
    assert refuse(tmp_path).startswith("picture 1 of 1 ")


def test_a_missing_file_is_refused_by_its_row(tmp_path):
    put(tmp_path, picture(), "here.png")
    assert refuse(tmp_path, names=["here.png", SECRET, "here.png"]) == (
        "picture 2 of 3 cannot be opened: FileNotFoundError"
    )


def test_a_name_with_a_zero_byte_is_refused(tmp_path):
    assert refuse(tmp_path, "jane\0.png") == "picture 1 of 1 cannot be opened: ValueError"


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.97])
def test_a_truncated_file_is_refused(tmp_path, kind, share):
    content = picture(kind=kind)
    assert "not a whole JPEG or PNG" in refuse(put(tmp_path, content[: int(share * len(content))]))


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP"])
def test_other_formats_are_refused_whatever_their_name(tmp_path, kind):
    assert "not a whole JPEG or PNG" in refuse(put(tmp_path, picture(kind=kind)))


@pytest.mark.parametrize(("width", "height"), [(8000, 8000), (60000, 60000)])
def test_a_picture_that_claims_to_be_huge_is_refused(tmp_path, width, height):
    content = bytearray(picture(mode="L"))
    content[16:24] = struct.pack(">II", width, height)  # in the header chunk, bytes 12 to 28, before its checksum
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    assert "pixels" in refuse(put(tmp_path, bytes(content)))


def test_a_huge_file_is_refused(tmp_path):
    with (tmp_path / SECRET).open("wb") as stream:
        stream.truncate(LARGEST_FILE_BYTES + 1)
    assert "more than 67108864 bytes" in refuse(tmp_path)


def test_sixteen_bits_are_refused_rather_than_cut_to_eight(tmp_path):
    stream = BytesIO()
    Image.fromarray(np.full((224, 224), 40000, dtype=np.uint16)).save(stream, "PNG")
    assert "8 bits" in refuse(put(tmp_path, stream.getvalue()))


def test_bytes_that_were_changed_are_read_or_refused_but_never_crash(tmp_path):
    content, rng = picture(40, 40), np.random.default_rng(1)
    for _ in range(60):
        broken = bytearray(content)
        for place in rng.integers(0, len(broken), 4):
            broken[place] ^= int(rng.integers(1, 256))
        with suppress(DataRefused):
            list(read_images(put(tmp_path, bytes(broken)), [SECRET]))


def test_digests_are_of_the_files(tmp_path):
    content = picture()
    put(tmp_path, content, "a.png")
    put(tmp_path, content, "b.png")
    put(tmp_path, content[:-1], "c.png")
    first, second, third = image_digests(tmp_path, ["a.png", "b.png", "c.png"])
    assert first == second != third
    assert first.startswith("sha256:")
