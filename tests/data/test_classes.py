import numpy as np
import pytest

from deeplab_jax.data.classes import CLASS_NAMES, PALETTES, colormap


@pytest.mark.parametrize("name", ["voc", "ade20k", "cityscapes"])
def test_names_and_colours_are_the_references(expected, name):
    assert list(CLASS_NAMES[name]) == expected["class_names"][name]
    assert PALETTES[name].dtype == np.uint8
    np.testing.assert_array_equal(PALETTES[name], expected["palette"][name])


def test_colormap_deals_out_bits():
    # 255 and 8 by hand: 0b1000 sets red's second highest bit.
    assert colormap(256)[[0, 1, 2, 4, 8, 255]].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [0, 0, 128], [64, 0, 0], [224, 224, 192],
    ]  # fmt: skip
    assert len(np.unique(colormap(256), axis=0)) == 256
