"""Converts the optimiser's state of a run, between PyTorch's SGD and optax's momentum trace.

PyTorch numbers parameters by registration, which is the order of the tensors in the file. A
momentum buffer has its parameter's name and layout, so `convert.keymap` names and transposes both.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
import optax

from convert import MAX_ITERATION, shown
from convert.dialects import is_floating
from convert.keymap import Tree, Variables, leaves, to_tensors, to_variables
from convert.source import PyTorchFile
from deeplab_jax.config import Config, TrainConfig
from deeplab_jax.config.checks import as_text
from deeplab_jax.errors import CheckpointError, ConfigError, shorten
from deeplab_jax.training.optimizer import build_optimizer

BUFFER = "momentum_buffer"
_PLAIN_FIELDS = ("optimizer", "decay_norms", "head_lr_factor", "freeze")
_RECIPE_FIX = "name the file of an SGD run with momentum, or leave out --optimizer"
_PLAIN = {"nesterov": False, "dampening": 0, "maximize": False}  # what ours does not do


class Progress(NamedTuple):
    """Optimiser steps done, and the momenta, a tree like the parameters; None for zeros."""

    iteration: int = 0
    momentum: Tree | None = None


def read_progress(source: PyTorchFile, config: Config, iteration: int | None = None) -> Progress:
    """Returns what a PyTorch file, read with its optimiser, says about its run.

    Its tensors must fit `config.model` (see `to_variables`). `iteration` replaces its count of the
    steps done.

    Raises:
      CheckpointError: it is not the state of the recipe's optimiser, or the count is missing.
    """
    depth, dialect = config.model.depth, source.structure.dialect
    known = {key for kind, _, key in leaves(depth, dialect) if kind == "params"}
    keys = [key for key in source.tensors if key in known]
    state, numbers = _read_group(source, config, len(keys))
    if iteration is None and source.iteration is None:
        _fail(source, "does not say how many iterations it has done", "give --iteration N")
    count = source.iteration if iteration is None else iteration
    if type(count) is not int or not 0 <= count <= MAX_ITERATION:
        what = f"cannot have done {shown(str(count))} iterations"
        _fail(source, what, f"give --iteration N, from 0 to {MAX_ITERATION}")
    if state:
        buffers = _read_buffers(source, state, dict(zip(keys, numbers, strict=True)))
        # In their parameters' places, momenta are converted like them.
        variables, _ = to_variables({**source.tensors, **buffers}, depth, dialect)
        return Progress(count, variables["params"])
    if count > 0:
        _fail(source, f"has no momentum after {count} iterations")
    return Progress(count)


def _fail(source: PyTorchFile, what: str, fix: str = _RECIPE_FIX) -> NoReturn:
    raise CheckpointError(source.path, what, fix)


def _read_group(
    source: PyTorchFile, config: Config, parameters: int
) -> tuple[dict[object, object], list[int]]:
    """Returns the optimiser's state and its parameters' numbers, checked against the recipe."""
    match source.optimizer:
        case {"state": dict(state), "param_groups": [{"params": list(params)} as group]}:
            pass
        case {"state": dict(), "param_groups": [_, _, *_] as groups}:
            _fail(source, f"has {len(groups)} groups of parameters, and ours is one for all")
        case _:
            _fail(source, "holds no state of a PyTorch optimiser")
    if not all(type(group.get(name)) in (int, float) for name in ("momentum", "weight_decay")):
        _fail(source, "its optimiser is not SGD with momentum")
    for name, plain in _PLAIN.items():
        value = group.get(name, plain)
        if type(value) not in (bool, int, float) or value != plain:
            _fail(source, f"its SGD has {name}={shown(str(value))}, which ours has not")
    for name in ("momentum", "weight_decay"):
        theirs, ours = group[name], getattr(config.train, name)
        if theirs != ours:
            what = f"its SGD has {name} {theirs}, and the recipe config.train.{name}={ours}"
            _fail(source, what, f"give --config.train.{name}={theirs} if that is meant")
    if len(params) != parameters:
        _fail(source, f"its SGD has {len(params)} parameters, its network {parameters}")
    if not all(type(n) is int for n in params) or len(set(params)) < len(params):
        _fail(source, "its SGD does not number its parameters")
    return state, params


def _read_buffers(
    source: PyTorchFile, state: Mapping[object, object], numbers: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Returns the momentum buffer of each parameter, checked against its tensor; by key."""
    states = {key: state.get(number) for key, number in numbers.items()}
    entries = {key: entry if isinstance(entry, dict) else {} for key, entry in states.items()}
    others = {shown(str(name)) for entry in entries.values() for name in entry.keys() - {BUFFER}}
    if others:
        _fail(source, f"its optimiser is not SGD with momentum: it keeps {shorten(others)}")
    found = {key: entry.get(BUFFER) for key, entry in entries.items()}
    buffers = {key: value for key, value in found.items() if isinstance(value, np.ndarray)}
    missing = [shown(key) for key in numbers if key not in buffers]
    if missing or len(state) != len(numbers):
        what = f"its SGD has the momentum of {len(buffers)} of {len(numbers)} parameters"
        _fail(source, f"{what} (missing: {shorten(missing) or 'none'}; {len(state)} in all)")
    shapes = {key: source.tensors[key].shape for key in buffers}
    odd = {k: v for k, v in buffers.items() if v.shape != shapes[k] or not is_floating(v.dtype)}
    changed = [f"{shown(k)}: {v.shape} {v.dtype}, {shapes[k]} wanted" for k, v in odd.items()]
    if changed:
        what = f"{len(changed)} momenta are of another shape or type than their parameters"
        _fail(source, f"{what} ({shorten(changed, 3)})")
    bad = [shown(key) for key, value in buffers.items() if not np.isfinite(value).all()]
    if bad:
        what = f"{len(bad)} momenta hold values that are not finite ({shorten(bad)})"
        _fail(source, what, "use a file from before training went wrong")
    return buffers


