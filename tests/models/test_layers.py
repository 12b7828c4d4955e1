import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.models.layers import BatchNorm, Classifier, ComputePolicy, ConvBNReLU


def _apply(module, variables, x, is_train):
    return module.apply(variables, x, is_train, mutable=["batch_stats"])


def _batch_norm(dtype=jnp.float64, **policy):
    return BatchNorm(ComputePolicy(jnp.dtype(dtype), **policy))


def _variables(mean, var, scale=1.5, bias=-0.5):
    full = [np.full(1, v) for v in (scale, bias, mean, var)]
    return {
        "params": {"scale": full[0], "bias": full[1]},
        "batch_stats": {"mean": full[2], "var": full[3]},
    }


def test_batch_norm_by_hand():
    with jax.enable_x64(True):
        x = jnp.array([1.0, 2.0, 3.0, 6.0]).reshape(2, 2, 1, 1)  # mean 3, biased var 3.5
        y, updated = _apply(_batch_norm(), _variables(10.0, 2.0), x, True)
        expected = (np.array([1, 2, 3, 6]) - 3) / np.sqrt(3.5 + 1e-5) * 1.5 - 0.5
        np.testing.assert_allclose(np.ravel(y), expected, rtol=1e-12)
        stats = updated["batch_stats"]
        np.testing.assert_allclose(stats["mean"], 0.9 * 10 + 0.1 * 3, rtol=1e-12)
        # The running variance takes the unbiased 14/3, not 3.5.
        np.testing.assert_allclose(stats["var"], 0.9 * 2 + 0.1 * 14 / 3, rtol=1e-12)


def test_batch_norm_in_evaluation_uses_running_statistics():
    with jax.enable_x64(True):
        x = jnp.array([1.0, 5.0]).reshape(2, 1, 1, 1)
        y, updated = _apply(_batch_norm(), _variables(2.0, 4.0), x, False)
        expected = (np.array([1, 5]) - 2) / np.sqrt(4 + 1e-5) * 1.5 - 0.5
        np.testing.assert_allclose(np.ravel(y), expected, rtol=1e-12)
        np.testing.assert_array_equal(updated["batch_stats"]["mean"], 2.0)


def test_frozen_batch_norm_ignores_the_batch():
    with jax.enable_x64(True):
        x = jnp.array([1.0, 5.0]).reshape(2, 1, 1, 1)
        frozen = _batch_norm(freeze_batch_norm=True)
        y, updated = _apply(frozen, _variables(2.0, 4.0), x, True)
        expected, _ = _apply(frozen, _variables(2.0, 4.0), x, False)
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(updated["batch_stats"]["var"], 4.0)


def test_one_value_per_channel_is_told_with_its_place():
    x = jnp.ones((1, 1, 1, 2))
    module = ConvBNReLU(3, ComputePolicy())
    variables = module.init(jax.random.key(0), x, False)
    with pytest.raises(ValueError, match=r"norm needs more than one .* got shape \(1, 1, 1, 3\)"):
        _apply(module, variables, x, True)
    _apply(module, variables, x, False)


def test_batch_norm_gradient_equals_autodiff():
    def plain(x, scale, bias):
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        shape = (1, 1, 1, -1)
        normal = (x - mean.reshape(shape)) / jnp.sqrt(var.reshape(shape) + 1e-5)
        return normal * scale.reshape(shape) + bias.reshape(shape)

    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.standard_normal((3, 4, 5, 2)) * 3 + 7)
        scale, bias = jnp.asarray(rng.standard_normal(2)), jnp.asarray(rng.standard_normal(2))
        stats = {"mean": jnp.ones(2), "var": jnp.ones(2)}

        def ours(x, scale, bias):
            params = {"scale": scale, "bias": bias}
            return _apply(_batch_norm(), {"params": params, "batch_stats": stats}, x, True)[0]

        expected, plain_vjp = jax.vjp(plain, x, scale, bias)
        y, our_vjp = jax.vjp(ours, x, scale, bias)
        np.testing.assert_allclose(y, expected, rtol=1e-10)
        g = jnp.asarray(rng.standard_normal(x.shape))
        for got, wanted in zip(our_vjp(g), plain_vjp(g), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-11)


