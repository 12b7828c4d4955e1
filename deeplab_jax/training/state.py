"""The state of a training run: a mapping of named items.

    step         int32 scalar: optimiser steps done
    params       parameters, float32 or wider
    batch_stats  running statistics of the norms
    opt_state    state of the optimiser, for the parameters that learn
    ema          with `train.ema_half_life`: the average of what learns, see `optimizer.average`

There is no random state: every draw is a function of the seed and the step.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.tree_util import keystr, tree_leaves_with_path

from deeplab_jax import checkpoint
from deeplab_jax.config import Config, TrainConfig
from deeplab_jax.distributed.mesh import replicated
from deeplab_jax.models import DeepLabV3Plus, build_model, init_variables
from deeplab_jax.training.optimizer import begin_average, build_optimizer
from deeplab_jax.utils import compile_cache
from deeplab_jax.utils.trees import PyTree, divide, placed

State = dict[str, PyTree]


def init_state(model: DeepLabV3Plus, optimizer: optax.GradientTransformation, seed: int) -> State:
    """Returns the state before the first step; call it under `jit`."""
    return initial_state(init_variables(model, seed), optimizer)


def draw_state(model: DeepLabV3Plus, config: Config, total_steps: int, mesh: Mesh) -> State:
    """Returns the state before the first step, drawn from the seed, whole on every device."""
    optimizer, _ = build_optimizer(config.train, total_steps)
    # On a processor, optimising these hundreds of small draws takes longer than running them.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    init = jax.jit(
        lambda: init_state(model, optimizer, config.seed),
        out_shardings=replicated(mesh),
        compiler_options=options,
    )
    with compile_cache.without_alarms():
        return with_average(init(), config.train, replicated(mesh))


def initial_state(variables: dict[str, PyTree], optimizer: optax.GradientTransformation) -> State:
    """Returns the state before the first step, with the given weights."""
    return {
        "step": jnp.zeros((), jnp.int32),
        "params": variables["params"],
        "batch_stats": variables["batch_stats"],
        "opt_state": optimizer.init(variables["params"]),
    }


def with_average(
    state: State, train: TrainConfig, whole: jax.sharding.Sharding | None = None
) -> State:
    """Returns the state with the average of no step, placed as `whole`, where the run averages."""
    if not train.ema_half_life:
        return state
    parts = [divide(state[name], train.freeze)[0] for name in ("params", "batch_stats")]
    return state | {"ema": jax.jit(begin_average, out_shardings=whole)(*parts)}


def eval_variables(state: State) -> dict[str, PyTree]:
    """Returns {"params", "batch_stats"} for evaluation and export: the averages, if there are."""
    return checkpoint.network(state)


def raw_variables(state: State) -> dict[str, PyTree]:
    """Returns {"params", "batch_stats"} as they are trained."""
    return {variable: state[item] for variable, item in checkpoint.EVAL_ITEMS.items()}


def restore_state(workdir: Path, step: int, config: Config, mesh: Mesh) -> State:
    """Returns the state that was saved after `step` steps, whole on every device.

    Raises:
      CheckpointError: it does not fit the configuration, or is damaged.
    """
    whole = replicated(mesh)
    abstract = placed(abstract_state(config), whole)
    del abstract["step"]
    state = checkpoint.restore(workdir, step, abstract)
    return {"step": _number(step, whole), **state}


def _number(step: int, whole: jax.sharding.Sharding) -> jax.Array:
    # Not `device_put`, which compares the value between hosts, of which one may have failed.
    return jax.make_array_from_callback((), whole, lambda _: np.int32(step))


def without_step(state: State) -> State:
    """Returns the state after a step whose batch is left out.

    Only the counters go on: the number of steps, and the schedule's, which is equal to it. The
    average and AdamW's moments count the batches that they have seen.
    """
    step = int(state["step"]) + 1

    def count() -> jax.Array:
        return _number(step, state["step"].sharding)

    # Two arrays: a donated state must not hold one twice.
    opt_state = optax.tree_utils.tree_set(state["opt_state"], _is_of_schedule, count=count())
    return state | {"step": count(), "opt_state": opt_state}


def _is_of_schedule(path: Sequence[Any], _: Any) -> bool:
    return getattr(path[-1], "tuple_name", "") == "ScaleByScheduleState"


def not_finite(state: State) -> list[str]:
    """Returns the paths of the arrays whose sum of squares is not finite, as `is_finite` has it.

    Parameters come first, then statistics, then the optimiser's momentum, which has the gradients.
    Arrays are copied from the device one by one: nothing compiles.
    """
    items = [(name, state[name]) for name in ("params", "batch_stats", "opt_state")]
    with np.errstate(all="ignore"):
        return [
            f"{name}/{keystr(path, simple=True, separator='/')}"
            for name, item in items
            for path, leaf in tree_leaves_with_path(item)
            if not np.isfinite(np.square(jax.device_get(leaf)).sum())
        ]


def abstract_state(config: Config) -> dict[str, PyTree]:
    """Returns the shapes and types of a run's state."""
    model = build_model(config.model)
    optimizer, _ = build_optimizer(config.train, 1)
    return jax.eval_shape(
        lambda: with_average(init_state(model, optimizer, config.seed), config.train)
    )


def tree_hash(tree: PyTree) -> str:
    """Returns the SHA-256 of all leaves' names and bytes."""
    digest = hashlib.sha256()
    for path, leaf in tree_leaves_with_path(tree):
        digest.update(keystr(path).encode())
        digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return digest.hexdigest()
