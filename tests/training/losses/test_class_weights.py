import numpy as np
import pytest

from deeplab_jax.evaluation.label_counts import LabelCounts
from deeplab_jax.training.losses.class_weights import compute

# Of two masks of 100 pixels: the first holds 75 of class 0 and 25 of class 1; the second holds 85
# of class 0, 5 of class 3, and 10 that are ignored. Class 2 is absent.
COUNTS = LabelCounts(np.array([160, 25, 0, 5, 10]), np.array([190, 100, 0, 90]))


def test_by_hand():
    inverse = compute("inverse", COUNTS)
    assert inverse == pytest.approx((190 / 3 / 160, 190 / 3 / 25, 0, 190 / 3 / 5))
    frequency = 160 / 190, 25 / 100, 5 / 90
    assert compute("median_frequency", COUNTS) == pytest.approx(
        (0.25 / frequency[0], 1, 0, 0.25 / frequency[2])
    )
    base = 1 - 3 / 190
    raw = np.array([(1 - base) / (1 - base**n) for n in (160, 25, 5)])
    scaled = raw * 3 / raw.sum()
    assert compute("effective_number", COUNTS) == pytest.approx((*scaled[:2], 0, scaled[2]))


@pytest.mark.parametrize("kind", ["inverse", "median_frequency", "effective_number"])
@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        (LabelCounts(np.array([0, 0, 9]), np.array([0, 0])), (1, 1)),  # all ignored
        (LabelCounts(np.array([9, 0, 0]), np.array([9, 0])), (1, 0)),
        (LabelCounts(np.array([1, 0, 0]), np.array([1, 0])), (1, 0)),
        (LabelCounts(np.array([4, 4, 1]), np.array([8, 8])), (1, 1)),
    ],
)
def test_edge_cases(kind, counts, expected):
    assert compute(kind, counts) == pytest.approx(expected)


def test_a_rare_class_of_a_large_set_weighs_nearly_as_by_its_inverse():
    pixels = np.array([10**9, 2 * 10**8, 5 * 10**6, 0])
    counts = LabelCounts(pixels, np.full(3, pixels.sum()))
    weights = compute("effective_number", counts)
    assert weights[2] / weights[1] == pytest.approx(40, rel=0.25)
    assert weights[1] / weights[0] < 5
