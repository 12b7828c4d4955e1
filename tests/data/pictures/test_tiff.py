import contextlib
import io
import itertools
import struct

import cv2
import numpy as np
import pytest

from deeplab_jax.data.images import decode_pixels, read_image, read_label, read_pixels, read_size
from deeplab_jax.data.pictures import tiff
from deeplab_jax.errors import DataError

RNG = np.random.default_rng(0)
WIDE = RNG.integers(0, 65536, (40, 52, 4)).astype(np.uint16)
FORMS = [
    {"order": order, "tile": tile, "planes": planes, "deflate": deflate, "predictor": predictor}
    for order, tile, planes, (deflate, predictor) in itertools.product(
        "<>", [(), (16, 32)], [False, True], [(False, False), (True, False), (True, True)]
    )
]


@pytest.mark.parametrize("samples", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_form_of_a_picture_and_of_its_rows_is_exact(write_tiff, samples, dtype):
    array = WIDE[..., :samples].astype(dtype)
    expected = array[..., 0] if samples == 1 else array[..., :3]
    for options in FORMS:
        path = write_tiff(array, **options)
        pixels = read_pixels(path)
        assert pixels.dtype == dtype
        shown = pixels[..., 0] if (dtype, samples) == (np.uint8, 1) else pixels
        np.testing.assert_array_equal(shown, expected, str(options))
        file = io.BytesIO(path.read_bytes())
        [directory] = tiff.directories(file)
        assert tiff.is_cuttable(directory, 40 * 52)
        for top, bottom in ((0, 3), (9, 17), (30, 40)):
            data, first = tiff.cut(file, directory, top, bottom)
            part = decode_pixels("a", data)
            assert first <= top
            assert bottom <= first + len(part) <= bottom + 16
            rows = part[top - first : bottom - first]
            np.testing.assert_array_equal(rows, pixels[top:bottom], str(options))


def test_lzw_of_16_bits_in_strips_is_exact(tmp_path):
    options = [cv2.IMWRITE_TIFF_COMPRESSION, 5, cv2.IMWRITE_TIFF_ROWSPERSTRIP, 8]
    assert cv2.imwrite(str(tmp_path / "a.tif"), WIDE[..., 2::-1], options)
    np.testing.assert_array_equal(read_pixels(tmp_path / "a.tif"), WIDE[..., :3])


def test_a_strip_of_all_rows_is_cut_where_it_is_not_compressed(write_tiff):
    array = np.repeat(WIDE[..., :3].astype(np.uint8), 5, 0)  # 200 rows
    for deflate in (False, True):
        file = io.BytesIO(write_tiff(array, rows=200, deflate=deflate).read_bytes())
        [directory] = tiff.directories(file)
        assert tiff.is_cuttable(directory, 100 * 52) != deflate
        data, first = tiff.cut(file, directory, 70, 80)
        part = decode_pixels("a", data)
        assert len(part) == (200 if deflate else 64)
        np.testing.assert_array_equal(part[70 - first : 80 - first], array[70:80])


def test_turned_pictures_of_16_bits_are_upright(write_tiff):
    path = write_tiff(WIDE[..., :3], tags={274: (6,)})
    assert read_size(path) == (52, 40)
    np.testing.assert_array_equal(read_pixels(path), np.rot90(WIDE[..., :3], 3))


@pytest.mark.parametrize("subfile", [1, 4, 5])
@pytest.mark.parametrize("is_first", [False, True])
def test_reduced_copies_and_transparency_are_no_further_pictures(write_tiff, subfile, is_first):
    array = WIDE[..., :3].astype(np.uint8)
    small, marked = array[::2, ::2].copy(), {254: (subfile,)}
    path = write_tiff(array, more=[(small, marked)])
    if is_first:
        path = write_tiff(small, tags=marked, more=[(array, {})])
    np.testing.assert_array_equal(read_image(path), array)
    assert read_size(path) == (40, 52)
    with pytest.raises(DataError, match="holds 2 pictures - keep one"):
        read_image(write_tiff(array, more=[(small, {})]))


GREY = WIDE[..., 0]
ODD = {
    "floats": (GREY.astype(np.float32), {}, "is a TIFF of 32-bit floats - store whole numbers"),
    "doubles": (GREY.astype(np.float64), {}, "is a TIFF of 64-bit floats"),
    "half": ((GREY % 99).astype(np.float16), {}, "is a TIFF of 16-bit floats"),
    "int64": (GREY.astype(np.int64), {}, "is a TIFF of 64-bit integers - store whole numbers"),
    "uint32": (GREY.astype(np.uint32), {}, "is a TIFF of 32-bit integers"),
    "signed": (GREY.astype(np.int16), {}, "is a TIFF of 16-bit signed integers"),
    "2": (WIDE[..., :2], {}, "is a TIFF of 2 bands - keep one: gdal_translate -b 1 IN.tif OUT.tif"),
    "2 of 8": (WIDE[..., :2].astype(np.uint8), {}, "is a TIFF of 2 bands"),
    "3": (WIDE[..., :3], {262: (1,)}, "is a TIFF of 3 bands, none of them marked as red"),
    "5": (WIDE[..., [0, 1, 2, 3, 0]], {}, "is a TIFF of 5 bands - keep three"),
    "5 of 8": (WIDE[..., [0, 1, 2, 3, 0]].astype(np.uint8), {}, "is a TIFF of 5 bands"),
    "12": (WIDE[..., [0, 1, 2, 3] * 3], {262: (1,)}, "is a TIFF of 12 bands"),
    "inverted": (GREY, {262: (0,)}, "is a TIFF stored inverted"),
    "alpha": (WIDE[..., :2], {338: (2,)}, "is a TIFF of 2 channels of 16 bits that are not red"),
    "jpeg2000": (GREY.astype(np.uint8), {259: (34712,)}, "is a TIFF in JPEG 2000 compression"),
    "unknown": (GREY.astype(np.uint8), {262: (9,)}, "is a TIFF of 1 channel of 8 bits, of a kind"),
}


@pytest.mark.parametrize("name", list(ODD))
@pytest.mark.parametrize("order", ["<", ">"])
def test_what_is_not_read_says_what_it_is(write_tiff, capfd, name, order):
    array, tags, text = ODD[name]
    path = write_tiff(array, order=order, tags=tags)
    with pytest.raises(DataError) as error:
        read_image(path)
    assert str(error.value).startswith(f"{path}: {text}")
    assert "IN.tif OUT.tif" in error.value.fix or "store it" in error.value.fix
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.float64])  # float32: test_masks.py
def test_masks_of_other_numbers_say_what_they_are(write_tiff, dtype):
    kind = "floats" if np.dtype(dtype).kind == "f" else "integers"
    name = f"{8 * np.dtype(dtype).itemsize}-bit {kind}"
    with pytest.raises(DataError, match=f"is a TIFF of {name} - store whole numbers of 8 or 16"):
        read_label(write_tiff(GREY.astype(dtype)))


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint16, np.uint32])
def test_masks_of_wide_integers_are_read(write_tiff, dtype):
    label = (GREY % 7).astype(dtype)
    np.testing.assert_array_equal(read_label(write_tiff(label)), label)


