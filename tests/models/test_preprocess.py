import jax.numpy as jnp
import numpy as np

from deeplab_jax.models.preprocess import normalize, preprocess


def test_normalize_on_device_equals_numpys():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_allclose(normalize(jnp.asarray(image)), normalize(image), rtol=1e-6)


def test_padding_is_the_mean_colour_and_ignored():
    image = np.full((1, 4, 5, 3), 200, np.uint8)
    label = np.zeros((1, 4, 5), np.uint8)
    label[0, 0] = 255
    images, labels = preprocess(image, label, np.array([[1, 0, 4, 3]], np.int32))
    assert images.dtype == np.float32
    assert labels.dtype == np.int32
    inside = np.zeros((4, 5), bool)
    inside[1:4, 0:3] = True
    np.testing.assert_array_equal(np.asarray(images)[0, ~inside], 0.0)
    np.testing.assert_allclose(np.asarray(images)[0, inside], normalize(image)[0, inside])
    np.testing.assert_array_equal(np.asarray(labels)[0, 0], 255)
