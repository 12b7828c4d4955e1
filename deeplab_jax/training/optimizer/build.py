"""The optimiser that a recipe names: SGD with momentum and coupled decay (spec section 5), AdamW.

A transformation of the gradient of the parameters that learn; `init` also takes all parameters.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from deeplab_jax.config import TrainConfig
from deeplab_jax.training.optimizer.schedule import build_schedule
from deeplab_jax.utils.trees import PyTree, divide

_SMALL = 2**15  # values of an array


def build_optimizer(
    train: TrainConfig, total_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns the optimiser and the schedule of its learning rate.

    With g the gradient, scaled down to the norm `clip_norm` where it is larger, p a parameter and
    r the rate, which outside the backbone is `head_lr_factor` times the schedule's:

      sgd      d = g + weight_decay p;  v = momentum v + d;  p = p - r v
      adamw    m = b m + (1 - b) g, b = momentum;  n = 0.999 n + 0.001 g^2;  after t steps
               u = m / (1 - b^t) / (sqrt(n / (1 - 0.999^t)) + 1e-8);  p = p - r (u + weight_decay p)

    Weight decay is on every parameter; without `decay_norms`, on kernels alone.

    Sources: spec section 5; Loshchilov and Hutter, ICLR 2019, as in torch.optim.AdamW.
    """
    schedule = build_schedule(train, total_steps)
    parts = [optax.clip_by_global_norm(train.clip_norm)] if train.clip_norm else []
    mask = None if train.decay_norms else _are_kernels
    if train.optimizer == "adamw":
        rate, decay = train.momentum, train.weight_decay
        parts.append(optax.adamw(schedule, rate, weight_decay=decay, mask=mask))
    else:
        parts.append(optax.add_decayed_weights(train.weight_decay, mask))
        parts.append(optax.sgd(schedule, momentum=train.momentum))
    if train.head_lr_factor != 1:
        parts.append(_scale_heads(train.head_lr_factor))
    return _of_learning(optax.chain(*parts), train.freeze), schedule


def _of_learning(
    optimizer: optax.GradientTransformation, freeze: Sequence[str]
) -> optax.GradientTransformation:
    """Returns the optimiser whose state is that of the parameters that learn."""
    if not freeze:
        return optimizer
    return optax.GradientTransformation(
        lambda params: optimizer.init(divide(params, freeze)[0]), optimizer.update
    )


def _are_kernels(params: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _scale_heads(factor: float) -> optax.GradientTransformation:
    """Multiplies the updates of all parameters outside the backbone."""

    def scaled(path: Sequence[Any], update: jax.Array) -> jax.Array:
        return update if path[0].key == "backbone" else factor * update

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scaled, updates))


def joint_norm(tree: PyTree) -> jax.Array:
    """Returns `optax.global_norm(tree)`, for a processor: small arrays are summed as one.

    XLA makes several kernels of each sum there, and most of a network's arrays are small.
    """
    leaves = jax.tree.leaves(tree)
    large = [leaf for leaf in leaves if leaf.size >= _SMALL]
    small = [leaf.ravel() for leaf in leaves if leaf.size < _SMALL]
    parts = [*large, jnp.concatenate(small)] if small else large
    return jnp.sqrt(sum(jnp.sum(jnp.square(part)) for part in parts))
