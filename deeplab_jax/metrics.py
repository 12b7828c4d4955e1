"""Confusion matrix and intersection over union (ssseg spec section 7, items 4 and 5)."""

import jax
import jax.numpy as jnp
import numpy as np


def confusion_matrix(
    prediction: jax.Array, label: jax.Array, num_classes: int, ignore_index: int = 255
) -> jax.Array:
    """Counts pixels by true and predicted class; runs under `jit`.

    Args:
      prediction: int, any shape, values in [0, num_classes).
      label: int, same shape. Values outside [0, num_classes) but for `ignore_index` must not
        occur: reading a label has refused them.
      num_classes: C.
      ignore_index: label of pixels that do not count.

    Returns:
      int32 (num_classes, num_classes); row = truth, column = prediction. Add matrices over images
      in int64 before taking any ratio.
    """
    overflow = num_classes * num_classes
    cell = label.astype(jnp.int32) * num_classes + prediction.astype(jnp.int32)
    cell = jnp.where(label == ignore_index, overflow, cell)
    counts = jnp.bincount(cell.ravel(), length=overflow + 1)[:overflow]
    return counts.reshape(num_classes, num_classes).astype(jnp.int32)


def iou_per_class(confusion: np.ndarray) -> np.ndarray:
    """Computes intersection over union.

    Args:
      confusion: int (C, C); row = truth, column = prediction.

    Returns:
      float64 (C,), fractions in [0, 1]; NaN for a class in neither truth nor prediction.
    """
    intersection = np.diag(confusion).astype(np.float64)
    union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    return np.divide(intersection, union, out=np.full(len(union), np.nan), where=union > 0)


def mean_iou(confusion: np.ndarray) -> float:
    """Returns the mean of `iou_per_class` over classes that occur; NaN when none does."""
    iou = iou_per_class(confusion)
    return float(np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")


def pixel_accuracy(confusion: np.ndarray) -> float:
    """Returns the fraction of counted pixels that are right; NaN when none is counted."""
    total = confusion.sum()
    return float(np.trace(confusion) / total) if total else float("nan")


def best_constant_mean_iou(confusion: np.ndarray) -> float:
    """Returns the highest mean IoU of a predictor that says one class everywhere.

    Any useful model is far above it. With n classes in the truth and share s of the most frequent
    it is s / n.
    """
    truth = confusion.sum(1)
    constants = (np.outer(truth, np.eye(len(truth), dtype=np.int64)[c]) for c in range(len(truth)))
    return max(mean_iou(constant) for constant in constants)
