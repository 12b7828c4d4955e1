"""Maps held in blocks of 2x2 pixels against plain ones in float64, gradients included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from deeplab_jax.models import ops
from deeplab_jax.models.layers import ComputePolicy
from deeplab_jax.models.ops import blocks
from deeplab_jax.models.resnet import ResNet

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
    got = blocks.normalize_blocks(blocks.to_blocks(x, 2), scale, bias, centre)
    normal, *statistics = ops.normalize(x, scale, bias, centre)
    for values in zip(got, (blocks.to_blocks(normal, 2), *statistics), strict=True):
        np.testing.assert_allclose(*values, rtol=1e-12, atol=1e-14)
    _assert_same_function(
        lambda x, s, b: blocks.normalize_blocks(blocks.to_blocks(x, 2), s, b, centre)[0],
        lambda x, s, b: blocks.to_blocks(ops.normalize(x, s, b, centre)[0], 2),
        x, scale, bias,
    )  # fmt: skip


@pytest.mark.parametrize("size", [(8, 6), (2, 2)])
def test_max_pool(size):
    for x in (_normal(2, *size, 4), jnp.round(_normal(2, *size, 4))):  # ties: the first
        _assert_same_function(
            lambda x: blocks.max_pool3x3_blocks(blocks.to_blocks(x, 2)), ops.max_pool3x3, x
        )


def _stem(platform, size):
    """Returns the network's first two maps with their gradients; sizes that fit take blocks."""
    model = ResNet(18, 16, ComputePolicy(jnp.float64, platform), width=8)
    x = _normal(2, *size, 3)
    variables = jax.jit(model.init, static_argnums=2)(jax.random.key(0), x, False)

    def loss(params):
        maps, updated = model.apply(
            {**variables, "params": params}, x, True, mutable=["batch_stats"]
        )
        return jnp.sum(maps[0] ** 2), updated

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])


def test_stem_computes_the_same_from_the_same_parameters():
    plain, fast = _stem("cpu_mesh", (16, 24)), _stem("tpu", (16, 24))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9), fast, plain)
