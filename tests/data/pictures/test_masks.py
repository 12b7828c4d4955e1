"""Indices stored in colour, and transparent pixels, through the readers of files."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from deeplab_jax.data.images import decode_color_label, decode_label
from deeplab_jax.data.labels import Classes, ColorTable
from deeplab_jax.data.pictures.masks import TRANSPARENT
from deeplab_jax.errors import DataError

INDEX = np.array([[0, 1, 2], [3, 1, 63]], np.uint8)
NONE = np.zeros_like(INDEX)
OPAQUE = np.full_like(INDEX, 255)
HOLES = np.array([[255, 0, 255], [255, 255, 0]], np.uint8)


def encode(channels, mode, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.merge(mode, [Image.fromarray(c) for c in channels]).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(
    ("channels", "mode"),
    [
        ([INDEX] * 3, "RGB"),
        ([INDEX, NONE, NONE], "RGB"),
        ([NONE, INDEX, NONE], "RGB"),
        ([NONE, NONE, INDEX], "RGB"),
        ([INDEX, INDEX, INDEX, OPAQUE], "RGBA"),
        ([INDEX, NONE, NONE, OPAQUE], "RGBA"),
        ([INDEX, OPAQUE], "LA"),
    ],
)
def test_an_index_in_several_channels_is_read(channels, mode, kind):
    label = decode_label("m", encode(channels, mode, kind))
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, INDEX)


@pytest.mark.parametrize(
    "channels",
    [[INDEX, INDEX, NONE], [INDEX + 1, NONE, NONE], [INDEX, INDEX, OPAQUE - INDEX]],
    ids=["two channels", "64 in one channel", "three channels"],
)
def test_other_colours_are_no_index(channels):
    with pytest.raises(DataError, match=r"m: holds colours \(mode RGB\), .*mask_format=color"):
        decode_label("m", encode(channels, "RGB"))


@pytest.mark.parametrize(
    ("channels", "mode"),
    [([INDEX, HOLES], "LA"), ([INDEX] * 3 + [HOLES], "RGBA"), ([INDEX, NONE, NONE, HOLES], "RGBA"),
     ([INDEX, NONE, OPAQUE - HOLES, HOLES], "RGBA")],
)  # fmt: skip
def test_transparent_pixels_of_an_index_are_ignored(channels, mode):
    label = decode_label("m", encode(channels, mode))
    np.testing.assert_array_equal(label, np.where(HOLES == 0, TRANSPARENT, INDEX.astype(int)))


def test_transparent_pixels_of_colours_are_ignored():
    palette = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)
    table = ColorTable(Classes(("a", "b", "c"), palette, np.zeros((0, 3), np.uint8)))
    classes = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    colors = palette[classes]
    colors[HOLES == 0] = (255, 0, 0), (9, 9, 9)  # beneath is a class, and none
    data = encode([*np.moveaxis(colors, -1, 0), HOLES], "RGBA")
    expected = np.where(HOLES == 0, 255, classes)
    np.testing.assert_array_equal(table("m", decode_color_label("m", data)), expected)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_half_transparent_pixels_are_refused(mode):
    channels = [INDEX] * (len(mode) - 1)
    data = encode([*channels, np.where(HOLES == 0, 128, 255).astype(np.uint8)], mode)
    for decode in (decode_label, decode_color_label):
        with pytest.raises(DataError, match=r"half transparent in 2 pixels \(such as alpha 128"):
            decode("m", data)


def test_a_palettes_transparent_entries_count_for_colours_alone():
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    for transparency, alpha in ((1, 0), (b"\xff\x00\xff", 0), (b"\xff\x80", 128)):
        buffer = io.BytesIO()
        image.save(buffer, "PNG", transparency=transparency)
        assert decode_label("m", buffer.getvalue()).tolist() == [[0, 1, 2]]
        if alpha:
            with pytest.raises(DataError, match="half transparent in 1 pixels"):
                decode_color_label("m", buffer.getvalue())
        else:
            colors = decode_color_label("m", buffer.getvalue())
            assert colors[..., 3].tolist() == [[255, 0, 255]]


@pytest.mark.parametrize(
    ("pixels", "what"),
    [
        (Image.new("CMYK", (3, 2)), r"\(mode CMYK\), not one class index per pixel - save masks"),
        (INDEX.astype(np.float32), "holds whole numbers as 32-bit floats, .* gdal_translate"),
        (INDEX.astype(np.float32) / 2, "holds fractions as 32-bit floats, .* palette PNG"),
    ],
)
def test_what_cannot_be_an_index_says_what_it_is(pixels, what):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    with pytest.raises(DataError, match=what) as caught:
        decode_label("m", buffer.getvalue())
    assert "mask_format" not in str(caught.value)


def test_channels_of_16_bits_are_refused_and_a_wide_index_is_no_colour():
    wide = np.dstack([INDEX] * 3).astype(np.uint16)
    data = cv2.imencode(".png", wide)[1].tobytes()
    for decode in (decode_label, decode_color_label):
        with pytest.raises(DataError, match="has 16 bits a channel"):
            decode("m", data)
    data = cv2.imencode(".png", wide[..., 0])[1].tobytes()
    np.testing.assert_array_equal(decode_label("m", data), INDEX)
    with pytest.raises(DataError, match=r"holds 16-bit numbers.*mask_format=index"):
        decode_color_label("m", data)
