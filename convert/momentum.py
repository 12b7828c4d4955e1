"""Moves a training run: PyTorch's SGD state against optax's momentum, and the steps done.

PyTorch numbers parameters by registration, which is the order of the tensors in the file. A
momentum has its parameter's name and layout, so `convert.keymap` serves for both.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from convert import MAX_ITERATION, shown
from convert.dialects import is_floating
from convert.keymap import leaves, to_tensors, to_variables
from convert.source import Source
from deeplab_jax.errors import CheckpointError, shorten
from deeplab_jax.optimizer import build_optimizer

BUFFER = "momentum_buffer"
_PLAIN = {"nesterov": False, "dampening": 0, "maximize": False}  # what ours does not do
_RECIPE_FIX = "name the file of an SGD run with momentum, or leave out --optimizer"


class Progress(NamedTuple):
    """How far a run has come.

    Attributes:
      iteration: optimiser steps done.
      momentum: tree like the parameters; None for zeros.
    """

    iteration: int = 0
    momentum: dict[str, Any] | None = None


def read_progress(source: Source, config: ConfigDict, iteration: int | None = None) -> Progress:
    """Returns what a PyTorch file says about its run.

    Args:
      source: read with its optimiser; its tensors must fit `config.model` (see `to_variables`).
      config: the recipe that the run follows.
      iteration: steps done, in place of the file's own count.

    Raises:
      CheckpointError: it is not the state of the recipe's optimiser, or the count is missing.
    """
    reader = _Reader(source, config)
    group = reader.group()
    if iteration is None:
        iteration = source.iteration
        if iteration is None:
            reader.fail("does not say how many iterations it has done", "give --iteration N")
    if type(iteration) is not int or not 0 <= iteration <= MAX_ITERATION:
        what = f"cannot have done {shown(str(iteration))} iterations"
        reader.fail(what, f"give --iteration N, from 0 to {MAX_ITERATION}")
    return Progress(iteration, reader.momentum(group["params"], iteration))


class _Reader:
    """Reads and checks the optimiser's state of a file."""

    def __init__(self, source: Source, config: ConfigDict):
        self.source, self.config = source, config
        dialect, self.depth = source.structure.dialect, config.model.depth
        self.dialect = dialect
        known = {key for kind, _, key in leaves(self.depth, dialect) if kind == "params"}
        self.keys = [key for key in source.tensors if key in known]

    def fail(self, what: str, fix: str = _RECIPE_FIX) -> NoReturn:
        raise CheckpointError(self.source.path, what, fix)

    def group(self) -> dict[str, Any]:
        """Returns the only group of parameters, checked against the recipe."""
        match self.source.optimizer:
            case {"state": dict(), "param_groups": [{"params": list(params)} as group]}:
                pass
            case {"state": dict(), "param_groups": [_, _, *_] as groups}:
                self.fail(f"has {len(groups)} groups of parameters, and ours is one for all")
            case _:
                self.fail("holds no state of a PyTorch optimiser")
        numbers = {"momentum", "weight_decay"}
        if not all(type(group.get(name)) in (int, float) for name in numbers):
            self.fail("its optimiser is not SGD with momentum")
        for name, plain in _PLAIN.items():
            value = group.get(name, plain)
            if type(value) not in (bool, int, float) or value != plain:
                self.fail(f"its SGD has {name}={shown(str(value))}, which ours has not")
        for name in sorted(numbers):
            theirs, ours = group[name], self.config.train[name]
            if theirs != ours:
                what = f"its SGD has {name} {theirs}, and the recipe config.train.{name}={ours}"
                self.fail(what, f"give --config.train.{name}={theirs} if that is meant")
        if len(params) != len(self.keys):
            self.fail(f"its SGD has {len(params)} parameters, its network {len(self.keys)}")
        if not all(type(n) is int for n in params) or len(set(params)) < len(params):
            self.fail("its SGD does not number its parameters")
        return group

    def momentum(self, params: list[int], iteration: int) -> dict[str, Any] | None:
        """Returns the tree of momenta; None where no step was done.

        Args:
          params: the number of each parameter, in the order of `keys`.
          iteration: steps done.
        """
        state = self.source.optimizer["state"]
        if not state:
            if iteration > 0:
                self.fail(f"has no momentum after {iteration} iterations")
            return None
        entries = [state.get(number) for number in params]
        others = {
            shown(str(name))
            for entry in entries
            if isinstance(entry, dict)
            for name in entry.keys() - {BUFFER}
        }
        if others:
            self.fail(f"its optimiser is not SGD with momentum: it keeps {shorten(others)}")
        buffers = {
            key: entry[BUFFER]
            for key, entry in zip(self.keys, entries, strict=True)
            if isinstance(entry, dict) and isinstance(entry.get(BUFFER), np.ndarray)
        }
        missing = [shown(key) for key in self.keys if key not in buffers]
        if missing or len(state) != len(params):
            what = f"its SGD has the momentum of {len(buffers)} of {len(self.keys)} parameters"
            self.fail(f"{what} (missing: {shorten(missing) or 'none'}; {len(state)} in all)")
        self._check(buffers)
        # In their parameters' places, momenta are converted like them.
        variables, _ = to_variables({**self.source.tensors, **buffers}, self.depth, self.dialect)
        return variables["params"]

    def _check(self, buffers: Mapping[str, np.ndarray]) -> None:
        changed = [
            f"{shown(key)}: {value.shape} {value.dtype}, {self.source.tensors[key].shape} wanted"
            for key, value in buffers.items()
            if value.shape != self.source.tensors[key].shape or not is_floating(value.dtype)
        ]
        if changed:
            what = f"{len(changed)} momenta are of another shape or type than their parameters"
            self.fail(f"{what} ({shorten(changed, 3)})")
        bad = [shown(key) for key, value in buffers.items() if not np.isfinite(value).all()]
        if bad:
            what = f"{len(bad)} momenta hold values that are not finite ({shorten(bad)})"
            self.fail(what, "use a file from before training went wrong")


