import cv2
import numpy as np
import pytest
from PIL import Image

from deeplab_jax.doctor.scan import Pair, SampleFacts, scan
from deeplab_jax.doctor.values import find_shifted, infer_values


def facts_of(*counts, is_thin=()):
    """Returns facts of masks with these {value: pixels}; thin values have no inner pixels."""
    found = []
    for number, values in enumerate(counts):
        inside = {value: 0 if value in is_thin else count for value, count in values.items()}
        pair = Pair("train", str(number), "", f"{number}.png")
        found.append(SampleFacts(pair, counts=values, interior=inside))
    return found


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
    pairs = []
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
        pairs.append(Pair("train", str(number), "", path))
    values = infer_values(list(scan(pairs)))
    if is_all:
        assert len(values.blended) >= 6
    else:
        assert list(values.blended) == [pairs[3].mask]
        assert values.classes == (0, 20, 40, 60, 80)


def test_shifted_mask_is_found_among_others():
    rng = np.random.default_rng(0)
    share = np.array([200, 10, 600, 20, 170])
    masks = [dict(enumerate((share * rng.uniform(0.5, 1.5, 5)).astype(int))) for _ in range(20)]
    assert find_shifted(facts_of(*masks), range(5)) == {}
    masks[7] = {value + 1: count for value, count in masks[7].items()}
    masks[9] = {value - 1: count for value, count in masks[9].items() if value}
    assert find_shifted(facts_of(*masks), range(5)) == {"7.png": -1, "9.png": 1}
