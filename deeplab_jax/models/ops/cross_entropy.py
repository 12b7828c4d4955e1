"""Cross entropy at the labels' size from smaller logits, without logits of the labels' size.

An output row mixes two rows of the logits, so each of the `factor` output rows of a logits' row
(its phases) is recomputed where it is used: for the maximum, for the sum and for the gradient. Only
the columns are resized in memory, by a matrix product.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deeplab_jax.models.ops.pictures import shift

_Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array, int]


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def resized_cross_entropy(
    logits: jax.Array, labels: jax.Array, weights: jax.Array, ignore_index: int
) -> jax.Array:
    """Returns the weighted sum over pixels of the cross entropy of `resize_bilinear(logits)`.

    Args:
      logits: (B, h, w, C), float32 or wider; takes the only gradient.
      labels: int (B, H, W), class ids or `ignore_index`; H must be a multiple of h.
      weights: (B,), factors of the images.
      ignore_index: label of pixels that do not count.

    Returns:
      Scalar in the dtype of `logits`.
    """
    return _forward(logits, labels, weights, ignore_index)[0]


def _forward(
    logits: jax.Array, labels: jax.Array, weights: jax.Array, ignore_index: int
) -> tuple[jax.Array, _Residuals]:
    batch, height, width = labels.shape
    rows, columns, classes = logits.shape[1:]
    matrix = jnp.asarray(_column_weights(width, columns), logits.dtype)
    wide = jnp.einsum("bhwc,wx->bhxc", logits, matrix, precision=lax.Precision.HIGHEST)
    labels = labels.reshape(batch, rows, height // rows, width, 1)
    each = jnp.arange(classes).reshape(1, 1, 1, 1, -1)
    sums, picked, start = [], [], 0
    for share, down in _phases(height // rows, rows, wide.dtype):
        end = start + share.shape[2]
        phases = wide[:, :, None] * (1 - share) + shift(wide, rows=down)[:, :, None] * share
        largest = jnp.max(phases, 4, keepdims=True)
        sums.append(largest[..., 0] + jnp.log(jnp.sum(jnp.exp(phases - largest), 4)))
        is_class = labels[:, :, start:end] == each
        picked.append(jnp.sum(jnp.where(is_class, phases, 0), 4))
        start = end
    log_sums = jnp.concatenate(sums, 2)  # (B, h, factor, W)
    per_pixel = jnp.where(labels[..., 0] == ignore_index, 0, log_sums - jnp.concatenate(picked, 2))
    loss = jnp.sum(weights.reshape(-1, 1, 1, 1) * per_pixel)
    return loss, (wide, log_sums, labels, weights, columns)


def _backward(
    ignore_index: int, residuals: _Residuals, g: jax.Array
) -> tuple[jax.Array, None, None]:
    wide, log_sums, labels, weights, columns = residuals
    factor, rows, classes = labels.shape[2], wide.shape[1], wide.shape[3]
    scale = jnp.where(labels == ignore_index, 0, g * weights.reshape(-1, 1, 1, 1, 1))
    own, moved, k = jnp.zeros_like(wide), [], 0
    for shares, down in _phases(factor, rows, wide.dtype):
        total = jnp.zeros_like(wide)
        for share in jnp.moveaxis(shares, 2, 0):  # (1, h, 1, 1); one by one, to add without a pass
            phase = wide * (1 - share) + shift(wide, rows=down) * share
            softmax = jnp.exp(phase - log_sums[:, :, k, :, None])
            is_class = labels[:, :, k] == jnp.arange(classes).reshape(1, 1, 1, -1)
            slope = scale[:, :, k] * (softmax - is_class)
            own, total, k = own + (1 - share) * slope, total + share * slope, k + 1
        moved.append(shift(total, rows=-down))
    matrix = jnp.asarray(_column_weights(wide.shape[2], columns), wide.dtype)
    slope = sum(moved, own)
    dx = jnp.einsum("bhxc,wx->bhwc", slope, matrix, precision=lax.Precision.HIGHEST)
    return dx, None, None


resized_cross_entropy.defvjp(_forward, _backward)


def _column_weights(size: int, length: int) -> np.ndarray:
    """Returns the weight of each element in each output of a bilinear resize, (length, size)."""
    source = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
    return np.maximum(1 - np.abs(source - np.arange(length)[:, None]), 0)


def _phases(factor: int, rows: int, dtype: jnp.dtype) -> list[tuple[jax.Array, int]]:
    """Returns the phases that mix a row with the one above, then those with the one below.

    Each as (share of the other row (1, h, phases, 1, 1), rows that brings it here). The first and
    the last row have no other row: its share is zero.
    """
    offsets = (np.arange(factor) + 0.5) / factor - 0.5
    phases = []
    for edge, down, own in ((0, 1, offsets[offsets < 0]), (-1, -1, offsets[offsets >= 0])):
        share = np.tile(np.abs(own), (rows, 1))
        share[edge] = 0
        if own.size:
            phases.append((jnp.asarray(share.reshape(1, rows, -1, 1, 1), dtype), down))
    return phases
