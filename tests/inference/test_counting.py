import jax
import numpy as np
import pytest

from deeplab_jax.inference import counting
from deeplab_jax.inference.counting import BINS, CONFIDENCE_STEPS

add = jax.jit(counting.add, static_argnums=3)


def draw(rng, is_probability, dtype):
    scores = rng.normal(size=(6, 7, 4)) * 3
    label = rng.integers(0, 5, (6, 7)).astype(np.uint8)
    label[label == 4] = 255
    probability = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    return (probability if is_probability else scores).astype(dtype), label, probability


@pytest.mark.parametrize("is_probability", [False, True])
def test_pieces_sum_up_to_pixels_counted_one_by_one(is_probability):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        counts, bins = counting.zeros(4, 6, np.float64), np.zeros((BINS, 3))
        loss = 0.0
        for _ in range(3):
            scores, label, probability = draw(rng, is_probability, np.float64)
            counts, prediction = add(counts, scores, label, is_probability)
            np.testing.assert_array_equal(prediction, scores.argmax(-1))
            for p, truth in zip(probability[label != 255], label[label != 255], strict=True):
                loss -= np.log(p[truth])
                sure = p.max()
                row = bins[int(np.ceil(sure * BINS)) - 1]
                row += 1, p.argmax() == truth, round(sure * CONFIDENCE_STEPS)
        got = counting.read(counts, np.zeros(0))
    assert got.cross_entropy == pytest.approx(loss, rel=1e-12)
    np.testing.assert_array_equal(got.bins, bins)
    assert (bins[:, 0] > 0).sum() > 3


def test_sums_of_many_confident_pixels_do_not_overflow():
    shape, pieces = (512, 512), 9  # each adds 2^30 steps to the last bin
    scores = np.zeros((*shape, 2), np.float32)
    scores[..., 1] = 200
    label = np.ones(shape, np.uint8)
    counts = counting.zeros(2, 512, np.float32)
    for _ in range(pieces):
        counts, _ = add(counts, scores, label, False)
    pixels = pieces * 512 * 512
    got = counting.read(counts, np.zeros(0))
    assert got.bins[-1].tolist() == [pixels, pixels, pixels * CONFIDENCE_STEPS]
    assert got.bins[:-1].sum() == 0


@pytest.mark.parametrize("value", [1e4, -1e4, np.nan])
def test_extreme_scores_lose_no_pixel(value):
    scores = np.zeros((1, 3, 2), np.float32)
    scores[..., 0] = value
    counts, _ = add(counting.zeros(2, 1, np.float32), scores, np.ones((1, 3), np.uint8), False)
    got = counting.read(counts, np.zeros(0))
    assert got.confusion.sum() == 3
    assert np.isnan(value) or (got.bins[:, 0].sum(), np.isfinite(got.cross_entropy)) == (3, True)
