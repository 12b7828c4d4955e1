"""One optimiser step: take gradients, update the state."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from deeplab_jax.losses import segmentation_loss
from deeplab_jax.models import DeepLabV3Plus
from deeplab_jax.optimizer import build_optimizer
from deeplab_jax.train_state import State

Metrics = dict[str, jax.Array]


def gradients(
    loss_fn: Callable, params: Any, *args: Any
) -> tuple[Any, tuple[Any, dict[str, jax.Array]]]:
    """Returns (gradient, (batch_stats, losses)) of `loss_fn(params, *args)`."""
    (_, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, *args)
    return grads, aux


def make_update(
    model: DeepLabV3Plus, config: ConfigDict, total_steps: int, *, use_dropout: bool = True
) -> Callable[[State, jax.Array, jax.Array], tuple[State, Metrics]]:
    """Builds the pure function that does one step.

    Args:
      model: the network.
      config: the run's; `seed` and `train` are read.
      total_steps: T of the schedule.
      use_dropout: off for comparing with another implementation.

    Returns:
      update(state, images float32 (B, H, W, 3), labels int32 (B, H, W)) -> (state, metrics), where
      metrics are scalars: "loss", "loss_main", "loss_aux" (weighted), "lr", "grad_norm" and the
      boolean "is_finite": of all of these, the new weights and the new statistics.
    """
    optimizer, schedule = build_optimizer(config.train, total_steps)
    train = config.train

    def loss_fn(params, batch_stats, images, labels, key):
        output, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            is_train=True,
            use_dropout=use_dropout,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        losses = segmentation_loss(
            output.logits,
            output.aux_logits,
            labels,
            num_groups=train.reference_processes,
            aux_weight=train.aux_weight,
        )
        return losses["loss"], (updated["batch_stats"], losses)

    def update(state: State, images: jax.Array, labels: jax.Array) -> tuple[State, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state["step"])
        grads, (batch_stats, losses) = gradients(
            loss_fn, state["params"], state["batch_stats"], images, labels, key
        )
        updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
        grad_norm = optax.global_norm(grads)
        new_state = {
            "step": state["step"] + 1,
            "params": optax.apply_updates(state["params"], updates),
            "batch_stats": batch_stats,
            "opt_state": opt_state,
        }
        # The new weights and statistics too: squares overflow while the loss still looks well.
        size = losses["loss"] + grad_norm + optax.global_norm((new_state["params"], batch_stats))
        metrics = {
            **losses,
            "lr": jnp.asarray(schedule(state["step"])),
            "grad_norm": grad_norm,
            "is_finite": jnp.isfinite(size),
        }
        return new_state, metrics

    return update
