import os

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.data.images import write_png_indices
from deeplab_jax.data.labels import Classes, ColorTable
from deeplab_jax.doctor.scan import Pair, scan, scan_sample


def test_facts_of_a_sample(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    label = np.zeros((20, 30), np.uint8)
    label[5:10, 5:10] = 3
    Image.fromarray(image).save(tmp_path / "a.png")
    write_png_indices(tmp_path / "m.png", label, np.arange(12, dtype=np.uint8).reshape(4, 3))
    facts = scan_sample(Pair("train", "a", str(tmp_path / "a.png"), str(tmp_path / "m.png")))
    assert (facts.image_size, facts.mask_size) == ((20, 30), (20, 30))
    assert (facts.image_mode, facts.orientation, facts.mask_kind) == ("RGB", 1, "palette")
    assert facts.counts == {0: 575, 3: 25}
    assert facts.interior == {0: 575 - 24, 3: 9}  # those that touch the other value are left out
    assert facts.palette == {0: (0, 1, 2), 3: (9, 10, 11)}
    assert facts.seconds >= facts.decode_seconds > 0


def test_hash_tells_pictures_apart_and_not_files(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (8, 6, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(image).save(tmp_path / "b.bmp")
    Image.fromarray(image.reshape(6, 8, 3)).save(tmp_path / "c.png")
    paths = [str(tmp_path / name) for name in ("a.png", "b.bmp", "c.png")]
    a, b, c = (f.image_hash for f in scan([Pair("train", p, p, "") for p in paths]))
    assert a == b != c


def test_colours_of_a_mask_are_counted(tmp_path):
    colors = np.zeros((4, 5, 3), np.uint8)
    colors[1] = (128, 64, 1)
    path = str(tmp_path / "m.png")
    Image.fromarray(colors).save(path)
    facts = scan_sample(Pair("train", "m", "", path))
    assert (facts.mask_kind, facts.mask_size) == ("color", (4, 5))
    assert facts.colors == {(0, 0, 0): 15, (128, 64, 1): 5}
    table = ColorTable(Classes(("a", "b"), np.array([[128, 64, 1], [0, 0, 0]], np.uint8),
                               np.zeros((0, 3), np.uint8)))  # fmt: skip
    assert scan_sample(Pair("train", "m", "", path), table).counts == {0: 5, 1: 15}


def test_grey_masks_stored_as_colours_have_values_too(tmp_path):
    label = np.zeros((4, 5), np.uint8)
    label[1] = 3
    path = str(tmp_path / "m.png")
    Image.fromarray(np.stack([label] * 3, -1)).save(path)
    facts = scan_sample(Pair("train", "m", "", path))
    assert (facts.mask_kind, facts.mask_error, facts.counts) == ("index", "", {0: 15, 3: 5})
    assert (facts.mask_mode, facts.colors) == ("RGB", {(0, 0, 0): 15, (3, 3, 3): 5})


@pytest.mark.parametrize(("mode", "what"), [("F", "32-bit floats"), ("CMYK", "mode CMYK")])
def test_mode_that_holds_neither_indices_nor_colours_is_named(tmp_path, mode, what):
    path = str(tmp_path / "m.tif")
    Image.new(mode, (5, 4)).save(path)
    facts = scan_sample(Pair("train", "m", "", path))
    assert what in facts.mask_error
    assert (facts.mask_kind, "save masks as 8-bit" in facts.mask_fix) == ("", True)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparent_pixels_are_no_value(tmp_path, mode):
    label = np.full((4, 5), 3, np.uint8)
    alpha = np.full((4, 5), 255, np.uint8)
    label[0], alpha[1] = 1, 0
    path = str(tmp_path / "m.png")
    channels = [label] * (len(mode) - 1)
    Image.merge(mode, [Image.fromarray(c) for c in (*channels, alpha)]).save(path)
    facts = scan_sample(Pair("train", "m", "", path))
    assert (facts.counts, facts.transparent) == ({1: 5, 3: 10}, 5)
    assert facts.interior == {3: 5}  # the transparent row is an edge
    table = ColorTable(Classes(("a", "b"), np.array([[1, 1, 1], [3, 3, 3]], np.uint8),
                               np.zeros((0, 3), np.uint8)))  # fmt: skip
    facts = scan_sample(Pair("train", "m", "", path), table)
    assert (facts.counts, facts.transparent) == ({0: 5, 1: 10, 255: 5}, 5)


def test_values_above_a_byte_are_counted(tmp_path):
    path = str(tmp_path / "m.png")
    Image.fromarray(np.array([[1, 1000], [1, 1]], np.uint16)).save(path)
    assert scan_sample(Pair("train", "m", "", path)).counts == {1: 3, 1000: 1}


def test_damaged_files_are_told_and_never_raised(tmp_path):
    for name in ("a.jpg", "m.png"):
        (tmp_path / name).write_bytes(b"")
    facts = scan_sample(Pair("train", "a", str(tmp_path / "a.jpg"), str(tmp_path / "m.png")))
    assert facts.image_error == facts.mask_error == "is an empty file"
    assert facts.image_size is facts.mask_size is None
    assert (facts.counts, facts.image_hash) == ({}, b"")


def test_mask_that_is_a_pipe_is_told_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "m.png")
    facts = scan_sample(Pair("train", "m", "", str(tmp_path / "m.png")))
    assert "pipe" in facts.mask_error
    assert facts.mask_kind == ""
