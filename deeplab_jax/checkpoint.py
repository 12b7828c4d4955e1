"""Saves and restores training state, weights and backbones; nothing else imports Orbax.

A checkpoint directory W (the work directory of a run, or the output of a converter) holds
`W/checkpoints/<step>/`. A step is a mapping of named items, each a pytree, and a description in
JSON (`Info`). Orbax writes a step under a temporary name and renames it when complete, so the
newest finished step survives a kill at any moment.
"""

import contextlib
import dataclasses
import errno
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from deeplab_jax import config as config_lib
from deeplab_jax.distributed import cluster, hosts
from deeplab_jax.errors import (
    CheckpointError,
    ResourceError,
    describe_cause,
    missing_backend,
    root_cause,
    shorten,
)
from deeplab_jax.utils import s3
from deeplab_jax.utils.places import as_place, is_address
from deeplab_jax.utils.steps import (
    check,
    finished,
    folder_of,
    latest_step,
    step_path,
)
from deeplab_jax.utils.trees import PyTree, differences

FORMAT = 1  # version of the description; raised when older readers would misunderstand it
KINDS = ("run", "weights", "backbone")
EVAL_ITEMS = {"params": "params", "batch_stats": "batch_stats"}  # variable -> item of a step

WRITE_SECONDS = 300  # that hosts wait for each other's writes
# Orbax's file about a step. `read_info` needs only its `custom_metadata`; through Orbax's interface
# every array's header would be read too (0.7 s for 1200 arrays).
_DESCRIPTION = "_CHECKPOINT_METADATA"


def _is_wanted(record: logging.LogRecord) -> bool:
    """Drops log records about Orbax unless DEEPLAB_DEBUG=1."""
    about_orbax = any("/orbax/" in text for text in (record.pathname, record.getMessage()))
    return not about_orbax or os.environ.get("DEEPLAB_DEBUG") == "1"


# Orbax and its tasks log tracebacks of failures that are raised here as one line.
for _name in (None, "absl", "asyncio"):
    logging.getLogger(_name).addFilter(_is_wanted)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Info:
    """Describes a checkpoint.

    Attributes:
      kind: "run" (items params, batch_stats, opt_state), "weights" (params, batch_stats) or
        "backbone" (params and batch_stats of the backbone alone).
      config: the resolved configuration; None where there was none (a backbone).
      class_names: one per class; empty for a backbone.
      palette: uint8 (C, 3), RGB.
      counters: PyTorch's `num_batches_tracked` by path of the norm, as before a run's first step;
        each grows by one a step. Empty where the source has none.
      step: optimiser steps done; `Saver.save` sets it.
      metrics: scores of an evaluation at this step, such as {"mean_iou": 0.5}, a fraction; or None.
      data: fingerprint of a run's training samples; "" if unknown.
    """

    kind: str
    config: config_lib.Config | None = None
    class_names: tuple[str, ...] = ()
    palette: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 3), np.uint8))
    counters: dict[str, int] = dataclasses.field(default_factory=dict)
    step: int = 0
    metrics: dict[str, float] | None = None
    data: str = ""


