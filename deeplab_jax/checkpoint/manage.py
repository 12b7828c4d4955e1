"""Removes, exports and compares steps, on request."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np

from deeplab_jax.checkpoint import description, folder, listing, reading, weights
from deeplab_jax.checkpoint.description import Info
from deeplab_jax.checkpoint.saver import save_once
from deeplab_jax.config import flatten
from deeplab_jax.config.checks import as_text
from deeplab_jax.errors import CheckpointError, shorten
from deeplab_jax.utils import locks, steps
from deeplab_jax.utils.trees import by_path


def remove(path: str | os.PathLike, names: Sequence[str], force: bool = False) -> list[str]:
    """Removes steps, set-aside ones and unfinished saves; returns their names.

    The directory is locked meanwhile. All names are checked before anything is removed.

    Args:
      path: the checkpoint directory.
      names: of entries of its folder of steps, such as "40" or "40.damaged".
      force: remove also the last step whose every array is as saved.

    Raises:
      CheckpointError: a name is not there or not ours, or the last good step would be lost.
      ConfigError: another process trains there, or a link is in the way.
    """
    folder.check_link(path)
    with locks.hold(steps.folder_of(path).parent):
        present = {entry.name: entry for entry in listing.entries(path)}
        for name in names:
            where = steps.folder_of(path) / name
            if name not in present:
                fix = f"use one of: {shorten(present)}" if present else "give another directory"
                raise CheckpointError(str(where), "is not there", fix)
            if present[name].role == "foreign" or not folder.is_ours(where):
                what = "is not what this program saves, so it is not removed"
                raise CheckpointError(str(where), what, "remove it yourself if it is not needed")
        found = [int(name) for name, entry in present.items() if entry.described is not None]
        left = [step for step in found if str(step) not in names]
        gone = [step for step in found if str(step) in names]
        if gone and not force and listing.last_good(path, left) is None:
            last = listing.last_good(path, gone)
            if last is not None:
                what = f"step {last} is the last that is good"
                raise CheckpointError(str(path), what, "add --force to remove it all the same")
        for name in names:
            folder.discard(path, name)
    return list(names)


def export(
    path: str | os.PathLike,
    step: int | str,
    output: str | os.PathLike,
    kind: str | None = None,
) -> Info:
    """Writes a step without the optimiser's state as a checkpoint; returns its description.

    Every array is compared with its checksum, as it is read and again in the copy. `kind` is
    that which `weights.weights_of` is asked for.

    Raises:
      ConfigError: as `weights.weights_of`.
      CheckpointError: the step is a backbone, is damaged, or `output` holds a checkpoint.
      ResourceError: `output` cannot be written.
    """

    def read(number: int) -> tuple[Info, dict[str, Any]]:
        info = reading.read_info(path, number)
        if info.kind == "backbone":
            what = "is a backbone, which has no optimiser's state to leave out"
            raise CheckpointError(str(path), what, "use it as it is")
        names = weights.item_names(info, kind)
        return info, weights.network(reading.read_arrays(path, number, names))

    info, items = reading.with_step(path, step, read)
    counters = info.counters
    if info.kind == "run":  # whose counters are those before its first step
        norms = {name.rpartition("/")[0] for name in by_path(items["batch_stats"])}
        counters = {norm: counters.get(norm, 0) + info.num_batches for norm in sorted(norms)}
    metrics = info.metrics
    if metrics and weights.weights_of(info, kind) == "raw":  # the other scores are the average's
        raw = metrics.get("mean_iou_raw")
        metrics = None if raw is None else {"mean_iou": raw}
    exported = dataclasses.replace(
        info, kind="weights", counters=counters, metrics=metrics, left_out=(), losses=(),
        evaluations=(), stopped="",
    )  # fmt: skip
    save_once(output, items, exported)
    if listing.last_good(output, [info.step]) is None:
        what = f"step {info.step} cannot be read as it was written"
        raise CheckpointError(str(output), what, "choose a place on another disk")
    return exported


def compare(
    a: tuple[str | os.PathLike, int | str], b: tuple[str | os.PathLike, int | str]
) -> Iterator[str]:
    """Yields a line for each difference of two steps; each is a directory and a step.

    Raises:
      CheckpointError: a step is not there, or is damaged.
    """
    (old, first), (new, second) = (_described(*place) for place in (a, b))
    yield from _compare_info(old.info, new.info)
    names = [set(listing.items_of(a[0], first)), set(listing.items_of(b[0], second))]
    for text, name in _only(names[0], names[1]):
        yield f"{name}: {text}"
    found: dict[str, float] = {}
    for name in sorted(names[0] & names[1]):
        arrays = [
            by_path(reading.read_arrays(path, step, [name]))
            for path, step in ((a[0], first), (b[0], second))
        ]
        yield from _misfits(*arrays)
        found |= _largest(*arrays)
    for name in sorted(found, key=lambda name: (-found[name], name)):
        yield f"{name}: largest difference {found[name]:.3g}"


def _compare_info(old: Info, new: Info) -> Iterator[str]:
    for name in ("kind", "step", "data"):
        values = getattr(old, name), getattr(new, name)
        if values[0] != values[1]:
            yield f"{name}: {' -> '.join(str(value) or '(empty)' for value in values)}"
    if old.config is not None and new.config is not None:
        mine, others = flatten(old.config), flatten(new.config)
        yield from (
            f"{key}: {_shown(value)} -> {_shown(others[key])}"
            for key, value in mine.items()
            if value != others[key]
        )
    elif old.config is not new.config:
        yield "configuration: only in one"
    if old.class_names != new.class_names:
        pairs = zip(old.class_names, new.class_names, strict=False)
        names = [f"{mine} -> {other}" for mine, other in pairs if mine != other]
        counts = f"{len(old.class_names)} -> {len(new.class_names)}"
        yield f"class names: {counts}" + (f" ({shorten(names)})" if names else "")
    if not np.array_equal(old.palette, new.palette):
        yield "palette: differs"


def _described(path: str | os.PathLike, step: int | str) -> tuple[description.Description, int]:
    return reading.with_step(path, step, lambda number: (description.read(path, number), number))


def _shown(value: Any) -> str:
    return as_text(value) or "(empty)"


def _only(old: Set[str], new: Set[str]) -> Iterator[tuple[str, str]]:
    """Yields ("only in A", name), then the same of B."""
    yield from (("only in A", name) for name in sorted(old - new))
    yield from (("only in B", name) for name in sorted(new - old))


def _misfits(old: Mapping[str, np.ndarray], new: Mapping[str, np.ndarray]) -> Iterator[str]:
    yield from (f"{name}: {text}" for text, name in _only(old.keys(), new.keys()))
    for name in sorted(old.keys() & new.keys()):
        mine, other = old[name], new[name]
        if (mine.shape, mine.dtype) != (other.shape, other.dtype):
            yield f"{name}: {mine.dtype} {mine.shape} -> {other.dtype} {other.shape}"


def _largest(old: Mapping[str, np.ndarray], new: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Returns the largest absolute difference of each array that differs; inf where not finite."""
    found = {}
    for name in old.keys() & new.keys():
        mine, other = old[name], new[name]
        if mine.shape != other.shape or mine.tobytes() == other.tobytes():
            continue
        with np.errstate(invalid="ignore"):
            value = np.max(np.abs(mine.astype(np.float64) - other.astype(np.float64)))
        found[name] = float(value) if np.isfinite(value) else np.inf
    return found
