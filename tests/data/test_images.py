import contextlib
import io
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from deeplab_jax.data.images import (
    MAX_BYTES,
    read_color_label,
    read_image,
    read_label,
    read_size,
    write_png_indices,
)
from deeplab_jax.data.images import orientation as find_orientation
from deeplab_jax.errors import DataError


def picture(height=40, width=56, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


GREY = picture()[..., 0]


def encode(array, kind, **options):
    buffer = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind, data):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def grey_png(height, width, depth, rows):
    """Returns a grey PNG of any bit depth, from packed rows: Pillow cannot write all of them."""
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
    np.testing.assert_array_equal(read_image(path, (0, 65535)), cv2.imread(str(path))[..., ::-1])


def write(path, array, kind, **options):
    path.write_bytes(encode(array, kind, **options))
    return path


def turned(array, orientation):
    png = io.BytesIO(encode(array, "PNG", exif=exif(orientation)))
    return np.asarray(ImageOps.exif_transpose(Image.open(png)))


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_pixels_and_orientation_equal_imread(tmp_path, orientation):
    path = write(tmp_path / "a.jpg", picture(), "JPEG", exif=exif(orientation))
    image = read_image(path)
    assert image.shape == ((56, 40, 3) if orientation > 4 else (40, 56, 3))
    assert read_size(path) == image.shape[:2]
    np.testing.assert_array_equal(image, cv2.imread(str(path))[..., ::-1])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_orientation_turns_images_and_masks_of_every_format(tmp_path, kind, orientation):
    options = {"exif": exif(orientation)} | ({"lossless": True} if kind == "WEBP" else {})
    path = write(tmp_path / "a", picture(), kind, **options)
    upright = turned(picture(), orientation)
    np.testing.assert_array_equal(read_image(path), upright)
    assert read_size(path) == upright.shape[:2]
    if kind != "WEBP":
        np.testing.assert_array_equal(read_color_label(path), upright)
        path = write(tmp_path / "a", GREY, kind, **options)
        np.testing.assert_array_equal(read_label(path), turned(GREY, orientation))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("num_tags", [1, 2])
def test_orientation_after_the_pixels_of_a_png_counts_alike_for_all(
    tmp_path, orientation, num_tags
):
    tags = [exif(value).tobytes()[6:] for value in (orientation, 1)]
    data = encode(GREY, "PNG")
    late = b"".join(chunk(b"eXIf", tag) for tag in tags[:num_tags])
    (tmp_path / "a.png").write_bytes(data[:-12] + late + data[-12:])
    upright = turned(GREY, orientation)
    for read in (read_image, read_color_label):
        np.testing.assert_array_equal(read(tmp_path / "a.png"), np.stack([upright] * 3, -1))
    np.testing.assert_array_equal(read_label(tmp_path / "a.png"), upright)
    assert read_size(tmp_path / "a.png") == upright.shape
    with Image.open(tmp_path / "a.png") as header:
        assert find_orientation(header) == orientation


@pytest.mark.parametrize("data", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"x" * 50])
def test_broken_exif_means_upright(tmp_path, data):
    path = write(tmp_path / "a.jpg", picture(), "JPEG", exif=data)
    assert read_image(path).shape == (40, 56, 3)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"])