class Saver:
    """Saves the steps of one run; keeps the latest and the best.

    The best step has the highest finite `metrics["mean_iou"]`, the later of equals; a step saved
    without metrics is never the best. Use it as a context manager: leaving waits for the last
    save and raises what went wrong with it.

    Args:
      path: the work directory, created if missing. Remains of a killed save are removed.

    Raises:
      ResourceError: the directory cannot be written.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = as_place(path).absolute()
        s3.enable(self._path)
        self._bytes = 0  # of the last save
        self._scores = {}  # by step
        steps = folder_of(self._path)
        try:
            steps.mkdir(parents=True, exist_ok=True)
            _probe(steps)  # what cannot be written shows before training
            self._scores = _scores(self._path)
            with ocp.Context(async_options=ocp.options.AsyncOptions(timeout_secs=WRITE_SECONDS)):
                self._orbax = ocp.training.Checkpointer(
                    steps, preservation_policy=self, cleanup_tmp_directories=True
                )
        except Exception as error:
            raise self._failure(error) from error

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns for each step whether to keep it; Orbax calls this and removes the others."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        best = _best({step: self._scores.get(step, -math.inf) for step in steps})
        return [step in (max(steps), best) for step in steps]

    def save(
        self,
        step: int,
        items: Mapping[str, PyTree],
        info: Info,
        metrics: dict[str, float] | None = None,
    ) -> bool:
        """Starts to save a step and returns once the arrays may be overwritten or donated.

        Waits for an earlier save still under way.

        Args:
          step: optimiser steps done, greater than that of every step saved before.
          items: pytree of arrays by item name.
          info: the description; `step` and `metrics` replace its own.
          metrics: scores of an evaluation of exactly these items.

        Returns:
          False if this step was saved already, in which case nothing is done, else True.

        Raises:
          ResourceError: this save, or the one before it, failed; steps finished earlier are intact.
          CheckpointError: the directory holds a later step.
        """
        if (latest := self._orbax.latest) is not None and step <= latest.step:
            if step == latest.step:
                return False
            what = f"holds step {latest.step}, so step {step} cannot be saved behind it"
            raise CheckpointError(str(self._path), what, "use a new work directory")
        metadata = _to_json(dataclasses.replace(info, step=step, metrics=metrics))
        # Orbax refuses an item without arrays, such as the state of plain SGD.
        items = {name: item for name, item in items.items() if jax.tree.leaves(item)}
        self._bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(items))
        self.wait()
        with hosts.sync_errors():  # otherwise hosts would wait for one that cannot write
            if hosts.is_primary():
                self._check_room()
        try:
            self._scores[step] = _score(metrics)
            self._orbax.save_checkpointables_async(
                step, items, force=True, custom_metadata=metadata
            )
        except Exception as error:
            raise self._failure(error) from error
        return True

    def wait(self) -> None:
        """Returns once the last save is complete on disk.

        Raises:
          ResourceError: it failed.
        """
        try:
            self._orbax.wait()
        except Exception as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Waits like `wait`, then ends Orbax's threads."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    def _check_room(self) -> None:
        if is_address(self._path):
            return
        usage = shutil.disk_usage(self._path)
        if usage.total and usage.free < self._bytes:  # some mounted buckets report 0 bytes in total
            raise self._failure(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    def _failure(self, error: Exception) -> ResourceError:
        if (lost := hosts.lost_host(self._path, root_cause(error))) is not None:
            return lost
        what = f"cannot save a checkpoint: {describe_cause(error)}"
        if is_address(self._path):
            fix = "check the connection, the credentials and the bucket"
            return ResourceError(str(self._path), what, f"{fix}; steps saved before are intact")
        if self._bytes and self._path.exists():
            free = shutil.disk_usage(self._path).free
            what += f" (at most {self._bytes / 1e6:.1f} MB to write, {free / 1e6:.1f} MB free)"
        fix = "make room or choose another directory; steps saved before are intact"
        return ResourceError(str(self._path), what, fix)


def _probe(folder: Path) -> None:
    """Raises OSError or ResourceError if nothing can be written in a folder."""
    if is_address(folder):
        (folder / ".writable").write_bytes(b"")
        (folder / ".writable").unlink()
    else:
        tempfile.TemporaryFile(dir=folder).close()


def save_once(path: str | os.PathLike, items: Mapping[str, PyTree], info: Info) -> None:
    """Saves step `info.step` in a directory without checkpoints; returns when it is complete.

    Raises:
      CheckpointError: the directory holds a checkpoint.
      ResourceError: it cannot be written.
    """
    if (latest := latest_step(path)) is not None:
        what = f"already holds a checkpoint (step {latest})"
        raise CheckpointError(str(path), what, "choose another directory, or remove this one")
    with Saver(path) as saver:
        saver.save(info.step, items, info, info.metrics)


def find_step(path: str | os.PathLike, step: int | str = "latest") -> int:
    """Returns the number of a finished step.

    Args:
      path: the checkpoint directory.
      step: a number, "latest", or "best": the highest mean IoU, the later of equals.

    Raises:
      CheckpointError: there is no such step, or no checkpoint; the message lists the steps.
    """
    steps = check(path, step)
    if step == "latest":
        return steps[-1]
    if step == "best":
        best = _best(_scores(path))
        if best is None:
            present = f"use one of: {', '.join(map(str, steps))}"
            raise CheckpointError(str(path), "no step was evaluated, so none is the best", present)
        return best
    return int(step)


def read_info(path: str | os.PathLike, step: int | str = "latest") -> Info:
    """Returns the description of a step without reading its arrays.

    Raises:
      CheckpointError: there is no such step, or its description cannot be used here.
    """
    number = find_step(path, step)
    where = step_path(path, number)
    try:
        metadata = json.loads((where / _DESCRIPTION).read_text())["custom_metadata"] or {}
        version, kind = metadata.get("format"), metadata.get("kind")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"the description of the checkpoint is damaged ({describe_cause(error)})"
        raise CheckpointError(str(where), what, "use another step or a copy") from error
    if version != FORMAT or kind not in KINDS:
        what = f"format {version!r} and kind {kind!r} are unknown; accepted: format {FORMAT}"
        fix = "use the version of deeplab_jax that wrote it"
        raise CheckpointError(str(where), f"{what}, kind {', '.join(KINDS)}", fix)
    try:
        return _from_json(metadata, number)
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # ConfigError is one
        what = f"its configuration or classes do not suit this version ({describe_cause(error)})"
        raise CheckpointError(str(where), what, "use the version that wrote it") from error


def restore(
    path: str | os.PathLike,
    step: int | str,
    abstract: Mapping[str, PyTree],
    allow_cast: bool = False,
) -> dict[str, PyTree]:
    """Returns the items of a step as arrays with the wanted shapes, types and placement.

    Args:
      path: the checkpoint directory.
      step: a number, "latest" or "best"; see `find_step`.
      abstract: by item name, a pytree of `jax.ShapeDtypeStruct` with a sharding, on any number of
        devices. Only these items are read.
      allow_cast: convert between floating types (float32 weights for a float64 computation).
        Otherwise, and between other types always, a difference is an error: Orbax would convert
        silently, and a continued run would no longer be exact.

    Raises:
      CheckpointError: the checkpoint does not fit, with every difference counted, or is damaged.
      ResourceError: memory or a permission is missing.
    """
    step = find_step(path, step)
    where = step_path(path, step)
    if problems := misfits(path, step, abstract, allow_cast):
        fix = "use the configuration it was saved with, without --config.model..., or another"
        raise CheckpointError(str(where), f"does not fit: {', '.join(problems)}", fix)
    with _reading(where):
        return _load(where, abstract)


def misfits(
    path: str | os.PathLike,
    step: int | str,
    abstract: Mapping[str, PyTree],
    allow_cast: bool = False,
) -> list[str]:
    """Returns a phrase for each kind of difference that `restore` would refuse; reads no array.

    The arguments are those of `restore`, without need of shardings.

    Raises:
      CheckpointError: the checkpoint is damaged.
      ResourceError: a permission is missing.
    """
    where = step_path(path, find_step(path, step))
    with _reading(where):
        return differences(_saved_items(where, abstract), abstract, allow_cast)


def read_shapes(
    path: str | os.PathLike, step: int | str, names: Iterable[str]
) -> dict[str, PyTree]:
    """Returns the named items of a step as trees of shapes and types; reads no array.

    Raises:
      CheckpointError: the checkpoint is damaged.
      ResourceError: a permission is missing.
    """
    where = step_path(path, find_step(path, step))
    with _reading(where):
        return _saved_items(where, names)


def read_arrays(
    path: str | os.PathLike, step: int | str, names: Iterable[str]
) -> dict[str, PyTree]:
    """Returns the named items of a step as trees of NumPy arrays, as saved; uses no device.

    Raises:
      CheckpointError: an item is not there, or damaged.
      ResourceError: memory or a permission is missing.
    """
    where = step_path(path, find_step(path, step))
    with _reading(where):
        items = _saved_items(where, names)
        if missing := set(names) - set(items):
            raise ValueError(f"{shorten(missing)} is missing")
        return _load(where, jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), items))


@contextlib.contextmanager
def _reading(where: Path) -> Iterator[None]:
    """Reads a step without other hosts; turns Orbax's exceptions into ours."""
    try:
        s3.enable(where)
        with _alone():
            yield
    except (MemoryError, PermissionError) as error:
        fix = "free memory, or make the files readable"
        raise ResourceError(str(where), f"cannot be read: {describe_cause(error)}", fix) from error
    except Exception as error:
        if (missing := missing_backend(error)) is not None:
            raise missing from error
        what = f"cannot be restored: {describe_cause(error)}"
        raise CheckpointError(str(where), what, "use another step or a copy") from error


