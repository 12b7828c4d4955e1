"""Max pooling whose gradient is PyTorch's."""

import jax
import jax.numpy as jnp
from jax import lax

from deeplab_jax.models.ops.pictures import shift


@jax.custom_vjp
def max_pool3x3(x: jax.Array) -> jax.Array:
    """Returns the maxima over 3x3 pixels at stride 2, padding 1, (B, ceil(H / 2), ceil(W / 2), C).

    The gradient goes to the first of equal maxima in reading order, as PyTorch's does.
    """
    window, strides = (1, 3, 3, 1), (1, 2, 2, 1)
    return lax.reduce_window(
        x, -jnp.inf, lax.max, window, strides, [(0, 0), (1, 1), (1, 1), (0, 0)]
    )


def _max_pool_forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, tuple[int, ...]]]:
    # The winning tap is kept, not found again by comparing with the maximum: a compiler may compute
    # a value twice with different rounding, and no tap would equal it.
    height, width = x.shape[1:3]
    edges = [(0, 0, 0), (0, height % 2, 0), (0, width % 2, 0), (0, 0, 0)]
    even = lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), edges)
    taps = [
        tap
        for row in (shift(even[:, 1::2], 1, 0, -jnp.inf), even[:, 0::2], even[:, 1::2])
        for tap in (shift(row[:, :, 1::2], 0, 1, -jnp.inf), row[:, :, 0::2], row[:, :, 1::2])
    ]
    best, winner = taps[0], jnp.zeros(taps[0].shape, jnp.uint8)
    for number, tap in enumerate(taps[1:], 1):
        winner = jnp.where(tap > best, jnp.uint8(number), winner)
        best = jnp.maximum(best, tap)
    return best, (winner, x.shape)


def _max_pool_backward(
    residuals: tuple[jax.Array, tuple[int, ...]], g: jax.Array
) -> tuple[jax.Array]:
    winner, (_, height, width, _) = residuals
    rows = []
    for i in range(3):
        left, middle, right = (jnp.where(winner == 3 * i + j, g, 0) for j in range(3))
        rows.append(_interleave(middle, right + shift(left, columns=-1), 2))
    above, same, below = rows
    dx = _interleave(same, below + shift(above, rows=-1), 1)
    return (dx[:, :height, :width],)


max_pool3x3.defvjp(_max_pool_forward, _max_pool_backward)


def _interleave(even: jax.Array, odd: jax.Array, axis: int) -> jax.Array:
    """Returns elements of `even` and `odd` in turn along an axis."""
    shape = (*even.shape[:axis], 2 * even.shape[axis], *even.shape[axis + 1 :])
    return jnp.stack([even, odd], axis + 1).reshape(shape)
