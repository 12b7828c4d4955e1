"""The state of a training run: a mapping of named items.

    step         int32 scalar: optimiser steps done
    params       parameters, float32 or wider
    batch_stats  running statistics of the norms
    opt_state    of the optimiser

Nothing random is kept: every draw is a function of the seed and the step.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from deeplab_jax.models import DeepLabV3Plus

State = dict[str, Any]


def init_variables(model: DeepLabV3Plus, seed: int) -> dict[str, Any]:
    """Returns new {"params", "batch_stats"} drawn from `seed`; call it under `jit`."""
    image = jnp.zeros((1, 32, 32, 3))  # any size: no parameter depends on it
    return dict(model.init(jax.random.key(seed), image))


def init_state(model: DeepLabV3Plus, optimizer: optax.GradientTransformation, seed: int) -> State:
    """Returns the state before the first step; call it under `jit`."""
    return start_state(init_variables(model, seed), optimizer)


def start_state(variables: dict[str, Any], optimizer: optax.GradientTransformation) -> State:
    """Returns the state before the first step, with the given weights."""
    return {
        "step": jnp.zeros((), jnp.int32),
        "params": variables["params"],
        "batch_stats": variables["batch_stats"],
        "opt_state": optimizer.init(variables["params"]),
    }


EVAL_ITEMS = {"params": "params", "batch_stats": "batch_stats"}  # variable -> item of the state


def eval_variables(state: State) -> dict[str, Any]:
    """Returns the variables that are evaluated and exported: those of `EVAL_ITEMS`."""
    return {variable: state[item] for variable, item in EVAL_ITEMS.items()}
