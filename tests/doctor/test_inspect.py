import os

import cv2
import numpy as np
import pytest
from PIL import Image

from deeplab_jax.data.images import write_png_indices
from deeplab_jax.data.labels import Classes, ColorTable
from deeplab_jax.doctor.inspect import Facts, Sample, find_shifted, infer_values, scan, scan_sample


def facts_of(*counts, is_thin=()):
    """Returns facts of masks with these {value: pixels}; thin values have no inner pixels."""
    found = []
    for number, values in enumerate(counts):
        inside = {value: 0 if value in is_thin else count for value, count in values.items()}
        sample = Sample("train", str(number), "", f"{number}.png")
        found.append(Facts(sample, counts=values, interior=inside))
    return found


def test_facts_of_a_sample(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    label = np.zeros((20, 30), np.uint8)
    label[5:10, 5:10] = 3
    Image.fromarray(image).save(tmp_path / "a.png")
    write_png_indices(tmp_path / "m.png", label, np.arange(12, dtype=np.uint8).reshape(4, 3))
    facts = scan_sample(Sample("train", "a", str(tmp_path / "a.png"), str(tmp_path / "m.png")))
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
    a, b, c = (f.image_hash for f in scan([Sample("train", p, p, "") for p in paths]))
    assert a == b != c


def test_colours_of_a_mask_are_counted(tmp_path):
    colors = np.zeros((4, 5, 3), np.uint8)
    colors[1] = (128, 64, 1)
    path = str(tmp_path / "m.png")
    Image.fromarray(colors).save(path)
    facts = scan_sample(Sample("train", "m", "", path))
    assert (facts.mask_kind, facts.mask_size) == ("color", (4, 5))
    assert facts.colors == {(0, 0, 0): 15, (128, 64, 1): 5}
    table = ColorTable(Classes(("a", "b"), np.array([[128, 64, 1], [0, 0, 0]], np.uint8),
                               np.zeros((0, 3), np.uint8)))  # fmt: skip
    assert scan_sample(Sample("train", "m", "", path), table).counts == {0: 5, 1: 15}


def test_grey_masks_stored_as_colours_have_values_too(tmp_path):
    label = np.zeros((4, 5), np.uint8)
    label[1] = 3
    path = str(tmp_path / "m.png")
    Image.fromarray(np.stack([label] * 3, -1)).save(path)
    facts = scan_sample(Sample("train", "m", "", path))
    assert (facts.mask_kind, facts.is_grey, facts.counts) == ("color", True, {0: 15, 3: 5})
    assert "holds colours" in facts.mask_error


@pytest.mark.parametrize(("mode", "suffix"), [("LA", "png"), ("F", "tif")])
def test_mode_that_holds_neither_indices_nor_colours_is_named(tmp_path, mode, suffix):
    path = str(tmp_path / f"m.{suffix}")
    Image.new(mode, (5, 4)).save(path)
    assert f"is of mode {mode} (" in scan_sample(Sample("train", "m", "", path)).mask_error


def test_values_above_a_byte_are_counted(tmp_path):
    path = str(tmp_path / "m.png")
    Image.fromarray(np.array([[1, 1000], [1, 1]], np.uint16)).save(path)
    assert scan_sample(Sample("train", "m", "", path)).counts == {1: 3, 1000: 1}


def test_classes_are_the_values_found():
    values = infer_values(facts_of(*[{0: 50, 1: 40, 2: 9, 255: 1}] * 4))
    assert (values.classes, values.ignored, values.is_binary) == ((0, 1, 2), (255,), False)
    assert (values.stray, values.blended, values.rare) == ({}, {}, {})


def test_two_values_of_a_binary_mask_are_two_classes():
    values = infer_values(facts_of({0: 90, 255: 10}, {0: 100}))
    assert values.is_binary
    assert values.classes == (0, 255)


def test_value_of_few_masks_far_from_the_classes_is_stray():
    usual = [{0: 50, 1: 40, 4: 9}] * 20
    values = infer_values(facts_of(*usual, {0: 90, 200: 5}))
    assert (values.classes, values.stray) == ((0, 1, 4), {200: ["20.png"]})


@pytest.mark.parametrize("number", [20, 40])
@pytest.mark.parametrize("odd", [{100: 5, 150: 5, 200: 5}, {256: 40, 512: 5, 768: 5}])
def test_many_odd_values_of_one_mask_are_stray(number, odd):
    values = infer_values(facts_of(*[{0: 60, 1: 40}] * number, {0: 50, 1: 30, **odd}))
    assert values.classes == (0, 1)
    assert values.stray == {value: [f"{number}.png"] for value in odd}


def test_few_pixels_of_a_mask_in_a_hundred_are_no_class():
    usual = [{0: 50, 1: 40, 2: 9}] * 120
    values = infer_values(facts_of(*usual, {0: 50, 1: 40, 3: 9}))
    assert (values.classes, values.stray) == ((0, 1, 2), {3: ["120.png"]})
    mixed = {0: 900, 1: 600} | dict.fromkeys(range(3, 250, 9), 20)
    values = infer_values(facts_of(*usual, {0: 50, 3: 9}, mixed, is_thin=range(3, 250)))
    assert (values.classes, values.stray) == ((0, 1, 2), {3: ["120.png"]})
    values = infer_values(facts_of(*usual, {0: 50, 1: 40, 3: 90}))
    assert (values.classes, values.rare) == ((0, 1, 2, 3), {3: ["120.png"]})


def test_one_odd_value_hides_no_binary_masks():
    values = infer_values(facts_of(*[{0: 90, 255: 10}] * 20, {0: 80, 128: 5, 255: 15}))
    assert (values.is_binary, values.classes, values.ignored) == (True, (0, 255), ())
    assert values.stray == {128: ["20.png"]}
    seams = facts_of(*[{0: 90, 255: 10}] * 20, {0: 80, 128: 5, 255: 15}, is_thin=(255,))
    assert not infer_values(seams).is_binary


def test_binary_masks_that_are_all_mixed_are_binary_still():
    mixed = {0: 900, 255: 600} | dict.fromkeys(range(3, 250, 9), 2)
    values = infer_values(facts_of(*[mixed] * 10, is_thin=range(3, 250)))
    assert (len(values.blended), values.is_binary, values.classes) == (10, True, (0, 255))


def test_value_of_few_masks_next_to_the_classes_is_a_rare_class():
    values = infer_values(facts_of(*[{0: 50, 1: 40, 2: 9}] * 30, {0: 45, 1: 40, 2: 9, 3: 6}))
    assert (values.classes, values.rare) == ((0, 1, 2, 3), {3: ["30.png"]})


def test_spread_values_that_many_masks_hold_are_classes():
    values = infer_values(facts_of(*[{0: 50, 85: 40, 170: 9}] * 5))
    assert values.classes == (0, 85, 170)
    assert not values.stray


@pytest.mark.parametrize("how", ["jpeg", "resize"])
@pytest.mark.parametrize("is_all", [False, True])
def test_masks_of_mixed_values_are_recognised(tmp_path, how, is_all):
    rng = np.random.default_rng(0)
    samples = []
    for number in range(8):
        blocks = rng.permutation(np.arange(30) % 5).astype(np.uint8).reshape(5, 6) * 20
        label = blocks.repeat(12, 0).repeat(12, 1)
        if is_all or number == 3:
            if how == "jpeg":
                label = cv2.imdecode(cv2.imencode(".jpg", label)[1], cv2.IMREAD_GRAYSCALE)
            else:
                label = cv2.resize(label, (65, 54), interpolation=cv2.INTER_LINEAR)
        path = str(tmp_path / f"{number}.png")
        Image.fromarray(label).save(path)
        samples.append(Sample("train", str(number), "", path))
    values = infer_values(list(scan(samples)))
    if is_all:
        assert len(values.blended) >= 6
    else:
        assert list(values.blended) == [samples[3].mask]
        assert values.classes == (0, 20, 40, 60, 80)


def test_shifted_mask_is_found_among_others():
    rng = np.random.default_rng(0)
    share = np.array([200, 10, 600, 20, 170])
    masks = [dict(enumerate((share * rng.uniform(0.5, 1.5, 5)).astype(int))) for _ in range(20)]
    assert find_shifted(facts_of(*masks), range(5)) == {}
    masks[7] = {value + 1: count for value, count in masks[7].items()}
    masks[9] = {value - 1: count for value, count in masks[9].items() if value}
    assert find_shifted(facts_of(*masks), range(5)) == {"7.png": -1, "9.png": 1}


def test_damaged_files_are_told_and_never_raised(tmp_path):
    for name in ("a.jpg", "m.png"):
        (tmp_path / name).write_bytes(b"")
    facts = scan_sample(Sample("train", "a", str(tmp_path / "a.jpg"), str(tmp_path / "m.png")))
    assert facts.image_error == facts.mask_error == "is an empty file"
    assert facts.image_size is facts.mask_size is None
    assert (facts.counts, facts.image_hash) == ({}, b"")


def test_mask_that_is_a_pipe_is_told_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "m.png")
    facts = scan_sample(Sample("train", "m", "", str(tmp_path / "m.png")))
    assert "pipe" in facts.mask_error
    assert facts.mask_kind == ""
