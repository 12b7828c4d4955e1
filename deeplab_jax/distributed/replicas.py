"""Comparison of the copies of a run's state on its devices, bit for bit.

Each device makes the same update of its copy from the same gradients. A defect, or a host that
computes something else, makes one copy drift away from the others unnoticed.
"""

from collections import Counter
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from deeplab_jax.distributed import hosts
from deeplab_jax.errors import NumericError, shorten
from deeplab_jax.utils import compile_cache
from deeplab_jax.utils.trees import FIRST, GOLDEN, PyTree, mix


def checksum(tree: PyTree) -> jax.Array:
    """Returns a 32-bit checksum of a tree of arrays.

    A change confined to one element always changes it; others go unnoticed with probability 2^-32.

    Each 32 bits are mixed with their place, one to one, and summed modulo 2^32.
    """
    total = jnp.zeros((), jnp.uint32)
    for leaf in jax.tree.leaves(tree):
        words = _words(leaf)
        mixed = mix(words + GOLDEN * lax.iota(jnp.uint32, words.size), *FIRST)
        total = total * np.uint32(0x9E3779B1) + jnp.sum(mixed, dtype=jnp.uint32)
    return total


def _words(leaf: jax.Array) -> jax.Array:
    """Returns the bits of an array as uint32 (N,)."""
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    width = min(leaf.dtype.itemsize, 4)  # 64 bits become two words
    bits = lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * width}"))
    return bits.astype(jnp.uint32).reshape(-1)


class Replicas:
    """Compares the copies that the devices of a mesh hold."""

    def __init__(self, mesh: Mesh):
        self._mesh = mesh
        axes, whole = mesh.axis_names, PartitionSpec()

        def all_checksums(tree: PyTree) -> jax.Array:
            return lax.all_gather(checksum(tree), axes)

        # Within shard_map a device reads its own copy of an array that JAX holds to be replicated.
        each = jax.shard_map(
            all_checksums, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False
        )
        self._all_checksums = jax.jit(each)

    def check(self, tree: PyTree, step: int, kept: Callable[[], str]) -> None:
        """Compares the copies of `tree`; every host calls this, and waits for the devices.

        `step`, the optimiser steps done, and `kept()`, the last save in words, are for the message.

        Raises:
          NumericError: copies differ; names the devices outside the majority, and their hosts.
        """
        if self._mesh.size == 1:
            return
        with compile_cache.without_alarms():
            sums = np.asarray(self._all_checksums(tree)).reshape(-1).tolist()
        counts = Counter(sums)
        if len(counts) == 1:
            return
        (usual, most), *_ = counts.most_common()
        is_clear = 2 * most > len(sums)  # otherwise any may be wrong
        names = dict(enumerate(hosts.all_gather(hosts.name())))
        devices = list(zip(self._mesh.devices.flat, sums, strict=True))
        odd = [
            f"device {d.id} of {names[d.process_index]} has {value:08x}"
            for d, value in devices
            if value != usual or not is_clear
        ]
        rest = f"{most} of {len(sums)} have {usual:08x}" if is_clear else "none is in the majority"
        raise NumericError(
            "hosts",
            f"after step {step} devices hold different parameters: {shorten(odd, 8)}; {rest}",
            "see that all hosts have the same files to start from, and repeat the command, without"
            f" that machine if it happens again; {kept()}",
        )
