import numpy as np
import pytest

from deeplab_jax.evaluation import comparison, metrics

CLASSES = 3


def draw(rng, images, right, seeds=1):
    """Returns areas (seeds, images, 3, CLASSES): binomial hits of `right` share, harder and easier
    images in turn; class 2 is in one image alone."""
    truth = rng.integers(50, 150, (images, CLASSES))
    truth[:, 2] = 0
    truth[0, 2] = 40
    hard = np.linspace(-0.25, 0.25, images)[:, None]
    areas = np.zeros((seeds, images, 3, CLASSES), np.int64)
    for seed, share in enumerate(np.broadcast_to(right, seeds)):
        hits = rng.binomial(truth, np.clip(share + hard, 0, 1))
        prediction = hits + (truth - hits)[:, [1, 0, 2]]
        areas[seed] = np.stack([hits, truth, prediction], 1)
    return areas


def test_interval_is_that_of_images_drawn_one_by_one():
    first, second = (draw(np.random.default_rng(0), 20, right) for right in (0.6, 0.65))
    got, classes = comparison.compare(first, second, 4000)
    rng, expected = np.random.default_rng(7), []
    for _ in range(4000):
        chosen = rng.integers(0, 20, 20)
        iou = [metrics.iou(areas[0, chosen].sum(0)) for areas in (first, second)]
        expected.append([np.nanmean(iou[1]) - np.nanmean(iou[0]), *(iou[1] - iou[0])])
    ends = np.nanpercentile(np.array(expected), [2.5, 97.5], axis=0)
    assert (got.low, got.high) == pytest.approx(ends[:, 0], abs=3e-3)
    np.testing.assert_allclose([classes.low[:2], classes.high[:2]], ends[:, 1:3], atol=3e-3)
    assert np.isnan(classes.low[2])  # of one image
    means = [metrics.mean(metrics.iou(areas[0].sum(0))) for areas in (first, second)]
    assert got.value == means[1] - means[0]
    assert comparison.compare(first, second, 50) != comparison.compare(first, second, 50, seed=1)
    again = [comparison.compare(first, second, 50)[0] for _ in range(2)]
    assert again[0] == again[1]


def test_pairs_tell_what_single_intervals_do_not():
    rng = np.random.default_rng(1)
    first = draw(rng, 40, 0.6)
    second = first.copy()
    second[:, :, 0, 0] += 2  # every image gains two pixels
    difference, _ = comparison.compare(first, second)
    ends = [metrics.bootstrap_iou(areas[0])[0] for areas in (first, second)]
    assert ends[0].high > ends[1].low  # they overlap
    assert difference.is_distinguishable
    assert difference.low > 0
    back, _ = comparison.compare(second, first)
    assert (back.value, back.low) == pytest.approx((-difference.value, -difference.high))
    text = comparison.verdict(("A", "B"), difference, 40)
    half = 50 * (difference.high - difference.low)
    assert text.startswith(f"B is better by {100 * difference.value:.1f} +- {half:.1f} points of")
    assert comparison.verdict(("B", "A"), back, 40) == text


def test_seeds_that_differ_more_than_the_sides_hide_the_difference():
    rng = np.random.default_rng(2)
    shares = np.array([0.55, 0.65, 0.62])
    first, second = draw(rng, 60, shares, 3), draw(rng, 60, shares + 0.01, 3)
    one = comparison.compare(first[:1], second[:1])[0]
    all_ = comparison.compare(first, second)[0]
    assert all_.high - all_.low > 1.5 * (one.high - one.low)
    assert not all_.is_distinguishable
    # With images that do not differ, the spread is that of the two means of three seeds.
    fixed = np.repeat(first[:, :1], 60, 1)
    got = comparison.compare(fixed, np.repeat(second[:, :1], 60, 1), 4000)[0]
    scores = [comparison.score(np.repeat(x[:, :1], 60, 1)).mean_iou for x in (first, second)]
    deviation = np.sqrt(sum(values.var(ddof=1) / 3 for values in scores))
    assert (got.high - got.low) / 2 == pytest.approx(1.96 * deviation, rel=0.25)


@pytest.mark.parametrize("images", [1, 2])
def test_what_cannot_be_told_says_so(images):
    areas = draw(np.random.default_rng(3), images, 0.6)
    difference, classes = comparison.compare(areas, areas)
    assert difference.value == 0
    assert not difference.is_distinguishable
    assert not classes.is_distinguishable.any()
    text = comparison.verdict(("A", "B"), difference, images)
    words = "this image: an interval" if images == 1 else "these 2 images (difference +0.0 points"
    assert text.startswith(f"A and B: not distinguishable with {words}")
