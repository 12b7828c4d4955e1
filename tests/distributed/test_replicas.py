"""Copies of the parameters that are no longer equal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.distributed import mesh as mesh_lib
from deeplab_jax.distributed.replicas import Replicas, checksum
from deeplab_jax.errors import NumericError


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "bool"])
def test_checksum_sees_each_bit_and_each_place(dtype):
    x = np.asarray(np.arange(8) % 2, dtype)
    sums = {int(checksum({"a": x}))}
    for k in range(8):
        changed = x.copy()
        changed[k] = not changed[k]
        sums.add(int(checksum({"a": changed})))
    assert len(sums) == 9
    if dtype == "float32":
        for values in ([1, -1, 3], [-1, 1, 3], [1, 2, 5], [-1, -2, 5], [2, 1, 5]):
            sums.add(int(checksum({"a": np.asarray(values, dtype)})))
        assert len(sums) == 14
    assert int(checksum([x, x[:3]])) != int(checksum([x[:3], x]))


def test_the_sum_stays_as_it_is():
    """Hosts of two versions compare it."""
    leaf = jnp.arange(6, dtype=jnp.float32).reshape(2, 3)
    assert int(checksum({"a": leaf, "b": leaf > 2})) == 0xB6D35F8B


def test_copies_without_a_majority_are_all_named():
    mesh = mesh_lib.make_mesh(4)
    parts = [jax.device_put(np.float32([k // 2]), d) for k, d in enumerate(jax.devices())]
    bad = jax.make_array_from_single_device_arrays((1,), mesh_lib.replicated(mesh), parts)
    with pytest.raises(NumericError, match=r"device 0 .* device 3 .*none is in the majority"):
        Replicas(mesh).check({"a": bad}, 3, lambda: "kept")


def test_copy_that_differs_is_found_on_one_host():
    mesh = mesh_lib.make_mesh(4)
    whole = mesh_lib.replicated(mesh)
    values = np.arange(6, dtype=np.float32)
    replicas = Replicas(mesh)
    replicas.check({"a": jax.device_put(values, whole)}, 3, lambda: "kept")
    parts = [jax.device_put(values + (k == 2) * 1e-6, d) for k, d in enumerate(jax.devices())]
    bad = jax.make_array_from_single_device_arrays((6,), whole, parts)
    with pytest.raises(NumericError, match=r"device 2 of .* has .*; 3 of 4 have .* kept"):
        replicas.check({"a": bad}, 3, lambda: "kept")
