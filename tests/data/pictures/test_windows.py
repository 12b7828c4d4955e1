import cv2
import numpy as np
import pytest
from PIL import Image

from deeplab_jax.data import images
from deeplab_jax.data.images import read_image
from deeplab_jax.data.pictures.windows import WindowedImage, read_by_windows
from deeplab_jax.errors import DataError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (90, 70, 3), np.uint8)
WIDE = RNG.integers(0, 4096, (90, 70, 3)).astype(np.uint16)


@pytest.fixture(autouse=True)
def low_limit(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 2000)


@pytest.mark.parametrize("kind", ["tiles", "strips", "turned", "16 bits", "png", "jpeg", "bytes"])
def test_rows_equal_those_of_the_whole_picture(write_tiff, tmp_path, kind, monkeypatch):
    value_range = (0, 4095) if kind == "16 bits" else ()
    if kind in ("png", "jpeg", "bytes"):
        path = tmp_path / f"a.{'jpg' if kind == 'jpeg' else 'png'}"
        Image.fromarray(RGB).save(path)
    else:
        options = {
            "tiles": {"tile": (16, 16), "deflate": True},
            "strips": {"rows": 4},
            "turned": {"tags": {274: (6,)}},
            "16 bits": {"tile": (16, 32), "planes": True, "deflate": True},
        }[kind]
        path = write_tiff(WIDE if value_range else RGB, **options)
    with pytest.raises(images.TooLargeError, match=r"limit 2000\) - cut it into tiles, or shrink"):
        read_image(path)
    picture = WindowedImage("a", path.read_bytes() if kind == "bytes" else path, value_range)
    monkeypatch.undo()
    whole = read_image(path, value_range)
    assert (picture.shape, picture.dtype, picture.ndim) == (whole.shape, np.uint8, 3)
    for rows, columns in ((slice(0, 9), slice(3, 60)), (slice(5, 20), slice(None)),
                          (slice(80, 200), slice(69, 70)), (slice(0, 1), slice(0, 1))):  # fmt: skip
        np.testing.assert_array_equal(picture[rows, columns], whole[rows, columns])
    np.testing.assert_array_equal(picture[2:4], whole[2:4])
    np.testing.assert_array_equal(np.asarray(picture), whole)


def test_strips_of_other_rows_are_not_decoded(tmp_path, monkeypatch):
    path = str(tmp_path / "a.tif")
    assert cv2.imwrite(path, RGB, [cv2.IMWRITE_TIFF_ROWSPERSTRIP, 8])
    picture, decoded = WindowedImage("a", path), []
    decode = images.decode_pixels

    def watched(name, data, limit):
        decoded.append(decode(name, data, limit))
        return decoded[-1]

    monkeypatch.setattr(images, "decode_pixels", watched)
    for _ in range(2):  # the latest rows are kept
        np.testing.assert_array_equal(picture[17:30], RGB[17:30, :, ::-1])
    assert [part.shape[0] for part in decoded] == [16]


def test_too_little_memory_and_damage_are_errors_with_the_name(write_tiff):
    path = write_tiff(RGB)
    assert read_by_windows("a", path, (), None).shape == RGB.shape
    with pytest.raises(DataError, match=r"^a: of 90 x 70 pixels needs 0\.0 GiB .* - cut it into"):
        read_by_windows("a", path, (), 1000)
    picture = WindowedImage("a", write_tiff(RGB, deflate=True, name="b.tif"))
    path.with_name("b.tif").write_bytes(path.with_name("b.tif").read_bytes()[:3000])
    with pytest.raises(DataError, match=r"^a: is damaged or cut short"):
        picture[60:80]
    with pytest.raises(DataError, match="has 16 bits a channel"):
        WindowedImage("a", write_tiff(WIDE))[:9]


@pytest.mark.parametrize(("size", "rows", "decoded"), [(8, 9, 272), (8, 300, 316), (100, 9, 400)])
def test_memory_counts_the_rows_that_are_decoded(write_tiff, size, rows, decoded):
    tall = RNG.integers(0, 256, (400, 5, 3), np.uint8)
    picture = WindowedImage("a", write_tiff(tall, rows=size, deflate=True), (), rows)
    assert picture.memory == 400 * 5 * 15 + decoded * 5 * 12
