"""Maps held in blocks of 2x2 pixels against plain ones in float64, gradients included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from deeplab_jax.dry_run.compiled import read_collectives
from deeplab_jax.models import ops
from deeplab_jax.models.layers import ComputePolicy
from deeplab_jax.models.ops import blocks
from deeplab_jax.models.resnet import Stem

EXACT = lax.Precision.HIGHEST


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def _normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def _assert_same_function(fast, plain, *args):
    expected, plain_vjp = jax.vjp(plain, *args)
    got, fast_vjp = jax.vjp(fast, *args)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)
    g = _normal(*expected.shape, seed=9)
    for fast_grad, plain_grad in zip(fast_vjp(g), plain_vjp(g), strict=True):
        np.testing.assert_allclose(fast_grad, plain_grad, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 12), (4, 4)])
def test_convolution(stride, size):
    _assert_same_function(
        lambda x, k: blocks.conv3x3_blocks(blocks.to_blocks(x, 2 * stride), k, stride, EXACT),
        lambda x, k: blocks.to_blocks(ops.conv(x, k, stride), 2),
        _normal(2, *size, 3),
        _normal(3, 3, 3, 5, seed=1),
    )


def test_norm():
    x, scale, bias, centre = _normal(2, 4, 6, 3), *(_normal(3, seed=k) for k in (1, 2, 3))
    got = ops.normalize(blocks.to_blocks(x, 2), scale, bias, centre, "tpu")
    normal, *statistics = ops.normalize(x, scale, bias, centre, "tpu")
    for values in zip(got, (blocks.to_blocks(normal, 2), *statistics), strict=True):
        np.testing.assert_allclose(*values, rtol=1e-12, atol=1e-14)
    _assert_same_function(
        lambda x, s, b: ops.normalize(blocks.to_blocks(x, 2), s, b, centre, "tpu")[0],
        lambda x, s, b: blocks.to_blocks(ops.normalize(x, s, b, centre, "tpu")[0], 2),
        x, scale, bias,
    )  # fmt: skip


@pytest.mark.parametrize("size", [(8, 6), (2, 2)])
def test_max_pool(size):
    for x in (_normal(2, *size, 4), jnp.round(_normal(2, *size, 4))):  # ties: the first
        _assert_same_function(
            lambda x: blocks.max_pool3x3_blocks(blocks.to_blocks(x, 2)), ops.max_pool3x3, x
        )


def _stem(platform, **layouts):
    """Returns (loss, statistics), gradient and collectives of a stem; a TPU's is in blocks."""
    model = Stem(8, "deep", ComputePolicy(jnp.float64, platform))
    x, g = _normal(2, 16, 24, 3), _normal(2, 4, 6, 8)
    variables = model.init(jax.random.key(0), x, False)

    def loss(params, x):
        state = {**variables, "params": params}
        y, updated = model.apply(state, x, True, mutable=["batch_stats"])
        pool = ops.max_pool3x3 if platform != "tpu" else blocks.max_pool3x3_blocks
        return jnp.sum(g * pool(y)), updated

    step = jax.jit(jax.value_and_grad(loss, has_aux=True), **layouts)
    compiled = step.lower(variables["params"], x).compile()
    x = jax.device_put(x, layouts["in_shardings"][1]) if layouts else x
    return compiled(variables["params"], x), read_collectives(compiled.as_text())


def test_stem_computes_the_same_from_the_same_parameters_with_no_more_collectives():
    mesh = jax.make_mesh((2,), ("spatial",), devices=jax.devices()[:2])
    whole, rows = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), (None, "spatial")))
    split = {"in_shardings": (whole, rows), "out_shardings": whole}
    expected, _ = _stem("cpu_mesh")
    _, plain = _stem("cpu_mesh", **split)
    got, fast = _stem("tpu", **split)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), got, expected)
    assert fast.keys() == plain.keys() == {"all-reduce", "collective-permute"}
    assert all(fast[kind][0] <= plain[kind][0] for kind in fast), (fast, plain)
