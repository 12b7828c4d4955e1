import io

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps

from deeplab_jax.data.images import MAX_PIXELS, read_image
from deeplab_jax.errors import DataError
from deeplab_jax.inference import inputs

RGB = np.random.default_rng(0).integers(0, 256, (12, 17, 3), np.uint8)


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


PLAIN = inputs.Reading()


def read(image, reading=PLAIN):
    inputs.check_image(image)
    pixels = inputs.read(image, "x", reading)
    assert (pixels.dtype, pixels.ndim) == (np.uint8, 3)
    assert inputs.size_of(image, "x") == pixels.shape[:2]
    return pixels


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"]
)
def test_pillow_image_of_any_mode_is_its_rgb(mode):
    picture = Image.fromarray(RGB).convert("P" if mode == "PA" else "RGB").convert(mode)
    np.testing.assert_array_equal(read(picture), picture.convert("RGB"))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("is_opened", [False, True])
def test_pillow_image_and_bytes_give_what_their_file_gives(tmp_path, mode, is_opened):
    picture = Image.fromarray(RGB[..., 0].astype(np.uint16) << 8 | 7)
    if mode != "I;16":
        picture = Image.fromarray(RGB).convert(mode)
    path, data = tmp_path / "a.png", encode(picture)
    path.write_bytes(data)
    value_range = (0, 40000) if mode == "I;16" else ()
    expected = read_image(path, value_range)
    if is_opened:
        picture = Image.open(path)
    for image in (picture, picture, data, path, str(path)):  # once more: now it is decoded
        np.testing.assert_array_equal(read(image, inputs.Reading(value_range)), expected)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_16_bits_are_scaled_in_every_form_or_refused(tmp_path, kind, channels):
    wide = np.random.default_rng(0).integers(0, 4096, (12, 17, channels)).astype(np.uint16)
    path, reading = tmp_path / f"a.{kind}", inputs.Reading((0, 4095))
    assert cv2.imwrite(str(path), wide)
    expected = read_image(path, reading.value_range)
    rgb = wide[..., 0] if channels == 1 else np.ascontiguousarray(wide[..., 2::-1])
    for image in (path, path.read_bytes(), rgb):
        np.testing.assert_array_equal(read(image, reading), expected)
        with pytest.raises(DataError, match="has 16 bits a channel, values up to 40"):
            read(image)
    picture = Image.open(path)
    if channels == 1 or kind == "tif":
        np.testing.assert_array_equal(read(picture, reading), expected)
    else:
        with pytest.raises(DataError, match="of which Pillow keeps 8 - give the path or the bytes"):
            read(picture, reading)


@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "RGB"), ("PNG", "P"), ("TIFF", "RGB")])
@pytest.mark.parametrize("is_decoded", [False, True])
def test_orientation_of_a_pillow_image_is_applied_once(kind, mode, is_decoded):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.fromarray(RGB).convert(mode), kind, exif=exif)
    picture = Image.open(io.BytesIO(data))
    if is_decoded:
        picture.load()
    expected = inputs.read(data, "x")
    assert expected.shape == (17, 12, 3)
    np.testing.assert_array_equal(read(picture), expected)
    np.testing.assert_array_equal(read(ImageOps.exif_transpose(picture)), expected)


def test_premultiplied_alpha_is_dropped():
    for plain, mode in (("LA", "La"), ("RGBA", "RGBa")):
        opaque = Image.fromarray(RGB).convert(plain)
        np.testing.assert_array_equal(read(opaque.convert(mode)), opaque.convert("RGB"))


