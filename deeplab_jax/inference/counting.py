"""Counts of an image's pixels: true and predicted class, confidence, cross entropy.

All are sums, so that pieces of an image, images and hosts can be added in any order.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from deeplab_jax.config import IGNORE_INDEX

BINS = 15  # of confidence, of equal width (Guo et al., ICML 2017)
CONFIDENCE_STEPS = 4096 * BINS  # of 1: confidences are rounded to whole steps
_HALF = 30  # bits of the lower half of a sum; a piece's sum of steps has fewer than 31


class PixelCounts(NamedTuple):
    """Counts on a device, over the pieces of an image so far.

    Attributes:
      confusion: int32 (C, C); row = truth, column = prediction.
      bins: int32 (BINS, 4), for each bin of confidence: pixels, those predicted right, and the sum
        of steps of confidence above the bin's lower end, as a lower and an upper half.
      cross_entropy: floating point (R,), a sum for each row of a piece.
    """

    confusion: jax.Array
    bins: jax.Array
    cross_entropy: jax.Array


class ImageCounts(NamedTuple):
    """Counts of an image's pixels that are not ignored.

    Attributes:
      confusion: int32 (C, C); row = truth, column = prediction.
      bins: int64 (BINS, 3), for each bin of confidence: pixels, those predicted right, and the sum
        of their confidences in steps. Bin k holds confidences in (k / BINS, (k + 1) / BINS].
      cross_entropy: sum over pixels of -log of the true class's probability.
      prediction: uint8 (H, W), the class of every pixel, also where the truth is ignored.
    """

    confusion: np.ndarray
    bins: np.ndarray
    cross_entropy: float
    prediction: np.ndarray


def zeros(num_classes: int, rows: int, dtype: DTypeLike) -> PixelCounts:
    """Returns counts of no pixel, for pieces of a number of rows."""
    confusion, bins = (jnp.zeros(shape, jnp.int32) for shape in ((num_classes,) * 2, (BINS, 4)))
    return PixelCounts(confusion, bins, jnp.zeros(rows, dtype))


def add(
    counts: PixelCounts, scores: jax.Array, label: ArrayLike, is_probability: bool
) -> tuple[PixelCounts, jax.Array]:
    """Adds a piece; runs under `jit`.

    Args:
      counts: of the pieces before.
      scores: (R, K, C), logits or, if `is_probability`, probabilities.
      label: uint8 (R, K), a class or `IGNORE_INDEX`.
      is_probability: what scores are.

    Returns:
      The counts, and the prediction uint8 (R, K).
    """
    label = jnp.asarray(label)
    prediction = jnp.argmax(scores, -1)
    confusion = counts.confusion + confusion_matrix(prediction, label, scores.shape[-1])
    # A comparison instead of a gather: it fuses with what makes the scores.
    is_class = label[..., None] == jnp.arange(scores.shape[-1]).reshape(1, 1, -1)
    of_class = jnp.sum(jnp.where(is_class, scores, 0), -1)
    if is_probability:
        confidence = scores.max(-1)
        loss = -jnp.log(jnp.maximum(of_class, jnp.finfo(scores.dtype).tiny))
    else:
        total = jax.nn.logsumexp(scores, -1)
        confidence, loss = jnp.exp(scores.max(-1) - total), total - of_class
    is_valid = label != IGNORE_INDEX
    bins = counts.bins + _count_bins(confidence, prediction == label, is_valid)
    bins = bins.at[:, 3].add(bins[:, 2] >> _HALF).at[:, 2].set(bins[:, 2] & ((1 << _HALF) - 1))
    cross_entropy = counts.cross_entropy + jnp.sum(jnp.where(is_valid, loss, 0), 1)
    return PixelCounts(confusion, bins, cross_entropy), prediction.astype(jnp.uint8)


def _count_bins(confidence: jax.Array, is_right: jax.Array, is_valid: jax.Array) -> jax.Array:
    """Returns int32 (BINS, 4) of a piece, all of its sums in the lower half."""
    position = jnp.clip(confidence, 0, 1) * BINS
    number = jnp.clip(jnp.ceil(position) - 1, 0, BINS - 1)
    steps = jnp.round((position - number) * (CONFIDENCE_STEPS // BINS)).astype(jnp.int32)
    # Comparisons and sums: few cells are slow to scatter to.
    is_in = number[..., None] == jnp.arange(BINS, dtype=number.dtype).reshape(1, 1, -1)
    is_in &= is_valid[..., None]
    parts = is_in, is_in & is_right[..., None], jnp.where(is_in, steps[..., None], 0)
    sums = [jnp.sum(part, (0, 1), dtype=jnp.int32) for part in parts]
    return jnp.stack([*sums, jnp.zeros(BINS, jnp.int32)], 1)


def read(counts: PixelCounts, prediction: np.ndarray) -> ImageCounts:
    """Returns the counts of a whole image on the host."""
    confusion, bins, cross_entropy = jax.device_get(counts)
    pixels, right, low, high = bins.T.astype(np.int64)
    lower_ends = np.arange(BINS) * (CONFIDENCE_STEPS // BINS)
    steps = pixels * lower_ends + low + (high << _HALF)
    total = float(cross_entropy.sum(dtype=np.float64))
    return ImageCounts(confusion, np.stack([pixels, right, steps], 1), total, prediction)


def confusion_matrix(
    prediction: ArrayLike, label: ArrayLike, num_classes: int, ignore_index: int = IGNORE_INDEX
) -> jax.Array:
    """Counts pixels by true and predicted class; runs under `jit`.

    Args:
      prediction: int, any shape, values in [0, num_classes).
      label: int, same shape, values in [0, num_classes) or `ignore_index`.
      num_classes: C.
      ignore_index: label of pixels that do not count.

    Returns:
      int32 (C, C); row = truth, column = prediction. Add matrices over images in int64 before
      taking any ratio.
    """
    overflow = num_classes * num_classes
    label, prediction = jnp.asarray(label, jnp.int32), jnp.asarray(prediction, jnp.int32)
    cell = jnp.where(label == ignore_index, overflow, label * num_classes + prediction)
    counts = jnp.bincount(cell.ravel(), length=overflow + 1)[:overflow]
    return counts.reshape(num_classes, num_classes).astype(jnp.int32)
