"""Checksums of arrays, equal on a device and in NumPy.

Element i of an array in C order, as one or two 32-bit words, is mapped one to one to two words that
depend on i. A checksum is the sum of each of both over all elements, modulo 2^32.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deeplab_jax.utils import compile_cache
from deeplab_jax.utils.trees import FIRST, GOLDEN, PyTree, by_path, mix

_SECOND = 0x85EBCA6B, 0xC2B2AE35  # factors of `mix`
_BLOCK = 1 << 14  # elements that NumPy mixes at a time: they stay in the cache
_SMALL = 1 << 16  # elements; a program for each shape takes longer to compile than NumPy to count


def checksums(tree: PyTree) -> dict[str, str]:
    """Returns the 64-bit checksum of every array of a tree, in hex, by path.

    A change confined to one element always changes its array's checksum. Others go unnoticed with
    probability 2^-64.

    Args:
      tree: JAX arrays, of any sharding, or NumPy arrays; elements of at most 64 bits. Every host
        calls this where an array is split between hosts.
    """
    leaves = by_path(tree)
    parts = {
        path: leaf.addressable_data(0)
        if isinstance(leaf, jax.Array) and leaf.is_fully_replicated
        else leaf
        for path, leaf in leaves.items()
    }
    on_host = {path: leaf for path, leaf in parts.items() if _is_for_host(leaf)}
    with compile_cache.without_alarms():
        sums = {path: _on_device(leaf) for path, leaf in parts.items() if path not in on_host}
    both = jax.device_get(sums) | {
        path: array_sums(leaf) for path, leaf in jax.device_get(on_host).items()
    }
    return {path: f"{both[path][0]:08x}{both[path][1]:08x}" for path in leaves}


def array_sums(array: np.ndarray) -> tuple[int, int]:
    """Returns both sums of an array; uses no device."""
    flat = np.ascontiguousarray(array).reshape(-1)
    size = _width(flat.dtype)
    offsets = GOLDEN * np.arange(min(flat.size, _BLOCK), dtype=np.uint32)
    first = second = 0
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        words = block.view(f"u{min(size, 4)}").astype(np.uint32).reshape(len(block), -1).T
        offset = np.uint32(int(GOLDEN) * start & 0xFFFFFFFF)
        mixed = _mixed(words[0], words[1] if size == 8 else None, offsets[: len(block)] + offset)
        first += int(mixed[0].sum(dtype=np.uint32))
        second += int(mixed[1].sum(dtype=np.uint32))
    return first & 0xFFFFFFFF, second & 0xFFFFFFFF


def _is_for_host(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray | np.generic) or (
        leaf.size <= _SMALL and leaf.is_fully_addressable
    )


def _on_device(leaf: jax.Array) -> jax.Array:
    sharding = leaf.sharding
    mesh = sharding.mesh if isinstance(sharding, jax.NamedSharding) else None
    return _program(mesh)(leaf)


@functools.cache
def _program(mesh: Any) -> Any:
    whole = None if mesh is None else jax.NamedSharding(mesh, jax.P())  # every host reads the sums
    return jax.jit(_device_sums, out_shardings=whole)


def _device_sums(leaf: jax.Array) -> jax.Array:
    size = _width(leaf.dtype)
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    bits = lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * min(size, 4)}"))
    low, high = (bits[..., 0], bits[..., 1].reshape(-1)) if size == 8 else (bits, None)
    low = low.astype(jnp.uint32).reshape(-1)
    mixed = _mixed(low, high, GOLDEN * lax.iota(jnp.uint32, low.size))
    return jnp.stack([jnp.sum(part, dtype=jnp.uint32) for part in mixed])


def _width(dtype: np.dtype) -> int:
    """Returns the bytes of an element."""
    if dtype.kind == "c" or dtype.itemsize not in (1, 2, 4, 8):
        raise TypeError(f"arrays of {dtype} have no checksum; use a real type of at most 64 bits")
    return dtype.itemsize


def _mixed(low: Any, high: Any, offset: Any) -> tuple[Any, Any]:
    """Returns two words for each element of one word, or two; no two elements have the same."""
    first = mix(low + offset, *FIRST)
    if high is None:
        return first, mix(first + GOLDEN, *_SECOND)
    second = mix(high + first, *_SECOND)
    return first + mix(second, *FIRST), second


def mismatches(saved: Mapping[str, str], tree: PyTree) -> list[str]:
    """Returns a phrase for each array whose checksum is not the saved one."""
    found = checksums(tree)
    return [
        f"{path}: its checksum is {found[path]}, {saved[path]} was saved"
        for path in sorted(found)
        if found[path] != saved[path]
    ]
