"""SGD with momentum, coupled weight decay and the poly schedule (spec section 5)."""

import jax
import jax.numpy as jnp
import optax

from deeplab_jax.config import TrainConfig
from deeplab_jax.utils.trees import PyTree

_SMALL = 2**15  # values of an array


def poly_schedule(lr: float, min_lr: float, power: float, total_steps: int) -> optax.Schedule:
    """Returns step -> (lr - min_lr) * (1 - step / total_steps)^power + min_lr.

    The first step (0) uses exactly `lr`; the last (total_steps - 1) stays above `min_lr`.
    """
    schedule = optax.polynomial_schedule(lr, min_lr, power, total_steps)
    # As a float, the step has the precision that JAX runs in; int32 would give float32.
    return lambda step: schedule(jnp.asarray(step, float))


def build_optimizer(
    train: TrainConfig, total_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns the optimiser of the table and its schedule.

    d = gradient + weight_decay * p on every parameter, norms and biases included;
    v = momentum * v + d; p = p - lr(step) * v.
    """
    schedule = poly_schedule(train.lr, train.min_lr, train.poly_power, total_steps)
    decay = optax.add_decayed_weights(train.weight_decay)
    return optax.chain(decay, optax.sgd(schedule, momentum=train.momentum)), schedule


def joint_norm(tree: PyTree) -> jax.Array:
    """Returns `optax.global_norm(tree)`, for a processor: small arrays are summed as one.

    XLA makes several kernels of each sum there, and most of a network's arrays are small.
    """
    leaves = jax.tree.leaves(tree)
    large = [leaf for leaf in leaves if leaf.size >= _SMALL]
    small = [leaf.ravel() for leaf in leaves if leaf.size < _SMALL]
    parts = [*large, jnp.concatenate(small)] if small else large
    return jnp.sqrt(sum(jnp.sum(jnp.square(part)) for part in parts))
