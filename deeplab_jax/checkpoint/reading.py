"""Reads steps; every array is compared with the checksum that was saved with it."""

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from deeplab_jax.checkpoint import bucket, description, noise
from deeplab_jax.checkpoint.checksums import mismatches
from deeplab_jax.checkpoint.description import Description, Info
from deeplab_jax.distributed import cluster, hosts
from deeplab_jax.errors import (
    CheckpointError,
    DeepLabError,
    ResourceError,
    describe_cause,
    missing_backend,
    root_cause,
    shorten,
)
from deeplab_jax.utils.places import is_address, is_taken
from deeplab_jax.utils.steps import check, damaged, step_path
from deeplab_jax.utils.trees import PyTree, by_path, differences

T = TypeVar("T")

_CHOICES = 5  # times that a step is chosen while a run removes the chosen ones
# Errors of a system that is short of something; what is on the disk may be good.
_SHORT = (errno.EACCES, errno.EPERM, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ESTALE)
_told: set[Path] = set()  # steps without checksums that were named


noise.silence()


def find_step(path: str | os.PathLike, step: int | str = "latest") -> int:
    """Returns the number of a step; for "best" alone reads descriptions.

    Args:
      path: the checkpoint directory.
      step: a number, "latest", or "best": the highest score, of `config.checkpoint.best`, the
        later of equals.

    Raises:
      CheckpointError: there is no such step, or no checkpoint; the message lists the steps.
      DamagedError: a description is damaged, so that the best is not known.
    """
    steps = check(path, step)
    if step == "latest":
        return steps[-1]
    if step == "best":
        best = description.best(_all_scores(path, steps))
        if best is None:
            present = f"use one of: {', '.join(map(str, steps))}"
            raise CheckpointError(str(path), "no step was evaluated, so none is the best", present)
        return best
    return int(step)


def _all_scores(path: str | os.PathLike, steps: Sequence[int]) -> dict[int, float]:
    found = {}
    for step in steps:
        try:
            found[step] = description.read(path, step).info.score
        except CheckpointError:
            if is_taken(step_path(path, step)):  # not removed meanwhile
                raise
    return found


def with_step(path: str | os.PathLike, step: int | str, read: Callable[[int], T]) -> T:
    """Returns read(number of the step); chooses again where a run has removed the chosen one.

    Args:
      path: the checkpoint directory.
      step: a number, which is the only choice, "latest" or "best".
      read: reads the step, and may raise CheckpointError.

    Raises:
      CheckpointError: as `find_step`, or of `read`.
    """
    for _ in range(_CHOICES - 1):
        number = find_step(path, step)
        try:
            return read(number)
        except CheckpointError:
            if step not in ("latest", "best") or is_taken(step_path(path, number)):
                raise
    return read(find_step(path, step))


def read_info(path: str | os.PathLike, step: int | str = "latest") -> Info:
    """Returns the description of a step without reading its arrays.

    Raises:
      CheckpointError: there is no such step, or its description cannot be used here.
      DamagedError: the description is not what was saved.
    """
    return with_step(path, step, lambda number: description.read(path, number).info)


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
        Otherwise, and between other types always, a difference is an error: a continued run would
        no longer be exact.

    Raises:
      CheckpointError: the checkpoint does not fit, with every difference counted.
      DamagedError: it is not what was saved.
      ResourceError: memory or a permission is missing.
    """

    def read(number: int) -> dict[str, PyTree]:
        with _reading(path, number) as (where, described):
            saved = _saved_items(where, described, abstract)
            if problems := differences(saved, abstract, allow_cast):
                fix = "use the configuration it was saved with, without --config.model..., or"
                what = f"does not fit: {', '.join(problems)}"
                raise CheckpointError(str(where), what, f"{fix} another")
            return {name: _restored(where, described, saved, name, abstract) for name in abstract}

    return with_step(path, step, read)


def misfits(
    path: str | os.PathLike,
    step: int | str,
    abstract: Mapping[str, PyTree],
    allow_cast: bool = False,
) -> list[str]:
    """Returns a phrase for each kind of difference that `restore` would refuse; reads no array.

    The arguments are those of `restore`, without need of shardings.

    Raises:
      DamagedError: the checkpoint is not what was saved.
      ResourceError: a permission is missing.
    """
    return differences(read_shapes(path, step, abstract), abstract, allow_cast)


def read_shapes(
    path: str | os.PathLike, step: int | str, names: Iterable[str]
) -> dict[str, PyTree]:
    """Returns the named items of a step as trees of shapes and types; reads no array.

    Raises:
      DamagedError: the checkpoint is not what was saved.
      ResourceError: a permission is missing.
    """

    def read(number: int) -> dict[str, PyTree]:
        with _reading(path, number) as (where, described):
            return _saved_items(where, described, names)

    return with_step(path, step, read)


def read_arrays(
    path: str | os.PathLike, step: int | str, names: Iterable[str]
) -> dict[str, PyTree]:
    """Returns the named items of a step as trees of NumPy arrays, as saved; uses no device.

    Raises:
      CheckpointError: an item is not there.
      DamagedError: it is not what was saved.
      ResourceError: memory or a permission is missing.
    """

    def read(number: int) -> dict[str, PyTree]:
        with _reading(path, number) as (where, described):
            items = _saved_items(where, described, names)
            if missing := set(names) - set(items):
                what = f"has no {shorten(missing)}"
                raise CheckpointError(str(where), what, "use the checkpoint of a run")
            return {name: _load(where, described, name, _empty(items[name])) for name in items}

    return with_step(path, step, read)


@contextlib.contextmanager
def _reading(path: str | os.PathLike, step: int) -> Iterator[tuple[Path, Description]]:
    """Reads a step without other hosts; turns Orbax's exceptions into ours."""
    where, described = step_path(path, step), description.read(path, step)
    bucket.enable(where)
    try:
        with _alone():
            yield where, described
    except DeepLabError:
        raise
    except Exception as error:
        if (missing := missing_backend(error)) is not None:
            raise missing from error
        if _is_short(error):
            what, fix = f"cannot be read: {describe_cause(error)}", "free memory, or make the files"
            raise ResourceError(str(where), what, f"{fix} readable") from error
        if is_address(where) and (lost := bucket.lost(where, error)) is not None:
            raise lost from error
        raise damaged(path, step, describe_cause(error)) from error
    if described.arrays is None and where not in _told:
        _told.add(where)
        if hosts.is_primary():
            print(f"{where}: not verified: saved by a version without checksums", flush=True)


