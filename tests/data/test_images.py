import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from deeplab_jax.data.images import read_image, read_label, write_png_indices
from deeplab_jax.errors import DataError


def picture(height=40, width=56, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def encode(array, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def grey_png(height, width, depth, rows):
    """Returns a grey PNG of any bit depth, from packed rows: Pillow cannot write all of them."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "array",
    [
        picture(),
        picture()[..., 0],
        picture(channels=4),
        picture()[..., 0].astype(np.uint16) * 257,
    ],
    ids=["rgb", "grey", "alpha", "sixteen-bit"],
)
def test_png_pixels_equal_imread(tmp_path, array):
    path = tmp_path / "a.png"
    assert cv2.imwrite(str(path), array)
    np.testing.assert_array_equal(read_image(path), cv2.imread(str(path))[..., ::-1])


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_jpeg_pixels_and_orientation_equal_imread(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(picture(), "JPEG", exif=exif))
    image = read_image(path)
    assert image.shape == ((56, 40, 3) if orientation == 6 else (40, 56, 3))
    np.testing.assert_array_equal(image, cv2.imread(str(path))[..., ::-1])


def test_label_keeps_indices_of_grey_palette_and_wide_masks(tmp_path):
    label = np.arange(256, dtype=np.uint8).reshape(16, 16)
    write_png_indices(tmp_path / "palette.png", label, picture(1, 3)[0])
    Image.fromarray(label).save(tmp_path / "grey.png")
    Image.fromarray(label.astype(np.uint16)).save(tmp_path / "wide.png")
    assert Image.open(tmp_path / "palette.png").mode == "P"
    assert Image.open(tmp_path / "wide.png").mode == "I;16"
    for name in ("palette", "grey", "wide"):
        read = read_label(tmp_path / f"{name}.png")
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, label)


@pytest.mark.parametrize(
    ("depth", "row", "expected"),
    [(1, 0b01100000, [0, 1, 1]), (2, 0b00011000, [0, 1, 2]), (4, 0x0F, [0, 15])],
)
def test_label_keeps_indices_of_packed_grey_masks(tmp_path, depth, row, expected):
    path = tmp_path / "a.png"
    path.write_bytes(grey_png(1, len(expected), depth, [bytes([row])]))
    assert read_label(path).tolist() == [expected]


def test_label_keeps_indices_of_packed_palette_masks(tmp_path):
    label = np.array([[0, 1, 2, 2]], np.uint8)
    image = Image.fromarray(label)
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    image.save(tmp_path / "a.png", bits=2)
    np.testing.assert_array_equal(read_label(tmp_path / "a.png"), label)


def test_written_mask_shows_its_palette(tmp_path):
    palette = np.array([[9, 8, 7], [255, 0, 1]], np.uint8)
    label = np.array([[0, 1], [1, 0]], np.uint8)
    write_png_indices(tmp_path / "a.png", label, palette)
    shown = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    np.testing.assert_array_equal(shown, palette[label])


JPEG = encode(picture(), "JPEG")
PNG = encode(picture(), "PNG")
BOMB = grey_png(20000, 20000, 8, [])  # 400 Mpixel; Pillow refuses it itself
LARGE = grey_png(9000, 9000, 8, [])  # 81 Mpixel; Pillow takes it
BROKEN = {
    "empty": (b"", "is an empty file"),
    "html": (b"<!DOCTYPE html>\n<html>", "is not an image (it starts with b'<!DOCTYPE ht')"),
    "half-jpeg": (JPEG[: len(JPEG) // 2], "is damaged or cut short"),
    "last-byte-of-jpeg": (JPEG[:-1], "is damaged or cut short"),
    "half-png": (PNG[: len(PNG) // 2], "is damaged or cut short"),
    "header-only": (PNG[:20], "has a damaged header"),
    "bomb": (BOMB, "is too large to decode safely"),
    "large": (LARGE, "is too large to decode safely (9000 x 9000 pixels, limit 80000000)"),
}


@pytest.mark.parametrize("data", list(BROKEN.values()), ids=list(BROKEN))
def test_unusable_image_is_one_line_with_its_name(tmp_path, data):
    path = tmp_path / "a.jpg"
    path.write_bytes(data[0])
    with pytest.raises(DataError) as caught:
        read_image(path)
    assert str(caught.value).startswith(f"{path}: {data[1]}")
    assert "\n" not in str(caught.value)


GREY = picture()[..., 0]
BROKEN_LABELS = BROKEN | {
    "half-jpeg": (JPEG[: len(JPEG) // 2], "is a JPEG"),
    "last-byte-of-jpeg": (JPEG[:-1], "is a JPEG"),
    "colours": (encode(picture(), "PNG"), "holds colours (mode RGB)"),
    "alpha": (encode(picture(channels=4), "PNG"), "holds colours (mode RGBA)"),
    "jpeg": (encode(GREY, "JPEG"), "is a JPEG"),
    "wide": (encode(GREY.astype(np.int32) + 65536, "TIFF"), "has values 65536..65791"),
    "half-png": (encode(GREY, "PNG")[:1500], "is damaged or cut short"),
}


@pytest.mark.parametrize("data", list(BROKEN_LABELS.values()), ids=list(BROKEN_LABELS))
def test_unusable_label_is_one_line_with_its_name(tmp_path, data):
    path = tmp_path / "a.png"
    path.write_bytes(data[0])
    with pytest.raises(DataError) as caught:
        read_label(path)
    assert str(caught.value).startswith(f"{path}: {data[1]}")
    assert "\n" not in str(caught.value)


def test_large_image_is_refused_before_decoding(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(LARGE)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(DataError):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("read", [read_image, read_label])
def test_missing_file_and_folder_are_named(tmp_path, read):
    with pytest.raises(DataError, match=r"none\.png: cannot be read \(No such file"):
        read(tmp_path / "none.png")
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path)
