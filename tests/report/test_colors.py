import numpy as np
import pytest

from deeplab_jax.report import colors


@pytest.mark.parametrize(("count", "least"), [(8, 0.07), (19, 0.07), (150, 0.014)])
def test_safe_colours_stay_apart_for_colour_blind_eyes(count, least):
    seen = colors.as_seen(colors.safe_palette(count))
    apart = np.linalg.norm(seen[:, :, None] - seen[:, None], axis=-1).min(0)
    assert apart[~np.eye(count, dtype=bool)].min() > least
