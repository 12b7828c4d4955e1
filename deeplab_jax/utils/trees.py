"""JAX's nested containers of arrays: their type, their placement, and differences of two."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from deeplab_jax.errors import shorten

PyTree: TypeAlias = Any  # nested mappings and tuples of arrays, or of their shapes and types


def placed(tree: PyTree, sharding: jax.sharding.Sharding) -> PyTree:
    """Returns the `jax.ShapeDtypeStruct` of every leaf, with a sharding."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def differences(
    saved: Mapping[str, PyTree], wanted: Mapping[str, PyTree], allow_cast: bool
) -> list[str]:
    """Returns one phrase for each kind of difference in names, shapes and types; [] if none.

    Both are trees of leaves with `shape` and `dtype`, by item. With `allow_cast` floating types may
    differ.
    """
    old, new = by_path(saved), by_path(wanted)
    missing, unexpected = new.keys() - old.keys(), old.keys() - new.keys()
    shapes, dtypes = [], []
    for name in new.keys() & old.keys():
        there, here = old[name], new[name]
        if tuple(there.shape) != tuple(here.shape):
            shapes.append(f"{name}: {tuple(there.shape)} saved, {tuple(here.shape)} wanted")
        elif there.dtype != here.dtype:
            are_floating = all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in (there, here))
            if not (allow_cast and are_floating):
                dtypes.append(f"{name}: {there.dtype} saved, {here.dtype} wanted")
    if not (missing or unexpected or shapes or dtypes):
        return []
    # Always both: "0 unexpected" tells a smaller model from another one.
    phrases = [_count(missing, "parameters missing"), _count(unexpected, "unexpected")]
    if shapes:
        phrases.append(_count(shapes, "of another shape"))
    if dtypes:
        phrases.append(_count(dtypes, "of another type"))
    return phrases


def _count(names: Iterable[str], text: str) -> str:
    names = list(names)
    return f"{len(names)} {text}" + (f" ({shorten(names)})" if names else "")


def by_path(items: Mapping[str, PyTree]) -> dict[str, Any]:
    """Returns leaves by path, equal for a NamedTuple and the dict in which Orbax returns it."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(dict(items))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
