"""Bilinear resizing by PyTorch's rule."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deeplab_jax.models.ops.pictures import shift


def resize_bilinear(x: jax.Array, size: Sequence[int], platform: str) -> jax.Array:
    """Resizes with half-pixel centres, clamped edges and no antialiasing.

    This is PyTorch's `interpolate(mode="bilinear", align_corners=False)`, also when it shrinks.

    Args:
      x: (B, H, W, C), floating point.
      size: (height, width) of the result, in pixels.
      platform: as in `ComputePolicy`; picks the form.

    Returns:
      (B, *size, C) in the dtype of `x`.
    """
    for axis in (2, 1):  # columns first: the row pass then writes whole rows
        length = x.shape[axis]
        if size[axis - 1] == length:
            continue
        factor, remainder = divmod(size[axis - 1], length)
        # On one processor the gather is two to five times as fast, its gradient included; a mesh
        # would gather all rows for it.
        if remainder or platform == "cpu":
            x = _interpolate(x, size[axis - 1], axis)
        else:
            x = _upsample(x, factor, axis)
    return x


def resize_valid(
    x: jax.Array, size: Sequence[int], valid_size: jax.Array, new_size: jax.Array
) -> jax.Array:
    """Returns `resize_bilinear` of the top left `valid_size` of each picture to its `new_size`.

    Args:
      x: (B, H, W, C), padded.
      size: (height, width) of the result, padding included.
      valid_size: int32 (B, 2), true sizes in `x`.
      new_size: int32 (B, 2), true sizes in the result; values outside are meaningless.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    for axis in (2, 1):
        output = jnp.arange(size[axis - 1], dtype=jnp.int32)[None]
        length, new = valid_size[:, axis - 1, None], new_size[:, axis - 1, None]
        # In integers: source + 1/2 = (2 i + 1) length / (2 new), rounded once, in the weight.
        source = jnp.maximum((2 * output + 1) * length - new, 0)
        low = jnp.minimum(source // (2 * new), length - 1)
        weight = (source - 2 * new * low).astype(wide) / (2 * new).astype(wide)
        weight = weight.astype(x.dtype)
        weight = jnp.expand_dims(weight, [k for k in (1, 2, 3) if k != axis])
        take = jax.vmap(partial(jnp.take, axis=axis - 1, mode="clip"))
        x = take(x, low) * (1 - weight) + take(x, jnp.minimum(low + 1, length - 1)) * weight
    return x


def _upsample(x: jax.Array, factor: int, axis: int) -> jax.Array:
    """Resizes by an integer factor: each of its phases mixes an element with one neighbour."""
    length = x.shape[axis]
    index = lax.broadcasted_iota(jnp.int32, x.shape, axis)
    name = "rows" if axis == 1 else "columns"
    before = jnp.where(index == 0, x, shift(x, **{name: 1}))
    after = jnp.where(index == length - 1, x, shift(x, **{name: -1}))
    phases = []
    for k in range(factor):
        offset = (k + 0.5) / factor - 0.5
        neighbour = before if offset < 0 else after
        phases.append(x * (1 - abs(offset)) + neighbour * abs(offset))
    shape = (*x.shape[:axis], length * factor, *x.shape[axis + 1 :])
    return jnp.stack(phases, axis + 1).reshape(shape)


def _sampling(size: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns low index, high index and weight of the high one, for each output element."""
    source = np.maximum((np.arange(size) + 0.5) * (length / size) - 0.5, 0)
    low = np.minimum(source.astype(np.int32), length - 1)
    return low, np.minimum(low + 1, length - 1), source - low


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _interpolate(x: jax.Array, size: int, axis: int) -> jax.Array:
    """Resizes by any factor: gathers the two neighbours along one axis and mixes them."""
    low, high, weight = _sampling(size, x.shape[axis])
    shape = [size if k == axis else 1 for k in range(x.ndim)]
    share = jnp.asarray(weight.reshape(shape), x.dtype)
    return jnp.take(x, low, axis) * (1 - share) + jnp.take(x, high, axis) * share


def _interpolate_forward(x: jax.Array, size: int, axis: int) -> tuple[jax.Array, int]:
    return _interpolate(x, size, axis), x.shape[axis]


def _interpolate_backward(size: int, axis: int, length: int, g: jax.Array) -> tuple[jax.Array]:
    # As a matrix product: the gradient of a gather is a scatter, which is slow everywhere.
    low, high, weight = _sampling(size, length)
    matrix = np.zeros((length, size))
    np.add.at(matrix, (low, np.arange(size)), 1 - weight)
    np.add.at(matrix, (high, np.arange(size)), weight)
    flat = g.reshape(*g.shape[:axis], size, -1)
    dx = jnp.matmul(jnp.asarray(matrix, g.dtype), flat, precision=lax.Precision.HIGHEST)
    return (dx.reshape(*g.shape[:axis], length, *g.shape[axis + 1 :]),)


_interpolate.defvjp(_interpolate_forward, _interpolate_backward)