def test_big_endian_bigtiff_says_what_it_is(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"MM\0+" + struct.pack(">HHQ", 8, 0, 16) + bytes(40))
    with pytest.raises(DataError, match="is a big-endian BigTIFF, which is not read - store it"):
        read_image(tmp_path / "a.tif")


@pytest.mark.filterwarnings("ignore::UserWarning")  # pytest drops our own filter
@pytest.mark.parametrize("seed", range(2))
def test_damage_anywhere_is_an_error_of_ours_or_none(write_tiff, capfd, seed):
    rng = np.random.default_rng(seed)
    whole = [FORMS[k] for k in rng.integers(0, len(FORMS), 6)]
    for options in whole:
        path = write_tiff(WIDE[:16, :16, :3], **options)
        data = path.read_bytes()
        for _ in range(12):
            damaged = bytearray(data[: len(data) - int(rng.integers(0, 99))])
            for position in rng.integers(0, len(damaged), 3):
                damaged[position] = rng.integers(256)
            for place in rng.integers(len(damaged) - 250, len(damaged), 3):
                damaged[place] = rng.integers(256)
            path.write_bytes(damaged)
            with contextlib.suppress(DataError):
                read_pixels(path)
    assert capfd.readouterr().out == ""


def test_strips_that_claim_more_than_the_file_has_are_never_read(write_tiff):
    array = WIDE[..., :3]
    for tags in ({279: (2**31,) * 5}, {273: (8,) * 5, 279: (40 * 52 * 6 + 100,) * 5}):
        with pytest.raises(DataError, match="is damaged or cut short"):
            read_pixels(write_tiff(array, tags=tags))
