import time

import numpy as np
import pytest

from deeplab_jax.data import colors


@pytest.mark.parametrize(("count", "least"), [(12, 0.075), (19, 0.07), (150, 0.019), (255, 0.012)])
def test_colours_stay_apart_for_every_kind_of_vision(count, least):
    seen = colors.as_seen(colors.safe_palette(count))
    assert seen.shape == (3, count, 3)
    apart = np.linalg.norm(seen[:, :, None] - seen[:, None], axis=-1).min(0)
    assert apart[~np.eye(count, dtype=bool)].min() > least


def test_no_colour_is_dark_or_white():
    lightness = colors.as_seen(colors.safe_palette(255))[..., 0]
    assert lightness[0].min() >= 0.5
    assert lightness.min() >= 0.4  # without the cones that see a colour best
    assert lightness[0].max() <= 0.95
    black = np.zeros((1, 3), np.uint8)
    mixed = (colors.safe_palette(255) // 2 + black // 2).astype(np.uint8)  # over a black picture
    assert colors.as_seen(mixed)[0, :, 0].min() > 0.3


def test_a_class_keeps_its_colour_when_others_are_added():
    whole = colors.safe_palette(255)
    for count in (0, 1, 7, 8, 20):
        palette = colors.safe_palette(count)
        assert (palette.dtype, palette.shape) == (np.uint8, (count, 3))
        np.testing.assert_array_equal(palette, whole[:count])
    # Fixed: a palette is saved with a checkpoint, and pictures of two machines are compared.
    assert (
        bytes(whole[:9]).hex(" ", 3)
        == "56b4e9 e69f00 009e73 f0e442 cc79a7 d55e00 0072b2 6edcb0 0042ff"
    )


def test_colours_are_chosen_fast():
    seconds = []
    for _ in range(5):
        start = time.process_time()
        colors.safe_palette(255)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.05