def _is_short(error: Exception) -> bool:
    """Tells whether the system, and not the step, is at fault."""
    cause = root_cause(error)
    code = re.search(r"os_error_code='(\d+)'", str(cause))  # tensorstore's
    number = int(code[1]) if code else getattr(cause, "errno", None)
    return isinstance(cause, MemoryError | PermissionError) or number in _SHORT


def _restored(
    where: Path,
    described: Description,
    saved: Mapping[str, PyTree],
    name: str,
    abstract: Mapping[str, PyTree],
) -> PyTree:
    """Returns an item, verified as it was saved and then converted to the wanted types."""
    wanted, structure = jax.tree.flatten(abstract[name])
    if not wanted:
        return abstract[name]  # was not saved
    places = list(by_path({name: abstract[name]}))  # in the order of leaves
    leaves = by_path({name: saved[name]})
    types = [leaves[place].dtype for place in places]
    if all(jax.dtypes.canonicalize_dtype(dtype) == dtype for dtype in types):
        as_saved = [
            jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)
            for leaf, dtype in zip(wanted, types, strict=True)
        ]
        item = _load(where, described, name, jax.tree.unflatten(structure, as_saved))
        loaded = jax.tree.leaves(item)
    else:  # NumPy holds the 64 bits that JAX does not hold now
        found = by_path({name: _load(where, described, name, _empty(saved[name]))})
        loaded = [found[place] for place in places]
    arrays = [
        got
        if isinstance(got, jax.Array) and got.dtype == leaf.dtype
        else jax.device_put(got.astype(leaf.dtype), leaf.sharding)
        for got, leaf in zip(loaded, wanted, strict=True)
    ]
    _check_types(where, arrays, wanted)
    return jax.tree.unflatten(structure, arrays)


def _load(where: Path, described: Description, name: str, abstract: PyTree) -> PyTree:
    """Returns an item whose arrays are what was saved."""
    item = ocp.load_checkpointables(where, {name: abstract})[name]
    _check_types(where, jax.tree.leaves(item), jax.tree.leaves(abstract))
    if described.arrays is not None:
        saved = {path: array.checksum for path, array in described.arrays.items()}
        if found := mismatches(saved, {name: item}):
            raise ValueError(found[0] + (f"; {len(found) - 1} more arrays" if found[1:] else ""))
    return item


def _check_types(where: Path, found: Sequence[Any], wanted: Sequence[Any]) -> None:
    if any(got.dtype != leaf.dtype for got, leaf in zip(found, wanted, strict=True)):
        # `with jax.enable_x64()` holds for one thread, and Orbax reads in others.
        fix = 'call jax.config.update("jax_enable_x64", True), or set JAX_ENABLE_X64=1'
        raise CheckpointError(str(where), "holds 64-bit arrays, for which JAX is not set", fix)


def _empty(item: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), item)


def _alone() -> contextlib.AbstractContextManager:
    """Makes Orbax read without waiting for other hosts, which may have failed."""
    if not cluster.is_initialized():
        return contextlib.nullcontext()
    own = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"read{own}"
    )
    return ocp.Context(multiprocessing_options=options)


def _saved_items(where: Path, described: Description, names: Iterable[str]) -> dict[str, PyTree]:
    """Returns the saved shape and dtype of every array of the named items, as Orbax lists them."""
    names = list(names)
    items = {name: ocp.metadata(where, name).metadata for name in names if (where / name).is_dir()}
    for name, item in items.items():
        if not jax.tree.leaves(item):  # Orbax's answer when it cannot read the list of arrays
            raise ValueError(f"the list of arrays of {name} is damaged")
    if described.arrays is not None:
        listed = {path: (tuple(leaf.shape), leaf.dtype) for path, leaf in by_path(items).items()}
        saved = {
            path: (array.shape, array.dtype)
            for path, array in described.arrays.items()
            if path.partition("/")[0] in names
        }
        if odd := {path for path in listed | saved if listed.get(path) != saved.get(path)}:
            raise ValueError(f"{shorten(odd, 3)}: not listed as saved")
    return items
