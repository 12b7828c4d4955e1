import numpy as np
import pytest

from deeplab_jax.data.transforms import fit_size, resize_image
from deeplab_jax.inference.resize import fitted, fitted_size


@pytest.mark.parametrize("base", [(), (80, 64), (64, 80)])
@pytest.mark.parametrize("size", [(64, 80), (80, 64), (37, 91), (200, 300), (1, 5000)])
def test_images_are_fitted_into_the_base_or_stay(size, base):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    wanted = fit_size(*size, base) if base else size
    assert fitted_size(size, base) == wanted
    got = fitted(image, base)
    np.testing.assert_array_equal(got, resize_image(image, wanted))
    assert (got is image) == (wanted == size)