def run_items(
    where: str, variables: Mapping[str, Any], progress: Progress, config: ConfigDict
) -> dict[str, Any]:
    """Returns the items of a training state but for the step, as training has them.

    Args:
      where: the file, for the error.
      variables: {"params": tree, "batch_stats": tree}.
      progress: of the run.
      config: of the run; decides the types.

    Raises:
      CheckpointError: a value is too large for its type.
    """
    dtype = np.float64 if config.model.dtype == "float64" else np.float32
    momentum = progress.momentum
    if momentum is None:
        momentum = jax.tree.map(np.zeros_like, variables["params"])
    trees = {**variables, "momentum": momentum}
    with np.errstate(over="ignore"):
        trees = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), trees)
    bad = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree_util.tree_leaves_with_path(trees)
        if not np.isfinite(leaf).all()
    ]
    if bad:
        what = f"{len(bad)} tensors hold values beyond {np.dtype(dtype).name} ({shorten(bad)})"
        raise CheckpointError(where, what, "use a file from before training went wrong")
    params, momentum = trees["params"], trees["momentum"]
    optimizer, _ = build_optimizer(config.train, 1)  # how long the schedule is leaves no trace
    opt_state = optax.tree_utils.tree_set(
        jax.eval_shape(optimizer.init, params),
        count=np.asarray(progress.iteration, np.int32),
        trace=momentum,
    )
    return {"params": params, "batch_stats": trees["batch_stats"], "opt_state": opt_state}


def to_optimizer(
    items: Mapping[str, Any],
    config: ConfigDict,
    step: int,
    total_steps: int | None,
    dialect: str,
) -> dict[str, Any]:
    """Returns the state dict of PyTorch's SGD.

    Args:
      items: of a run; `opt_state` may be what Orbax reads back.
      config: of the run.
      step: optimiser steps done.
      total_steps: T of the schedule, which gives the rate; None for the rate of the first step.
      dialect: one of `keymap.DIALECTS`.

    Raises:
      CheckpointError: there is no momentum, or none for these parameters.
    """
    trace = optax.tree_utils.tree_get(items["opt_state"], "trace")
    if trace is None:
        fix = "leave out --optimizer"
        raise CheckpointError("optimiser's state", "holds no momentum of SGD", fix)
    depth = config.model.depth
    tensors = to_tensors({"params": trace, "batch_stats": items["batch_stats"]}, {}, depth, dialect)
    keys = [key for kind, _, key in leaves(depth, dialect) if kind == "params"]
    is_begun = any(np.any(tensors[key]) for key in keys)  # PyTorch has no zeros before a step
    state = {i: {BUFFER: tensors[key]} for i, key in enumerate(keys)} if is_begun else {}
    lr = config.train.lr
    if total_steps is not None:
        with jax.enable_x64(True):
            lr = float(build_optimizer(config.train, total_steps)[1](step))
    group = {
        "lr": lr,
        "momentum": config.train.momentum,
        "dampening": 0,
        "weight_decay": config.train.weight_decay,
        "nesterov": False,
        "maximize": False,
        "foreach": None,
        "differentiable": False,
        "fused": None,
        "initial_lr": config.train.lr,
        "params": list(range(len(keys))),
    }
    return {"state": state, "param_groups": [group]}
