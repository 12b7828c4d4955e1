import cv2
import numpy as np
import pytest

from deeplab_jax.config.transforms import NAMED
from deeplab_jax.data.augment import named

VALUES = {
    name: {key: value.default for key, value in transform.parameters.items()}
    for name, transform in NAMED.items()
}


def blocks(height=96, width=128, size=16):
    """Returns an image whose colour tells the class of its label, in blocks."""
    rows, columns = np.indices((height, width)) // size
    label = ((3 * rows + columns) % 7).astype(np.uint8)
    label[:4] = 255
    return np.repeat(label[..., None], 3, 2) * np.uint8(2), label


def apply(name, seed=0, **values):
    """Returns the image and label before and after; the chance is 1."""
    image, label = blocks()
    before = image.copy(), label.copy()
    values = VALUES[name] | {"chance": 1} | values
    after = getattr(named, name)(image, label, np.random.default_rng(seed), **values)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(label, before[1])
    assert [part.dtype for part in after] == [np.uint8] * 2
    return before, after


@pytest.mark.parametrize("name", ["vertical_flip", "rotate", "blur", "jpeg", "erase"])
def test_one_generator_is_one_sample_and_chance_may_leave_it(name):
    first, again, other = (apply(name, seed)[1] for seed in (0, 0, 1))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert name == "vertical_flip" or (first[0] != other[0]).any()
    image, label = blocks()
    kept = 0
    for seed in range(200):
        values = VALUES[name] | {"chance": 0.25}
        out = getattr(named, name)(image, label, np.random.default_rng(seed), **values)
        kept += out[0] is image and out[1] is label
    assert 130 < kept < 170


def test_vertical_flip_mirrors_both():
    before, after = apply("vertical_flip")
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(new, old[::-1])


@pytest.mark.parametrize("seed", range(4))
def test_rotation_moves_image_and_label_together_and_ignores_what_it_lacks(seed):
    _, (image, label) = apply("rotate", seed, degrees=60)
    is_picture = label != 255
    assert 0.1 < (~is_picture).mean() < 0.7
    # Away from edges the nearest label is that of all four pixels that the image mixes.
    least = cv2.erode(label, np.ones((5, 5)), borderValue=0)
    inner = is_picture & (least == cv2.dilate(label, np.ones((5, 5)), borderValue=255))
    assert inner.mean() > 0.1
    np.testing.assert_array_equal(image[inner][:, 0], 2 * label[inner])


def test_rotation_by_half_a_turn_is_two_flips():
    class Half:
        def random(self):
            return 0.0

        def uniform(self, low, high):
            return high

    image, label = blocks()
    got = named.rotate(image, label, Half(), degrees=180, chance=1)
    np.testing.assert_array_equal(got[0], image[::-1, ::-1])
    np.testing.assert_array_equal(got[1], label[::-1, ::-1])


def test_corners_of_a_rotation_have_the_mean_colour():
    image, label = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
    values = {"degrees": 45, "chance": 1}
    image, label = named.rotate(image, label, np.random.default_rng(1), **values)
    np.testing.assert_array_equal(image[0, 0], named.MEAN_COLOR)
    assert label[0, 0] == 255


@pytest.mark.parametrize("name", ["blur", "jpeg"])
def test_colours_alone_change(name):
    before, after = apply(name)
    assert after[1] is not None
    np.testing.assert_array_equal(after[1], before[1])
    difference = np.abs(after[0].astype(int) - before[0])
    assert 0 < difference.mean() < 5  # no channel is swapped, nothing moves
    red = np.zeros((32, 32, 3), np.uint8) + np.array([200, 20, 30], np.uint8)
    values = VALUES[name] | {"chance": 1}
    got, _ = getattr(named, name)(red, before[1], np.random.default_rng(0), **values)
    assert np.abs(got.astype(int) - red).max() < 12


@pytest.mark.parametrize("void", [False, True])
def test_erasing_fills_a_rectangle_of_the_share(void):
    shares = []
    for seed in range(40):
        before, after = apply("erase", seed, void=void, max_share=0.3)
        is_gone = (after[0] == named.MEAN_COLOR).all(-1)
        rows, columns = np.nonzero(is_gone)
        box = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert is_gone[box].all()
        np.testing.assert_array_equal(after[0][~is_gone], before[0][~is_gone])
        expected = np.where(is_gone & void, 255, before[1])
        np.testing.assert_array_equal(after[1], expected)
        shares.append(is_gone.mean())
    assert 0.01 < min(shares) < 0.08 < 0.2 < max(shares) < 0.31


@pytest.mark.parametrize("size", [(96, 128), (30, 200), (200, 30), (1, 1)])
def test_pasting_moves_pixels_of_the_classes_with_their_labels(size):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 5, size, dtype=np.uint8)
    label[0, 0] = 3
    other = np.repeat(label[..., None] + np.uint8(100), 3, 2), label
    image = np.zeros((50, 60, 3), np.uint8)
    places = set()
    for seed in range(30):
        target = np.full((50, 60), 9, np.uint8)
        got = named.paste((image, target), other, 3, (3, 4), np.random.default_rng(seed))
        is_pasted = got[1] != 9
        assert set(np.unique(got[1][is_pasted])) <= {3, 4}
        assert (got[1] == 3).any()
        np.testing.assert_array_equal(got[0][is_pasted][:, 0], got[1][is_pasted] + 100)
        assert not got[0][~is_pasted].any()
        assert not image.any()
        assert (target == 9).all()
        places.add(got[1].tobytes())
    assert len(places) > 20
    sample = image, target
    assert named.paste(sample, other, 7, (7,), rng) is sample  # without a pixel of the class
