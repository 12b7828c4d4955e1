"""JAX's nested containers of arrays: their type, placement, parts, bits, and differences of two."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.errors import shorten

PyTree: TypeAlias = Any  # nested mappings and tuples of arrays, or of their shapes and types

GOLDEN = np.uint32(0x9E3779B9)  # odd: a place's offset differs from its neighbours' in all bits
FIRST = 0x7FEB352D, 0x846CA68B  # factors of `mix`


def mix(words: Any, one: int, other: int) -> Any:
    """Returns scrambled 32-bit words, one to one; the factors are odd.

    `words` is uint32, of JAX or of NumPy. Saved checksums depend on these bits.
    """
    words = (words ^ (words >> 16)) * np.uint32(one)
    words = (words ^ (words >> 15)) * np.uint32(other)
    return words ^ (words >> 16)


def placed(tree: PyTree, sharding: jax.sharding.Sharding) -> PyTree:
    """Returns the `jax.ShapeDtypeStruct` of every leaf, with a sharding."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def divide(tree: PyTree, modules: Collection[str]) -> tuple[PyTree, PyTree]:
    """Returns the rest of a tree, and its part in some modules.

    Args:
      tree: nested dictionaries by module, such as "backbone", then "layer1_0".
      modules: names such as "aspp" or "backbone.layer1", which has "layer1_0", "layer1_1", ...
    """
    if not modules:
        return tree, {}
    rest: dict[str, PyTree] = {}
    part: dict[str, PyTree] = {}
    for name, value in tree.items():
        start = f"{name}."
        within = {key.removeprefix(start) for key in modules if key.startswith(start)}
        if name in modules or name.partition("_")[0] in modules:
            part[name] = value
        elif within:
            pair = divide(value, within)
            for whole, piece in zip((rest, part), pair, strict=True):
                if piece:
                    whole[name] = piece
        else:
            rest[name] = value
    return rest, part


def merged(one: PyTree, other: PyTree) -> PyTree:
    """Returns the union of two trees of nested dictionaries; common leaves are of `other`."""
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return other
    common = {key: merged(one[key], other[key]) for key in one.keys() & other.keys()}
    return {**one, **other, **common}


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
