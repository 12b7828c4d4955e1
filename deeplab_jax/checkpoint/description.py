"""The description of a step: what it is of, and the checksums of its arrays."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from deeplab_jax import config as config_lib
from deeplab_jax.checkpoint.checksums import checksums
from deeplab_jax.errors import CheckpointError, describe_cause
from deeplab_jax.utils import steps
from deeplab_jax.utils.trees import PyTree, by_path

KINDS = ("run", "weights", "backbone")
_LATER = ("functions", "class_weights", "evaluations", "stopped", "given")  # left out if empty


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Info:
    """Describes a checkpoint.

    Attributes:
      kind: "run" (items params, batch_stats, opt_state, and ema where it averages weights),
        "weights" (params, batch_stats) or "backbone" (params and batch_stats of the backbone
        alone).
      config: the resolved configuration; None where there was none (a backbone).
      class_names: one per class; empty for a backbone, or where they are not known.
      palette: uint8 (C, 3), RGB; as many as names.
      counters: PyTorch's `num_batches_tracked` by path of the norm, as before a run's first step;
        each grows by `num_batches`. Empty where the source has none.
      step: optimiser steps done; `Saver.save` sets it.
      metrics: scores of an evaluation at this step, such as {"mean_iou": 0.5}, a fraction; or None.
        "iou/CLASS" is there where `config.checkpoint.best` names it.
      data: fingerprint of a run's training samples; "" if unknown.
      drawn: what of converted weights was drawn at random, such as "auxiliary head, from seed 0".
      left_out: numbers of the run's steps whose batch is left out, in the order they were found;
        some may still lie ahead.
      losses: losses of the last steps, oldest first, where the run looks for spikes.
      functions: fingerprints of the user's transforms, by name; "" where there is no source.
      class_weights: of a run that computed them from its training labels; else empty.
      evaluations: (step, metrics) of the run's evaluations until this step, oldest first.
      stopped: why the run ended at this step before its plan did; "" where it did not.
      given: names of what a caller in Python gave to `train`, such as {"loss": "dice"}.
    """

    kind: str
    config: config_lib.Config | None = None
    class_names: tuple[str, ...] = ()
    palette: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 3), np.uint8))
    counters: dict[str, int] = dataclasses.field(default_factory=dict)
    step: int = 0
    metrics: dict[str, float] | None = None
    data: str = ""
    drawn: str = ""
    left_out: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()
    functions: dict[str, str] = dataclasses.field(default_factory=dict)
    class_weights: tuple[float, ...] = ()
    evaluations: tuple[tuple[int, dict[str, float]], ...] = ()
    stopped: str = ""
    given: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def score(self) -> float:
        """What the best step is chosen by, higher is better; -inf if unknown or not finite."""
        return score(self.metrics, self.config.checkpoint.best if self.config else "mean_iou")

    @property
    def num_batches(self) -> int:
        """Number of batches that a run has trained on: its steps without those left out."""
        return self.step - sum(step <= self.step for step in self.left_out)


class SavedArray(NamedTuple):
    """An array as it was saved, before any cast."""

    shape: tuple[int, ...]
    dtype: np.dtype
    checksum: str


class Description(NamedTuple):
    """What a step's description says.

    Attributes:
      info: what the step is of.
      arrays: every saved array, by "item/path"; None for a step of a version without checksums.
    """

    info: Info
    arrays: dict[str, SavedArray] | None


def write(info: Info, items: Mapping[str, PyTree]) -> dict[str, Any]:
    """Returns the description of a step, in JSON's types, with its digest.

    Raises:
      ValueError: the kind is unknown, or names, colours and classes differ in number.
    """
    if info.kind not in KINDS:
        raise ValueError(f"`kind` must be one of {KINDS}, got {info.kind!r}.")
    _check_classes(info)
    fields = {field.name: getattr(info, field.name) for field in dataclasses.fields(info)}
    fields = {name: value for name, value in fields.items() if name not in _LATER or value}
    fields["config"] = config_lib.to_dict(info.config) if info.config is not None else None
    found, leaves = checksums(items), by_path(items)
    fields["arrays"] = {
        path: [list(leaf.shape), str(leaf.dtype), found[path]] for path, leaf in leaves.items()
    }
    # NumPy's scalars and arrays, in metrics and palette, become numbers and lists.
    text = json.dumps({"format": steps.FORMAT, **fields}, default=lambda x: x.tolist())
    return steps.with_digest(json.loads(text))


def read(path: str | os.PathLike, step: int) -> Description:
    """Returns the description of a step.

    Raises:
      DamagedError: it is not what was saved.
      CheckpointError: it is of another version.
    """
    where, fields = str(steps.step_path(path, step)), steps.read_description(path, step)
    version, kind = fields.get("format"), fields.get("kind")
    if version not in (steps.UNVERIFIED, steps.FORMAT) or kind not in KINDS:
        what = f"format {version!r} and kind {kind!r} are unknown; accepted: format {steps.FORMAT}"
        fix = "use the version of deeplab_jax that wrote it"
        raise CheckpointError(where, f"{what}, kind {', '.join(KINDS)}", fix)
    try:
        info = _info(fields)
        _check_classes(info)
        arrays = None
        if version == steps.FORMAT:
            arrays = {
                name: SavedArray(tuple(shape), np.dtype(dtype), checksum)
                for name, (shape, dtype, checksum) in fields["arrays"].items()
            }
        return Description(info, arrays)
    # ConfigError is a ValueError
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        what = f"its configuration or classes do not suit this version ({describe_cause(error)})"
        raise CheckpointError(where, what, "use the version that wrote it") from error


def score(metrics: Mapping[str, float] | None, name: str) -> float:
    """Returns what the best step is chosen by, higher is better; -inf if unknown or not finite.

    `name` is `config.checkpoint.best`; a loss is negated.
    """
    value = float((metrics or {}).get(name, math.nan))
    return (-value if name == "loss" else value) if math.isfinite(value) else -math.inf


def best(scores: Mapping[int, float]) -> int | None:
    """Returns the step with the highest score, the later of equals; None if none has one."""
    value, step = max(((value, step) for step, value in scores.items()), default=(-math.inf, 0))
    return step if value > -math.inf else None


def _info(fields: Mapping[str, Any]) -> Info:
    config = fields["config"]
    return Info(
        kind=fields["kind"],
        config=config_lib.from_dict(config) if config is not None else None,
        class_names=tuple(fields["class_names"]),
        palette=np.array(fields["palette"], np.uint8).reshape(-1, 3),
        counters=dict(fields["counters"]),
        step=fields["step"],
        metrics=None if fields["metrics"] is None else dict(fields["metrics"]),
        data=fields.get("data", ""),
        drawn=fields.get("drawn", ""),
        left_out=tuple(fields.get("left_out", ())),
        losses=tuple(fields.get("losses", ())),
        functions=dict(fields.get("functions", {})),
        class_weights=tuple(fields.get("class_weights", ())),
        evaluations=tuple((step, dict(found)) for step, found in fields.get("evaluations", ())),
        stopped=fields.get("stopped", ""),
        given=dict(fields.get("given", {})),
    )


def _check_classes(info: Info) -> None:
    """Refuses names and colours that are not as many as classes; there may be none of either."""
    if info.config is None:
        return
    count = info.config.model.num_classes
    for what, found in (("class names", info.class_names), ("colours", info.palette)):
        if len(found) not in (0, count):
            raise ValueError(f"{len(found)} {what} for {count} classes")