def test_every_mode_is_read_as_rgb(tmp_path, kind, mode):
    image = Image.fromarray(picture()).convert("RGB").convert(mode)
    if mode.endswith("A"):
        image.putalpha(Image.fromarray(picture(channels=1)[..., 0]))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    try:
        path = write(tmp_path / "a", image, kind, **options)
    except OSError as error:
        pytest.skip(str(error))
    np.testing.assert_array_equal(read_image(path), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_range_of_all_16_bits_keeps_the_upper_8(tmp_path, suffix, channels):
    wide = np.random.default_rng(0).integers(0, 65536, (9, 7, channels)).astype(np.uint16)
    path = tmp_path / f"a{suffix}"
    assert cv2.imwrite(str(path), wide)
    expected = (wide >> 8).astype(np.uint8)
    expected = np.repeat(expected, 3, 2) if channels == 1 else expected[..., 2::-1]
    np.testing.assert_array_equal(read_image(path, (0, 65535)), expected)
    with pytest.raises(DataError, match="has 16 bits a channel, values up to 65"):
        read_image(path)


def test_cmyk_jpeg_is_read_as_pillow_does(tmp_path):
    path = write(tmp_path / "a.jpg", Image.fromarray(picture()).convert("CMYK"), "JPEG")
    expected = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert np.abs(read_image(path) - expected).max() <= 1


def test_32_bit_channels_are_refused(tmp_path):
    path = write(tmp_path / "a.tif", picture()[..., 0].astype(np.float32), "TIFF")
    with pytest.raises(DataError, match="is a TIFF of 32-bit floats - store whole numbers"):
        read_image(path)
    with pytest.raises(DataError, match="not one class index per pixel"):
        read_label(path)


def test_previews_in_a_jpeg_are_ignored_and_animations_refused(tmp_path):
    def write_two(kind):
        more = [Image.fromarray(255 - picture())]
        return write(tmp_path / "a", picture(), kind, save_all=True, append_images=more)

    path = write_two("MPO")
    np.testing.assert_array_equal(read_image(path), cv2.imread(str(path))[..., ::-1])
    for kind in ("PNG", "WEBP", "TIFF"):
        path = write_two(kind)
        with pytest.raises(DataError, match="holds 2 pictures - keep one"):
            read_image(path)


CUT = {
    "baseline": ("JPEG", {}),
    "progressive": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {}),
    "lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "webp": ("WEBP", {}),
}


@pytest.mark.parametrize("name", list(CUT))
@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_cut_off_is_missed_and_what_follows_is_not(tmp_path, name, seed):
    kind, options = CUT[name]
    data, path = encode(picture(), kind, **options), tmp_path / "a"
    path.write_bytes(data)
    whole = read_image(path)
    for size in (
        1,
        2,
        3,
        10,
        len(data) // 2,
        *np.random.default_rng(seed).integers(1, len(data), 5),
    ):
        path.write_bytes(data[: len(data) - size])
        with pytest.raises(DataError):
            read_image(path)
    path.write_bytes(data + b"camera's own" * 30)
    np.testing.assert_array_equal(read_image(path), whole)


