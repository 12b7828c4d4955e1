"""Whether one side's IoU is another's: paired bootstrap over images and over seeds, in NumPy.

Both sides are scored on the same images in every resample, so that what makes an image hard does
not count as a difference (Efron and Tibshirani 1993, ch. 8 and 13). Where a side has several seeds,
trainings that differ in their seed alone, each resample draws as many of them with replacement, and
the deviation of their mean from that of all S seeds is multiplied by sqrt(S / (S - 1)), which makes
its variance that of a mean of S. With one seed the interval leaves out the variance between
trainings.
"""

from typing import NamedTuple

import numpy as np

from deeplab_jax.evaluation import metrics

RESAMPLES = 1000
LEVEL = 0.95
_CHUNK = 100  # resamples at a time, to bound memory


class Side(NamedTuple):
    """Scores of one side, means over its S seeds; fractions, NaN where undefined in all seeds.

    Attributes:
      mean_iou: float64 (S,), of each seed.
      iou: float64 (C,).
      images: float64 (N,), mean IoU of each image.
    """

    mean_iou: np.ndarray
    iou: np.ndarray
    images: np.ndarray


class Difference(NamedTuple):
    """The second side's score less the first's, with a confidence interval.

    Attributes:
      value: float64 (...), fractions.
      low: lower end.
      high: upper end; both NaN with fewer than two images, of a class with it.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def is_distinguishable(self) -> np.ndarray:
        """Whether 0 lies outside of the interval, bool (...)."""
        return (self.low > 0) | (self.high < 0)


def score(areas: np.ndarray) -> Side:
    """Returns the scores of a side from the areas of its seeds' images, int64 (S, N, 3, C)."""
    iou = metrics.iou(areas.sum(1))  # (S, C)
    images = metrics.mean(metrics.iou(areas))  # (S, N)
    return Side(metrics.mean(iou), metrics.mean(iou.T), metrics.mean(images.T))


def compare(
    first: np.ndarray, second: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Difference, Difference]:
    """Returns the differences of the mean IoU, and of each class's IoU (C,).

    Args:
      first: int64 (S, N, 3, C), areas of a side's images under each of its seeds.
      second: int64 (T, N, 3, C), of the same images.
      resamples: number of resamples.
      seed: of the drawing; the images drawn depend on nothing else.
    """
    sides = [score(areas) for areas in (first, second)]
    mean = sides[1].mean_iou.mean() - sides[0].mean_iou.mean()
    classes = sides[1].iou - sides[0].iou
    number = first.shape[1]
    if number < 2:
        nothing = np.full(classes.shape, np.nan)
        return Difference(mean, *np.full(2, np.nan)), Difference(classes, nothing, nothing)
    rng, drawn = np.random.default_rng(seed), []
    rngs = [np.random.default_rng([seed, side]) for side in (1, 2)]
    for start in range(0, resamples, _CHUNK):
        draws = min(_CHUNK, resamples - start)
        weights = rng.multinomial(number, np.full(number, 1 / number), draws)
        pair = zip((first, second), rngs, strict=True)
        one, other = (_resample(areas, weights, own) for areas, own in pair)
        drawn.append(other - one)
    scores = np.concatenate(drawn)  # (resamples, 1 + C)
    ends = np.stack([metrics.middle(column, LEVEL) for column in scores.T], 1)
    present = (np.maximum(first, second.max(0)).max(0)[:, 1:].sum(1) > 0).sum(0)  # images of each
    ends[:, 1:][:, present < 2] = np.nan
    return Difference(mean, *ends[:, 0]), Difference(classes, *ends[:, 1:])


def _resample(areas: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns mean IoU and IoU of each class of resamples, float64 (D, 1 + C).

    `areas` are (S, N, 3, C); `weights` (D, N) say how often each image is drawn.
    """
    seeds, number, _, classes = areas.shape
    flat = areas.reshape(seeds, number, -1).astype(np.float64)  # integer products are slow
    iou = metrics.iou((weights @ flat).reshape(seeds, len(weights), 3, classes))
    scores = np.concatenate([metrics.mean(iou)[..., None], iou], -1)  # (S, D, 1 + C)
    center = metrics.mean(np.moveaxis(scores, 0, -1))
    if seeds == 1:
        return center
    share = rng.multinomial(seeds, np.full(seeds, 1 / seeds), len(weights)) / seeds  # (D, S)
    deviation = (share.T[..., None] * (scores - center)).sum(0)
    return center + np.sqrt(seeds / (seeds - 1)) * deviation


def verdict(names: tuple[str, str], difference: Difference, images: int) -> str:
    """Returns in one line which side has the higher mean IoU, if that can be told."""
    value, low, high = (100 * float(x) for x in difference)
    if not difference.is_distinguishable:
        how = (
            f"not distinguishable with {'this image' if images == 1 else f'these {images} images'}"
        )
        if np.isnan(low):
            return f"{names[0]} and {names[1]}: {how}: an interval takes two with scored pixels"
        return (
            f"{names[0]} and {names[1]}: {how} (difference {value:+.1f} points of mean IoU,"
            f" {100 * LEVEL:.0f} % interval {low:+.1f} to {high:+.1f})"
        )
    better = names[1] if value > 0 else names[0]
    return (
        f"{better} is better by {abs(value):.1f} +- {(high - low) / 2:.1f} points of mean IoU"
        f" ({100 * LEVEL:.0f} % interval {min(abs(low), abs(high)):.1f} to"
        f" {max(abs(low), abs(high)):.1f})"
    )
