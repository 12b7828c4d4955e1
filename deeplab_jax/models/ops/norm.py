"""Batch normalisation in training and with given statistics."""

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
    y = (x.astype(scale.dtype) - per_channel(mean)) * per_channel(factor) + per_channel(bias)
    return y.astype(x.dtype)


@jax.custom_vjp
def normalize(x: jax.Array, scale: jax.Array, bias: jax.Array, centre: jax.Array) -> _Normal:
    """Returns `x` normalised by its own statistics, and these: mean and biased variance.

    Args:
      x: (B, H, W, C).
      scale: (C,), float32 or wider, as are the sums.
      bias: (C,).
      centre: (C,), about the mean, such as the running one; takes no gradient.

    The gradient through the statistics is hand-written, with one reduction each way. Mean and
    variance pass none on: they feed running statistics only.
    """
    return _normalize_forward(x, scale, bias, centre)[0]


def _normalize_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, centre: jax.Array
) -> tuple[_Normal, _Residuals]:
    # One pass over values shifted by about the mean: plain E[x^2] - E[x]^2 would cancel.
    shifted = x.astype(scale.dtype) - per_channel(centre)
    first = jnp.mean(shifted, _NHW)
    second = jnp.mean(jnp.square(shifted), _NHW)
    mean = centre + first
    var = jnp.maximum(second - jnp.square(first), 0)
    return (affine(x, mean, var, scale, bias), mean, var), (x, scale, mean, var)


def _normalize_backward(residuals: _Residuals, cotangents: _Normal) -> _Residuals:
    x, scale, mean, var = residuals
    g = cotangents[0].astype(scale.dtype)
    rstd = lax.rsqrt(var + BN_EPSILON)
    normal = (x.astype(scale.dtype) - per_channel(mean)) * per_channel(rstd)
    g_mean = jnp.mean(g, _NHW)
    g_normal_mean = jnp.mean(g * normal, _NHW)
    dx = per_channel(scale * rstd) * (g - per_channel(g_mean) - normal * per_channel(g_normal_mean))
    count = x.size // x.shape[-1]
    return dx.astype(x.dtype), g_normal_mean * count, g_mean * count, jnp.zeros_like(mean)


normalize.defvjp(_normalize_forward, _normalize_backward)
