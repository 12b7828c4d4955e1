"""Batch normalisation in training and with given statistics."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

BN_EPSILON = 1e-5
_NHW = (0, 1, 2)
_Normal = tuple[jax.Array, jax.Array, jax.Array]  # normalised, mean, variance
_Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def per_channel(values: jax.Array) -> jax.Array:
    """Returns `values` (C,) as (1, 1, 1, C)."""
    return values.reshape(1, 1, 1, -1)


def affine(
    x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array
) -> jax.Array:
    """Normalises, scales and shifts in the dtype of `scale`."""
    factor = lax.rsqrt(var + BN_EPSILON) * scale
    y = (x.astype(scale.dtype) - _along(mean, x)) * _along(factor, x) + _along(bias, x)
    return y.astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array, centre: jax.Array, platform: str
) -> _Normal:
    """Returns `x` normalised by its own statistics, and these: mean and biased variance.

    Args:
      x: (B, H, W, C); or (B, h, w, n C), each pixel a block of n.
      scale: (C,), float32 or wider, as are the sums.
      bias: (C,).
      centre: (C,), about the mean, such as the running one; takes no gradient.
      platform: as in `ComputePolicy`; picks the form of the sums.

    The gradient through the statistics is hand-written, with one reduction each way, on one
    processor two. Mean and variance pass none on: they feed running statistics only.
    """
    return _normalize_forward(x, scale, bias, centre, platform)[0]


# Traced once for all norms of a shape.
@partial(jax.jit, static_argnums=4)
def _normalize_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, centre: jax.Array, platform: str
) -> tuple[_Normal, _Residuals]:
    def minus(values: jax.Array, x: jax.Array) -> jax.Array:
        return x.astype(scale.dtype) - _along(values, x)

    channels = scale.size
    first = _mean(lambda x: minus(centre, x), channels, platform, x)
    mean = centre + first
    if platform == "cpu":
        # Two sums are two passes there, so that the second can use the first.
        var = _mean(lambda x: jnp.square(minus(mean, x)), channels, platform, x)
    else:
        # One pass over values shifted by about the mean: plain E[x^2] - E[x]^2 would cancel.
        second = _mean(lambda x: jnp.square(minus(centre, x)), channels, platform, x)
        var = jnp.maximum(second - jnp.square(first), 0)
    return (affine(x, mean, var, scale, bias), mean, var), (x, scale, mean, var)


@partial(jax.jit, static_argnums=0)
def _normalize_backward(platform: str, residuals: _Residuals, cotangents: _Normal) -> _Residuals:
    x, scale, mean, var = residuals
    g = cotangents[0].astype(scale.dtype)
    rstd = lax.rsqrt(var + BN_EPSILON)

    def normal(x: jax.Array) -> jax.Array:
        return (x.astype(scale.dtype) - _along(mean, x)) * _along(rstd, x)

    g_mean = _mean(lambda g: g, scale.size, platform, g)
    g_normal_mean = _mean(lambda g, x: g * normal(x), scale.size, platform, g, x)
    dx = _along(scale * rstd, g) * (g - _along(g_mean, g) - normal(x) * _along(g_normal_mean, g))
    count = x.size // scale.size
    return dx.astype(x.dtype), g_normal_mean * count, g_mean * count, jnp.zeros_like(mean)


normalize.defvjp(_normalize_forward, _normalize_backward)


def _along(values: jax.Array, x: jax.Array) -> jax.Array:
    """Returns `values` (C,) for the last axis of `x`, n C long."""
    if x.shape[-1] > values.size:
        values = jnp.tile(values, x.shape[-1] // values.size)
    return values.reshape((1,) * (x.ndim - 1) + (-1,))


def _mean(
    function: Callable[..., jax.Array], channels: int, platform: str, *arrays: jax.Array
) -> jax.Array:
    """Returns the mean of an element-wise function of arrays (B, h, w, n C), per channel."""
    if platform != "cpu":
        mean = jnp.mean(function(*arrays), _NHW)
        return jnp.mean(mean.reshape(-1, channels), 0) if mean.size > channels else mean
    total = _sum_rows(function, *(x.reshape(-1, channels) for x in arrays))
    return total / (arrays[0].size // channels)


def _sum_rows(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """Sums an element-wise function of arrays (N, C) over the rows, part on part.

    XLA's sum over the leading axis of an array reads down its columns on a processor, or writes
    `function` to memory first. Parts of the rows are added whole without either, until few rows are
    left for such a sum; many short sums also round less than one long one.
    """
    length = arrays[0].shape[0] // _PARTS
    if length < 2 * _PARTS or arrays[0].shape[0] % _PARTS:
        return jnp.sum(function(*arrays), 0)
    parts = tuple(x.reshape(_PARTS, length, -1) for x in arrays)

    def add_part(total: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        return total + function(*part), None

    zeros = jnp.zeros(parts[0].shape[1:], jnp.promote_types(parts[0].dtype, jnp.float32))
    return _sum_rows(lambda x: x, lax.scan(add_part, zeros, parts)[0])


_PARTS = 16  # of the rows, added one after the other