def test_variance_survives_a_mean_far_from_zero():
    # Plain E[x^2] - E[x]^2 gives 0 or 3 here in float32.
    x = np.random.default_rng(0).standard_normal((4, 16, 16, 1)).astype(np.float32) + 3000
    variables = jax.tree.map(np.float32, _variables(2999.0, 1.0))
    _, updated = _apply(_batch_norm(np.float32), variables, x, True)
    var = (updated["batch_stats"]["var"] - 0.9) / 0.1
    np.testing.assert_allclose(var, x.astype(np.float64).var(ddof=1), rtol=1e-3)


def test_bfloat16_keeps_statistics_and_logits_in_float32():
    policy = ComputePolicy(jnp.dtype(jnp.bfloat16))
    block = ConvBNReLU(8, policy, 3)
    x = jnp.ones((2, 4, 4, 3), jnp.bfloat16)
    variables = block.init(jax.random.key(0), x, False)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    y, updated = _apply(block, variables, x, True)
    assert y.dtype == jnp.bfloat16
    assert updated["batch_stats"]["norm"]["mean"].dtype == jnp.float32
    classifier = Classifier(5, 0.0, policy)
    logits, variables = classifier.init_with_output(jax.random.key(0), x, False)
    assert logits.dtype == variables["params"]["kernel"].dtype == jnp.float32


def test_initial_values_are_pytorchs():
    variables = ConvBNReLU(64, ComputePolicy(), 3).init(
        jax.random.key(0), jnp.ones((1, 8, 8, 32)), False
    )
    kernel = np.asarray(variables["params"]["conv"]["kernel"])
    bound = 1 / np.sqrt(32 * 9)
    assert np.abs(kernel).max() <= bound
    np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.02)  # of a uniform draw
    depthwise = ConvBNReLU(32, ComputePolicy(), 3, is_depthwise=True)
    kernel = depthwise.init(jax.random.key(0), jnp.ones((1, 8, 8, 32)), False)["params"]["conv"]
    assert 0.3 < np.abs(kernel["kernel"]).max() <= 1 / 3
    bias = Classifier(50, 0.1, ComputePolicy()).init(
        jax.random.key(0), jnp.ones((1, 1, 1, 16)), False
    )
    assert 0.2 < np.abs(bias["params"]["bias"]).max() <= 1 / 4


def test_dropout_drops_whole_channels_and_keeps_the_mean():
    classifier = Classifier(1, 0.25, ComputePolicy())
    x = jnp.ones((64, 3, 3, 128))
    variables = {"params": {"kernel": jnp.ones((1, 1, 128, 1)), "bias": jnp.zeros(1)}}
    y = classifier.apply(variables, x, True, rngs={"dropout": jax.random.key(1)})
    np.testing.assert_allclose(y, jnp.broadcast_to(y[:, :1, :1], y.shape), rtol=1e-6)
    kept = np.asarray(y[:, 0, 0, 0]) * 0.75  # kept channels weigh 1 / 0.75
    np.testing.assert_allclose(kept, np.round(kept), atol=1e-3)
    assert abs(kept.mean() - 96) < 2
    np.testing.assert_allclose(classifier.apply(variables, x, False), 128.0)


@pytest.mark.parametrize("stride", [1, 2])
def test_padding_is_symmetric(stride):
    # A kernel that copies its centre: "SAME" would start one pixel later at stride 2.
    block = ConvBNReLU(1, ComputePolicy(), 3, stride=stride, use_relu=False)
    x = jnp.arange(64.0).reshape(1, 8, 8, 1)
    variables = block.init(jax.random.key(0), x, False)
    variables["params"]["conv"]["kernel"] = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1)
    y = block.apply(variables, x, False)
    np.testing.assert_allclose(y, x[:, ::stride, ::stride], rtol=1e-4)