def _load(where: Path, abstract: Mapping[str, PyTree]) -> dict[str, PyTree]:
    items = dict(abstract)
    for name, item in abstract.items():
        if jax.tree.leaves(item):  # others were not saved
            # One at a time: after a failure Orbax would leave its reads of the others unawaited.
            items |= ocp.load_checkpointables(where, {name: item})
    pairs = zip(jax.tree.leaves(items), jax.tree.leaves(dict(abstract)), strict=True)
    if any(got.dtype != wanted.dtype for got, wanted in pairs):
        # `with jax.enable_x64()` holds for one thread, and Orbax reads in others.
        raise ValueError('float64 needs jax.config.update("jax_enable_x64", True)')
    return items


def _alone() -> contextlib.AbstractContextManager:
    """Makes Orbax read without waiting for other hosts, which may have failed."""
    if not cluster.is_initialized():
        return contextlib.nullcontext()
    own = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"read{own}"
    )
    return ocp.Context(multiprocessing_options=options)


def _saved_items(where: Path, names: Iterable[str]) -> dict[str, PyTree]:
    """Returns the saved shape and dtype of every array of the named items."""
    items = {name: ocp.metadata(where, name).metadata for name in names if (where / name).is_dir()}
    for name, item in items.items():
        if not jax.tree.leaves(item):  # Orbax's answer when it cannot read the list of arrays
            raise ValueError(f"the list of arrays of {name} is damaged")
    return items


