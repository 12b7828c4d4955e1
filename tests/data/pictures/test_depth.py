import struct
import zlib

import cv2
import numpy as np
import pytest

from deeplab_jax.data.images import read_image
from deeplab_jax.data.pictures.depth import table, to_8_bits
from deeplab_jax.errors import DataError

RANGES = [(0, 65535), (0, 4095), (1000, 16383), (0, 1), (0, 255), (65534, 65535), (7, 300)]


@pytest.mark.parametrize("value_range", RANGES)
def test_values_are_scaled_by_the_formula(value_range):
    low, high = value_range
    expected = [min(255, max(0, (v - low) * 256 // (high + 1 - low))) for v in range(65536)]
    assert table(low, high).tolist() == expected


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(array):
    """Returns a PNG of 16 bits of 1 to 4 channels: grey, grey and alpha, RGB, RGB and alpha."""
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[array.shape[2]]
    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, kind, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in array))
    parts = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize("value_range", [(0, 65535), (0, 1023), (1000, 16383)])
@pytest.mark.parametrize(
    ("suffix", "channels"),
    [(".png", 1), (".png", 2), (".png", 3), (".png", 4), (".tif", 1), (".tif", 3), (".tif", 4)],
)
def test_files_of_16_bits_are_scaled_exactly(tmp_path, suffix, channels, value_range):
    """With (0, 65535) the upper 8 bits are kept."""
    wide = np.random.default_rng(0).integers(0, 17000, (9, 7, channels)).astype(np.uint16)
    path = tmp_path / f"a{suffix}"
    if suffix == ".png":
        path.write_bytes(png(wide))
    else:
        assert cv2.imwrite(str(path), wide[..., [2, 1, 0, 3][:channels]] if channels > 2 else wide)
    expected = table(*value_range)[wide]
    expected = np.repeat(expected[..., :1], 3, 2) if channels < 3 else expected[..., :3]
    np.testing.assert_array_equal(read_image(path, value_range), expected)
    if value_range == (0, 65535):
        np.testing.assert_array_equal(expected[..., 0], wide[..., 0] >> 8)


@pytest.mark.parametrize(("largest", "high"), [(4095, 4095), (65535, 65535), (200, 255), (0, 255)])
def test_16_bits_without_a_range_are_refused_with_their_own(largest, high):
    with pytest.raises(DataError) as error:
        to_8_bits("a.png", np.array([[0, largest]], np.uint16), ())
    assert str(error.value) == (
        f"a.png: has 16 bits a channel, values up to {largest} - set --config.data.value_range="
        f"0,{high} (deeplab doctor finds that of all pictures), or 0,65535 for the upper 8 bits"
    )


def test_8_bits_are_not_touched():
    pixels = np.zeros((2, 2, 3), np.uint8)
    assert to_8_bits("a", pixels, (0, 4095)) is pixels
