"""Fitting of an image into `eval.resize_base` inside a file, equal to OpenCV's to the last bit.

OpenCV resizes bytes in whole numbers: weights are rounded to 11 bits, and the sum over rows is cut
twice. Rows beyond an edge keep their weights, columns do not.
"""

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.data.transforms import fit_size

ONE = 2048  # the weight 1
ROWS_SHIFT, SUM_SHIFT, LAST_SHIFT = 4, 16, 2  # bits that are cut off


def table(size: int, length: int, is_rows: bool) -> tuple[np.ndarray, ...]:
    """Returns low and high index and their weights, int32 (size,), of an axis of `length`."""
    position = ((np.arange(size) + 0.5) * (1 / (size / length)) - 0.5).astype(np.float32)
    floor = np.floor(position)
    weight, low = position - floor, floor.astype(np.int32)
    if not is_rows:
        weight = np.where((low < 0) | (low >= length - 1), np.float32(0), weight)
    weights = [np.rint(w * np.float32(ONE)).astype(np.int32) for w in (1 - weight, weight)]
    return np.clip(low, 0, length - 1), np.clip(low + 1, 0, length - 1), *weights


def fit(images: jax.Array, base: tuple[int, int]) -> jax.Array:
    """Returns images uint8 (B, H, W, 3) fitted into `base`, uint8 (B, h, w, 3)."""
    height, width = images.shape[1:3]
    size = fit_size(height, width, base)
    if size == (height, width):
        return images
    low, high, one, other = table(size[1], width, is_rows=False)
    x = images.astype(jnp.int32)
    x = x[:, :, low] * one[None, None, :, None] + x[:, :, high] * other[None, None, :, None]
    low, high, one, other = (part for part in table(size[0], height, is_rows=True))
    x = x >> ROWS_SHIFT
    parts = [
        (x[:, index] * weight[None, :, None, None]) >> SUM_SHIFT
        for index, weight in ((low, one), (high, other))
    ]
    return ((parts[0] + parts[1] + 2) >> LAST_SHIFT).astype(jnp.uint8)
