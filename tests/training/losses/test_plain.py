import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.training.losses import row_weights, segmentation_loss


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def _random(batch=4, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((batch, 4, 6, classes))
    labels = rng.integers(0, classes, (batch, 4, 6))
    labels[rng.random(labels.shape) < 0.3] = 255
    return jnp.asarray(logits), labels


def _by_hand(logits, labels):
    """Mean of -log softmax at the label over valid pixels, in NumPy."""
    log_softmax = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    valid = labels != 255
    rows = log_softmax[valid]
    return -rows[np.arange(len(rows)), labels[valid]].mean()


def _loss(logits, labels, num_groups=1, **options):
    labels = jnp.asarray(labels, jnp.int32)
    weights = row_weights(labels, num_groups)
    return segmentation_loss(logits, logits, labels, weights=weights, platform="cpu", **options)


def test_one_group_is_the_mean_over_valid_pixels():
    logits, labels = _random()
    losses = _loss(logits, labels, aux_weight=0.4)
    expected = _by_hand(np.asarray(logits), labels)
    np.testing.assert_allclose(losses["loss_main"], expected, rtol=1e-12)
    np.testing.assert_allclose(losses["loss_aux"], 0.4 * expected, rtol=1e-12)
    np.testing.assert_allclose(losses["loss"], 1.4 * expected, rtol=1e-12)


def test_groups_are_contiguous_rows_averaged_by_themselves():
    logits, labels = _random()
    labels[0, 1:] = 255  # uneven valid counts, else one mean would do
    halves = [_by_hand(np.asarray(logits)[s], labels[s]) for s in (slice(0, 2), slice(2, 4))]
    losses = _loss(logits, labels, num_groups=2)
    np.testing.assert_allclose(losses["loss_main"], np.mean(halves), rtol=1e-12)
    assert abs(np.mean(halves) - _by_hand(np.asarray(logits), labels)) > 1e-3


def test_a_group_without_valid_pixels_counts_as_zero():
    logits, labels = _random()
    labels[:2] = 255
    losses = _loss(logits, labels, num_groups=2)
    half = _by_hand(np.asarray(logits)[2:], labels[2:])
    np.testing.assert_allclose(losses["loss_main"], half / 2, rtol=1e-12)
    labels[:] = 255
    grads = jax.grad(lambda x: _loss(x, labels)["loss"])(logits)
    np.testing.assert_array_equal(grads, 0.0)


def test_ignored_pixels_have_no_gradient():
    logits, labels = _random()
    grads = jax.grad(lambda x: _loss(x, labels)["loss"])(logits)
    np.testing.assert_array_equal(np.asarray(grads)[labels == 255], 0.0)
    assert (np.abs(np.asarray(grads)[labels != 255]).sum(-1) > 0).all()


def test_logits_are_resized_to_the_labels():
    _, labels = _random()
    small = jnp.ones((4, 2, 3, 3)) * jnp.array([1.0, 2.0, 3.0]).reshape(1, 1, 1, 3)
    constant = jnp.broadcast_to(small[:, :1, :1], (4, 4, 6, 3))
    losses = _loss(small, labels)
    np.testing.assert_allclose(losses["loss_main"], _by_hand(np.asarray(constant), labels))


def test_loss_and_gradient_equal_pytorchs(measure):
    pairs = measure.loss()
    np.testing.assert_allclose(*pairs["value"], rtol=1e-6)
    np.testing.assert_allclose(*pairs["gradient"], atol=1e-8)
