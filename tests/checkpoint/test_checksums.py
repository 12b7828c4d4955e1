"""One definition, on a device and in NumPy."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from deeplab_jax.checkpoint import checksums as lib

DTYPES = (np.float32, np.float64, ml_dtypes.bfloat16, np.int32, np.uint32, np.int64, np.uint8, bool)


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


def draw(shape, dtype, seed=0):
    raw = np.random.default_rng(seed).integers(0, 256, (*shape, np.dtype(dtype).itemsize), np.uint8)
    if dtype is bool:
        return raw[..., 0] > 127
    return raw.view(dtype).reshape(shape)


def on_device(leaf):
    first, second = np.asarray(lib._program(None)(leaf)).tolist()
    return first, second


@pytest.mark.parametrize("dtype", DTYPES)
def test_device_and_numpy_agree(dtype):
    for shape in ((), (0,), (1,), (3, 5, 7), (lib._BLOCK + 3, 2)):
        array = draw(shape, dtype)
        assert on_device(jnp.asarray(array)) == lib.array_sums(array), shape


def test_the_sums_stay_as_they_are():
    """Steps on disks hold them."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    tree = {"a": array, "b": [array.astype(np.float64), array.astype(np.int32)[0, 1]]}
    assert lib.checksums(tree) == {
        "a": "107690800ab58811",
        "b/0": "d8c15172c862376e",
        "b/1": "688990c07ce31c84",
    }


def test_split_and_copied_arrays_have_the_sums_of_the_whole():
    array = draw((8, lib._SMALL // 4), np.float32)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "spatial"))
    for spec in ((), ("data",), ("data", "spatial"), (None, ("data", "spatial"))):
        split = jax.device_put(array, jax.NamedSharding(mesh, jax.P(*spec)))
        assert lib.checksums({"a": split}) == lib.checksums({"a": array}), spec


@pytest.mark.parametrize("dtype", DTYPES[:-1])
def test_a_changed_element_always_shows(dtype):
    array, rng = draw((64, 3), dtype), np.random.default_rng(1)
    before = lib.array_sums(array)
    size = array.dtype.itemsize
    for place in range(array.size):
        changed = array.copy()
        raw = changed.reshape(-1).view(np.uint8).reshape(-1, size)
        raw[place] ^= rng.integers(1, 256, size, np.uint8)
        assert lib.array_sums(changed) != before
        raw[place] = array.reshape(-1).view(np.uint8).reshape(-1, size)[place]
        raw[place, place % size] ^= 1 << place % 8
        assert lib.array_sums(changed) != before


def test_what_usual_sums_do_not_see():
    array = draw((100,), np.float32)
    before = lib.array_sums(array)
    swapped = array.copy()
    swapped[[3, 7]] = swapped[[7, 3]]
    for other in (swapped, array[::-1], np.roll(array, 1), np.zeros_like(array)):
        assert lib.array_sums(other) != before
    zeros = np.zeros(100, np.float32)
    assert lib.array_sums(zeros) != lib.array_sums(-zeros) != lib.array_sums(zeros[:99])


def test_types_without_a_checksum_are_refused():
    with pytest.raises(TypeError, match="complex64"):
        lib.array_sums(np.zeros(2, np.complex64))