@pytest.mark.parametrize("cut", [1, 4, 12, 20, 500])
def test_cut_png_is_told_by_nobody_but_us(tmp_path, capfd, cut):
    path = tmp_path / "a.png"
    path.write_bytes(encode(GREY, "PNG")[:-cut])
    for read in (read_image, read_label, read_color_label):
        with pytest.raises(DataError, match="is damaged or cut short"):
            read(path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("seed", range(5))
def test_a_flipped_byte_of_a_png_is_told_by_nobody_but_us(tmp_path, capfd, seed):
    data = bytearray(encode(GREY, "PNG"))
    start = data.index(b"IDAT") + 4
    data[np.random.default_rng(seed).integers(start, len(data) - 16)] ^= 1 << seed
    (tmp_path / "a.png").write_bytes(data)
    for read in (read_image, read_label, read_color_label):
        with pytest.raises(DataError, match="is damaged or cut short"):
            read(tmp_path / "a.png")
    assert capfd.readouterr().err == ""


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


@pytest.mark.parametrize("is_inverted", [False, True])
def test_label_keeps_indices_of_packed_tiff_masks(tmp_path, is_inverted):
    """Pillow cannot write 4 bit grey TIFF; the strip is two bytes."""
    tags = {256: 3, 257: 1, 258: 4, 259: 1, 262: 0 if is_inverted else 1, 273: 8, 277: 1, 278: 1,
            279: 2}  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    path = tmp_path / "a.tif"
    head = b"II*\0" + struct.pack("<I", 10) + b"\x01\xf0"
    path.write_bytes(head + struct.pack("<H", len(tags)) + entries + bytes(4))
    if is_inverted:
        with pytest.raises(DataError, match="is stored inverted"):
            read_label(path)
    else:
        assert read_label(path).tolist() == [[0, 1, 15]]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_label_keeps_16_bits(tmp_path, suffix):
    wide = np.random.default_rng(0).integers(0, 65536, (9, 7)).astype(np.uint16)
    assert cv2.imwrite(str(tmp_path / f"a{suffix}"), wide)
    label = read_label(tmp_path / f"a{suffix}")
    assert label.dtype == np.uint16
    np.testing.assert_array_equal(label, wide)


def test_colour_label_is_what_a_viewer_shows(tmp_path):
    palette = picture(1, 3)[0]
    write_png_indices(tmp_path / "a.png", np.array([[0, 2, 1]], np.uint8), palette)
    np.testing.assert_array_equal(read_color_label(tmp_path / "a.png")[0], palette[[0, 2, 1]])
    for kind, options in (("PNG", {}), ("TIFF", {}), ("BMP", {})):
        opaque = picture(channels=4)
        opaque[..., 3] = 255
        path = write(tmp_path / "a", opaque, kind, **options)
        np.testing.assert_array_equal(read_color_label(path), opaque[..., :3])


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
    "html": (
        b"\n<!DOCTYPE html>\n<html>",
        "looks like an HTML page, as a failed download leaves it",
    ),
    "text": (b"not found\n", "looks like text, not an image (it starts with b'not found\\n')"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    "gif": (encode(picture(), "GIF"), "is not an image in JPEG, PNG, WebP, TIFF or BMP"),
    "zeros": (bytes(100), "is not an image in JPEG, PNG, WebP, TIFF or BMP"),
    "pages": (
        encode(picture(), "TIFF", save_all=True, append_images=[Image.new("L", (2, 2))]),
        "holds 2 pictures",
    ),
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


BROKEN_LABELS = BROKEN | {
    "half-jpeg": (JPEG[: len(JPEG) // 2], "is a JPEG"),
    "last-byte-of-jpeg": (JPEG[:-1], "is a JPEG"),
    "colours": (encode(picture(), "PNG"), "holds colours (mode RGB)"),
    "alpha": (encode(picture(channels=4), "PNG"), "holds colours (mode RGBA)"),
    "jpeg": (encode(GREY, "JPEG"), "is a JPEG"),
    "webp": (encode(GREY, "WEBP", lossless=True), "is a WebP"),
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


@pytest.mark.parametrize("read", [read_image, read_label, read_color_label, read_size])
def test_what_is_no_file_is_never_opened(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    with (tmp_path / "endless.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    for path, what in (
        (tmp_path / "none.png", r"cannot be read \(No such file"),
        (tmp_path / "a\0b.png", "cannot be read"),
        (tmp_path, "is a folder, not a file"),
        (tmp_path / "pipe.png", "is a pipe, socket or device, not a file"),
        ("/dev/zero", "is a pipe, socket or device, not a file"),
        (tmp_path / "loop.png", r"cannot be read \(Too many levels of symbolic links"),
        (tmp_path / "endless.png", "is too large to decode safely"),
    ):
        with pytest.raises(DataError, match=what):
            read(path)


@pytest.mark.filterwarnings("ignore::UserWarning")  # pytest drops our own filter
@pytest.mark.parametrize("seed", range(3))
def test_damage_anywhere_is_an_error_of_ours_or_none(tmp_path, seed):
    rng = np.random.default_rng(seed)
    for kind in ("JPEG", "PNG", "TIFF", "BMP", "WEBP"):
        for array in (picture(), GREY):
            data = bytearray(encode(array, kind, **({} if kind == "BMP" else {"exif": exif(6)})))
            for _ in range(15):
                damaged = bytearray(data)
                for position in rng.integers(0, min(len(data), 400), 4):
                    damaged[position] = rng.integers(256)
                (tmp_path / "a").write_bytes(damaged)
                for read in (read_image, read_label, read_color_label):
                    with contextlib.suppress(DataError):
                        read(tmp_path / "a")