def _check_plain(config: Config, names: tuple[str, ...], fix: str = "") -> None:
    """Refuses an optimiser that is not PyTorch's SGD with one group of parameters."""
    for name in names:
        value, plain = (getattr(train, name) for train in (config.train, TrainConfig()))
        if value != plain:
            what = (
                f"is {as_text(value)}; momenta are PyTorch's with {as_text(plain) or 'none'} alone"
            )
            flag = f"give --config.train.{name}={as_text(plain)}"
            raise ConfigError(f"config.train.{name}", what, fix or flag)


def run_items(
    where: str, variables: Variables, progress: Progress, config: Config
) -> dict[str, Tree]:
    """Returns the items of a run's checkpoint, of training's types; `where` names it in errors.

    Raises:
      CheckpointError: a value is too large for its type.
      ConfigError: the recipe's optimiser has another state than PyTorch's SGD, or a run averages.
    """
    _check_plain(config, (*_PLAIN_FIELDS, "ema_half_life"))
    dtype = np.float64 if config.model.dtype == "float64" else np.float32
    momentum = progress.momentum
    if momentum is None:
        momentum = jax.tree.map(np.zeros_like, variables["params"])
    items = {**variables, "momentum": momentum}
    with np.errstate(over="ignore"):
        trees = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), items)
    tree_leaves = jax.tree_util.tree_leaves_with_path(trees)
    paths = [path for path, leaf in tree_leaves if not np.isfinite(leaf).all()]
    bad = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
    if bad:
        what = f"{len(bad)} tensors hold values beyond {np.dtype(dtype).name} ({shorten(bad)})"
        raise CheckpointError(where, what, "use a file from before training went wrong")
    optimizer, _ = build_optimizer(config.train, 1)  # how long the schedule is leaves no trace
    trees["opt_state"] = optax.tree_utils.tree_set(
        jax.eval_shape(optimizer.init, trees["params"]),
        count=np.asarray(progress.iteration, np.int32),
        trace=trees.pop("momentum"),
    )
    return trees


def to_optimizer(
    items: Tree, config: Config, step: int, total_steps: int | None, dialect: str
) -> dict[str, Any]:
    """Returns the state dict of PyTorch's SGD after `step` steps.

    `items` are those of a run's step; `opt_state` may be what Orbax reads back. `total_steps` is T
    of the schedule, which gives the rate; None gives the rate of the first step.

    Raises:
      CheckpointError: there is no momentum, or none for these parameters.
      ConfigError: the run's optimiser has another state than PyTorch's SGD.
    """
    _check_plain(config, _PLAIN_FIELDS, "leave out --optimizer")
    trace = optax.tree_utils.tree_get(items["opt_state"], "trace")
    if trace is None:
        fix = "leave out --optimizer"
        raise CheckpointError("optimiser's state", "holds no momentum of SGD", fix)
    depth, train = config.model.depth, config.train
    tensors = to_tensors({"params": trace, "batch_stats": items["batch_stats"]}, {}, depth, dialect)
    keys = [key for kind, _, key in leaves(depth, dialect) if kind == "params"]
    is_begun = any(np.any(tensors[key]) for key in keys)  # PyTorch has no zeros before a step
    state = {i: {BUFFER: tensors[key]} for i, key in enumerate(keys)} if is_begun else {}
    lr = train.lr
    if total_steps is not None:
        with jax.enable_x64(True):
            lr = float(build_optimizer(train, total_steps)[1](step))
    group: dict[str, float | None] = {"lr": lr, "momentum": train.momentum, "dampening": 0}
    group |= {"weight_decay": train.weight_decay, "nesterov": False, "maximize": False}
    group |= {"foreach": None, "differentiable": False, "fused": None, "initial_lr": train.lr}
    return {"state": state, "param_groups": [{**group, "params": list(range(len(keys)))}]}
