"""Scores from counts of pixels (spec section 7, items 4 and 5), in NumPy.

`areas` are int64 (..., 3, C): each class's pixels in intersection, truth and prediction. Ratios are
fractions in [0, 1], NaN where they are 0 / 0.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_CHUNK = 100  # resamples at a time, to bound memory
# A percentile interval of a mean over n is too narrow: about z sqrt((n - 1) / n) / t of the width
# of the t interval (Hesterberg 2015, The American Statistician 69(4), 371-386), which is 82 % with
# n = 10, 91 % with 20 and 96.5 % with 50, and less where the scores are skewed.
ENOUGH_IMAGES = 50


def areas_of(confusion: np.ndarray) -> np.ndarray:
    """Returns the areas, int64 (3, C), of a confusion matrix (C, C)."""
    return np.stack([np.diag(confusion), confusion.sum(1), confusion.sum(0)])


def iou(areas: np.ndarray) -> np.ndarray:
    """Returns intersection over union, float64 (..., C); NaN for a class that occurs in neither."""
    intersection, truth, prediction = np.moveaxis(areas, -2, 0)
    return _ratio(intersection, truth + prediction - intersection)


def accuracy(areas: np.ndarray) -> np.ndarray:
    """Returns the share of a class's true pixels that are found (recall), float64 (..., C)."""
    return _ratio(areas[..., 0, :], areas[..., 1, :])


def precision(areas: np.ndarray) -> np.ndarray:
    """Returns the share of a class's predicted pixels that are right, float64 (..., C)."""
    return _ratio(areas[..., 0, :], areas[..., 2, :])


def f1(areas: np.ndarray) -> np.ndarray:
    """Returns the harmonic mean of accuracy and precision (Dice), float64 (..., C)."""
    return _ratio(2 * areas[..., 0, :], areas[..., 1, :] + areas[..., 2, :])


def mean(values: np.ndarray) -> np.ndarray:
    """Returns the mean over classes (the last axis) where a value is defined, float64 (...)."""
    is_defined = np.isfinite(values)
    return _ratio(np.where(is_defined, values, 0).sum(-1), is_defined.sum(-1))


def weighted_mean(values: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Returns the mean over classes weighted by their true pixels, float64 (...).

    Undefined values count as 0, as in scikit-learn's "weighted". Of IoU this is the frequency
    weighted IoU of Long et al., CVPR 2015.
    """
    truth = areas[..., 1, :]
    return _ratio((truth * np.nan_to_num(values)).sum(-1), truth.sum(-1))


def mean_in_words(iou: Sequence[float | None] | np.ndarray) -> str:
    """Returns the mean of C classes' IoU, fractions, as "91.97 %".

    Where some are undefined (NaN or None) the number of classes follows: "100.00 % over 1 of 2
    classes". Where all are, it is "undefined".
    """
    values = np.array(iou, np.float64)  # None becomes NaN
    if not np.isfinite(values).any():
        return "undefined (no pixel of any class)"
    return f"{100 * mean(values):.2f} %{over_classes(np.isfinite(values).sum(), len(values))}"


def over_classes(count: float, total: float) -> str:
    """Returns " over 1 of 2 classes" for a mean over one of two, "" for one over all."""
    return f" over {count:.0f} of {total:.0f} classes" if count < total else ""


class Interval(NamedTuple):
    """A confidence interval.

    Attributes:
      low: lower end, a fraction.
      high: upper end, a fraction.
      level: coverage, such as 0.95.
      method: method in words, with everything needed to repeat it.
    """

    low: float
    high: float
    level: float
    method: str


def bootstrap_iou(
    areas: np.ndarray, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[Interval, np.ndarray]:
    """Returns intervals for the mean IoU and each class's IoU on other images of the same kind.

    Percentile bootstrap (Efron and Tibshirani 1993, ch. 13): each resample draws N images with
    replacement, and an interval holds the middle `level` of the resamples' scores that are defined.
    It leaves out the variance between trainings.

    Args:
      areas: int64 (N, 3, C), those of each image.
      level: coverage, in (0, 1).
      resamples: number of resamples.
      seed: of the drawing.

    Returns:
      The interval of the mean IoU, and the ends of each class's, float64 (C, 2). Ends are NaN with
      fewer than two images, or without a counted pixel; a class's with fewer than two images where
      it is in truth or prediction.
    """
    method = f"percentile bootstrap over images, {resamples} resamples, seed {seed}"
    number, _, classes = areas.shape
    ends = np.full((classes, 2), np.nan)
    if number < 2:
        return Interval(np.nan, np.nan, level, method), ends
    rng = np.random.default_rng(seed)
    flat = areas.reshape(number, -1).astype(np.float64)  # integer products are slow
    parts = []
    for start in range(0, resamples, _CHUNK):
        draws = min(_CHUNK, resamples - start)
        weights = rng.multinomial(number, np.full(number, 1 / number), draws)
        parts.append(iou((weights @ flat).reshape(draws, 3, classes)))
    scores = np.concatenate(parts)
    images = (areas[:, 1:].sum(1) > 0).sum(0)  # of each class
    for c in np.flatnonzero(images > 1):
        ends[c] = middle(scores[:, c], level)
    low, high = middle(mean(scores), level)
    return Interval(float(low), float(high), level, method), ends


def few_in_words(images: int) -> str:
    """Returns a warning of an interval from too few images; "" where none is due."""
    if not 2 <= images < ENOUGH_IMAGES:  # from one there is no interval
        return ""
    return f"An interval from {images} images is too narrow: evaluate {ENOUGH_IMAGES} or more."


def middle(scores: np.ndarray, level: float) -> np.ndarray:
    """Returns the ends of the middle `level` of the finite scores; NaN if there is none."""
    defined = scores[np.isfinite(scores)]  # a resample may have ignored pixels only
    if not defined.size:
        return np.full(2, np.nan)
    return np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])


def iou_per_class(confusion: np.ndarray) -> np.ndarray:
    """Returns `iou` of a confusion matrix (C, C), float64 (C,)."""
    return iou(areas_of(confusion))


def mean_iou(confusion: np.ndarray) -> float:
    """Returns the mean of `iou_per_class` over classes that occur; NaN when none does."""
    return float(mean(iou_per_class(confusion)))


def pixel_accuracy(confusion: np.ndarray) -> float:
    """Returns the fraction of counted pixels that are right; NaN when none is counted."""
    total = confusion.sum()
    return float(np.trace(confusion) / total) if total else float("nan")


def best_constant_mean_iou(confusion: np.ndarray) -> float:
    """Returns the highest mean IoU of a prediction with one class everywhere.

    With n classes in the truth and share s of the most frequent class this is s / n.
    """
    truth = confusion.sum(1)
    constants = (np.outer(truth, np.eye(len(truth), dtype=np.int64)[c]) for c in range(len(truth)))
    return max(mean_iou(constant) for constant in constants)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)