def _to_json(info: Info) -> dict[str, object]:
    if info.kind not in KINDS:
        raise ValueError(f"`kind` must be one of {KINDS}, got {info.kind!r}.")
    fields = {field.name: getattr(info, field.name) for field in dataclasses.fields(info)}
    fields["config"] = config_lib.to_dict(info.config) if info.config is not None else None
    # NumPy's scalars and arrays, in metrics and palette, become numbers and lists.
    return json.loads(json.dumps({"format": FORMAT, **fields}, default=lambda x: x.tolist()))


def _from_json(metadata: dict[str, Any], step: int) -> Info:
    config = metadata["config"]
    return Info(
        kind=metadata["kind"],
        config=config_lib.from_dict(config) if config is not None else None,
        class_names=tuple(metadata["class_names"]),
        palette=np.array(metadata["palette"], np.uint8).reshape(-1, 3),
        counters=metadata["counters"],
        step=step,
        metrics=metadata["metrics"],
        data=metadata.get("data", ""),
    )


def _scores(path: str | os.PathLike) -> dict[int, float]:
    """Returns the score of every finished step whose description can be read."""
    scores = {}
    for step in finished(path):
        with contextlib.suppress(CheckpointError):
            scores[step] = _score(read_info(path, step).metrics)
    return scores


def _score(metrics: Mapping[str, float] | None) -> float:
    """Returns the mean IoU by which the best step is chosen; -inf if unknown or not finite."""
    value = float((metrics or {}).get("mean_iou", math.nan))
    return value if math.isfinite(value) else -math.inf


def _best(scores: Mapping[int, float]) -> int | None:
    """Returns the step with the highest score, the later of equals; None if none has one."""
    score, step = max(((score, step) for step, score in scores.items()), default=(-math.inf, 0))
    return step if score > -math.inf else None
