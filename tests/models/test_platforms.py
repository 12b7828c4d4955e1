"""The forms that layers choose for a platform, against each other in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
