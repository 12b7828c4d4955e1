"""The exponential average of a run's weights and statistics."""

import math
from typing import TypeAlias

import jax
import jax.numpy as jnp

from deeplab_jax.utils.trees import PyTree

# "count" int32 scalar: steps averaged; "params" and "batch_stats": the averages
Average: TypeAlias = dict[str, PyTree]


def begin_average(params: PyTree, batch_stats: PyTree) -> Average:
    """Returns the average of no step, which holds the given weights.

    The leaves are copies: a donated state must not hold one array twice.
    """
    copies = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats})
    return {"count": jnp.zeros((), jnp.int32), **copies}


def next_average(
    average: Average, params: PyTree, batch_stats: PyTree, half_life: float
) -> Average:
    """Returns the average after one more step.

    With d = 2^(-1 / half_life), after t steps it is the sum of (1 - d) d^(t - i) p_i over the
    steps i = 1, ..., t, divided by the sum of these weights, 1 - d^t: the bias correction of Adam
    (Kingma and Ba, ICLR 2015), by which the weights before the first step do not count. It is
    a + (1 - d) / (1 - d^t) (p - a), a the average before; so what stays the same stays as it is.
    """
    count = average["count"] + 1
    exponent = -math.log(2) / half_life

    def mixed(old: jax.Array, new: jax.Array) -> jax.Array:
        rate = jnp.asarray(exponent, old.dtype)
        # 1 - d loses its digits where d is near 1.
        share = jnp.expm1(rate) / jnp.expm1(rate * count.astype(old.dtype))
        return old + share * (new - old)

    new = {"params": params, "batch_stats": batch_stats}
    return {"count": count, **jax.tree.map(mixed, {name: average[name] for name in new}, new)}
