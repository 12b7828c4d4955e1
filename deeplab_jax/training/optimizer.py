"""SGD with momentum, coupled weight decay and the poly schedule (spec section 5)."""

import jax.numpy as jnp
import optax

from deeplab_jax.config import TrainConfig


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
