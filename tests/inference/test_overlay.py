import numpy as np
import pytest
from PIL import Image

from deeplab_jax.data.classes import CLASS_NAMES
from deeplab_jax.data.colors import safe_palette
from deeplab_jax.inference.overlay import Entry, add_legend, percent, short_name


def entries_of(names):
    colors = [tuple(color) for color in safe_palette(len(names)).tolist()]
    return [Entry(name, 1 / len(names), color) for name, color in zip(names, colors, strict=True)]


@pytest.mark.parametrize("size", [(1, 1), (97, 65), (480, 360), (1600, 900), (9, 3000)])
@pytest.mark.parametrize("count", [1, 6, 150])
def test_legend_shows_every_class_below_an_unchanged_picture(size, count):
    picture = Image.fromarray(np.full((*size[::-1], 3), 77, np.uint8))
    entries = entries_of(CLASS_NAMES["ade20k"][:count])
    got = add_legend(picture, entries)
    assert (got.mode, got.width) == ("RGB", max(size[0], 240))
    left = (got.width - size[0]) // 2
    np.testing.assert_array_equal(got.crop((left, 0, left + size[0], size[1])), picture)
    strip = np.asarray(got)[size[1] :]
    pixels = np.bincount((strip @ [1 << 16, 1 << 8, 1]).ravel(), minlength=1 << 24)
    assert min(pixels[np.dot(e.color, [1 << 16, 1 << 8, 1])] for e in entries) >= 100  # swatches
    margins = strip[:, [*range(4), *range(-4, 0)]], strip[[*range(3), *range(-3, 0)]]
    assert all((margin == 255).all() for margin in margins)  # nothing is cut off


def test_names_and_shares_in_a_legend_are_short():
    assert short_name("building, edifice") == "building, edifice"
    assert short_name("person, individual, someone, somebody") == "person, individual, s..."
    assert short_name("a\nb") == "a\\nb"
    assert [percent(share) for share in (1, 0.414, 0.01, 0.0099)] == [
        "100 %",
        "41 %",
        "1 %",
        "<1 %",
    ]
