"""The table's protocol is the reference's."""

import jax
import numpy as np


def test_scores_of_a_whole_image_equal_pytorchs(measure):
    with jax.enable_x64(True):
        got, expected = measure.whole_image("float64")["scores"]
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