def test_array_is_taken_as_it_is_and_grey_is_three_channels():
    assert inputs.read(RGB, "x") is RGB
    grey = RGB[..., 1]
    np.testing.assert_array_equal(read(grey), np.stack([grey] * 3, -1))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (RGB / np.float32(255), "got float32 (12, 17, 3); of values in 0..1 give (255 * image)"),
        (RGB.astype(np.int64), "got int64 (12, 17, 3); scale to 0..255 and convert with image.as"),
        (RGB > 9, "got bool (12, 17, 3); scale to 0..255 and convert"),
        (RGB.transpose(2, 0, 1), "got uint8 (3, 12, 17); put channels last with image.transpose(1"),
        (
            RGB[..., [0, 1, 2, 2]],
            "got uint8 (12, 17, 4); drop alpha with image[..., :3], of OpenCV",
        ),
        (RGB[..., :1], "got uint8 (12, 17, 1); drop the last axis with image[..., 0]"),
        (RGB[..., :2], "got uint8 (12, 17, 2); give three channels"),
        (RGB[None], "got uint8 (1, 12, 17, 3); give list(images) for several"),
        (RGB[0, 0], "got uint8 (3,); give one image, or a list of them"),
        (RGB[:0], "got uint8 (0, 17, 3); it has no pixels"),
    ],
)
def test_array_of_another_kind_is_told_with_its_cure(image, words):
    with pytest.raises(ValueError, match="must be uint8") as error:
        inputs.check_image(image, "images[2]")
    start = "`images[2]` must be uint8 or uint16, (H, W, 3) RGB or (H, W) grey, "
    assert str(error.value).startswith(start + words)
    assert str(error.value).endswith(".")


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (jnp.zeros((2, 2, 3), jnp.uint8), "got jax.Array; convert it with np.asarray(image)."),
        ({RGB.tobytes()}, "got set; give several as a list or tuple."),
        ((x for x in [RGB]), "got generator; give several as a list or tuple."),
        ({"a": RGB}, "got dict; give list(images.values())."),
        ([RGB], "got list; lists do not nest."),
        (bytearray(b"x"), "got bytearray; convert it with bytes(image)."),
        (None, "got NoneType; give one of these."),
        (io.BytesIO(b"x"), "got _io.BytesIO; give the bytes of its read()."),
    ],
)
def test_other_types_are_told_with_their_cure(image, words):
    with pytest.raises(TypeError) as error:
        inputs.check_image(image)
    accepted = "`image` must be a path, bytes of an image file, a Pillow image, or NumPy uint8 "
    assert str(error.value) == f"{accepted}(H, W, 3) RGB or (H, W), {words}"


def test_tensor_is_told_with_its_cure():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"got torch\.Tensor; convert it with image\.permute\(1, 2"):
        inputs.check_image(torch.zeros(3, 4, 4))


def test_limits_of_files_hold_for_bytes_and_pillow_images(tmp_path):
    large = Image.new("L", (1, 1))
    large._size = (MAX_PIXELS, 2)
    with pytest.raises(DataError, match=r"^x: is too large to decode safely \(2 x 80000000 pixels"):
        inputs.read(large, "x")
    cut = encode(Image.fromarray(RGB), "JPEG")[:-50]
    for image in (cut, Image.open(io.BytesIO(cut))):
        with pytest.raises(DataError, match=r"^x: is damaged or cut short"):
            inputs.read(image, "x")
    (tmp_path / "a.png").write_bytes(encode(Image.fromarray(RGB)))
    with (tmp_path / "a.png").open("rb") as file:
        closed = Image.open(file)
    with pytest.raises(DataError, match=r"^x: is damaged or cut short \(.*closed"):
        inputs.read(closed, "x")
    with pytest.raises(DataError, match="has 32 bits a channel"):
        inputs.read(Image.fromarray(RGB[..., 0].astype(np.float32)), "x")
    with pytest.raises(ValueError, match="must have pixels, got a Pillow image of 0 x 5"):
        inputs.check_image(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("images", ["a.jpg", RGB, {"a.jpg"}])
def test_images_are_a_list(images):
    with pytest.raises(
        TypeError, match=r"`images` must be a list or tuple, got .*; give a list of"
    ):
        inputs.check_images(images)
