"""The forms that layers choose for a platform, against each other in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from deeplab_jax.dry_run.compiled import read_collectives
from deeplab_jax.models.layers import ComputePolicy, Conv


@pytest.mark.parametrize("platform", ["cpu_mesh", "gpu", "tpu"])
@pytest.mark.parametrize("dilation", [1, 6])
def test_depthwise_is_the_same_on_every_platform(platform, dilation):
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 7, 5, 128)))

        def gradients(platform):
            policy = ComputePolicy(jnp.float64, platform)
            conv = Conv(128, 3, policy, dilation=dilation, is_depthwise=True)
            variables = conv.init(jax.random.key(0), x)
            function = jax.value_and_grad(lambda *args: jnp.sum(conv.apply(*args) ** 2), (0, 1))
            return function(variables, x)

        got, expected = gradients(platform), gradients("cpu")
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), got, expected
        )


@pytest.mark.parametrize("dilation", [1, 12])
def test_depthwise_of_split_rows_moves_only_the_rows_at_the_seams(dilation):
    mesh = jax.make_mesh((2,), ("spatial",), devices=jax.devices()[:2])
    whole, rows = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), (None, "spatial")))
    conv = Conv(128, 3, ComputePolicy(platform="tpu"), dilation=dilation, is_depthwise=True)
    x = jnp.zeros((2, 16, 8, 128))
    variables = conv.init(jax.random.key(0), x)
    function = jax.value_and_grad(lambda *args: jnp.sum(conv.apply(*args) ** 2), (0, 1))
    compiled = jax.jit(function, in_shardings=(whole, rows)).lower(variables, x).compile()
    assert read_collectives(compiled.as_text()).keys() == {"all-reduce", "collective-permute"}
