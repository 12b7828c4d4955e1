"""Each fast form against the plain one in float64, gradients included."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from deeplab_jax.models import ops


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def _normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def _assert_same_function(fast, plain, *args):
    """Values and all gradients agree to rounding."""
    expected, plain_vjp = jax.vjp(plain, *args)
    got, fast_vjp = jax.vjp(fast, *args)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)
    g = _normal(*expected.shape, seed=9)
    for fast_grad, plain_grad in zip(fast_vjp(g), plain_vjp(g), strict=True):
        np.testing.assert_allclose(fast_grad, plain_grad, rtol=1e-11, atol=1e-11)


def _lax_conv(x, kernel, stride, dilation, groups=1):
    padding = kernel.shape[0] // 2 * dilation
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (2, 0), (-1, 3), (5, -4), (-9, 9)])
def test_shift_moves_pixels_and_fills_with_zero(rows, columns):
    x = _normal(1, 5, 6, 2)
    shifted = np.zeros((1, 5, 6, 2))
    for i in range(5):
        for j in range(6):
            if 0 <= i - rows < 5 and 0 <= j - columns < 6:
                shifted[:, i, j] = x[:, i - rows, j - columns]
    np.testing.assert_array_equal(ops.shift(x, rows, columns), shifted)


def test_shift_fills_with_what_is_asked_for():
    shifted = ops.shift(_normal(1, 3, 3, 1), 1, -1, -jnp.inf)
    assert np.isneginf(shifted[0, :, :, 0]).tolist() == [[True] * 3] + [[False, False, True]] * 2


def _conv1x1(x, kernel, stride=1, platform="cpu", dtype=None):
    return ops.conv1x1(x, kernel, stride, lax.Precision.HIGHEST, platform, dtype)


@pytest.mark.parametrize("platform", ["cpu", "cpu_mesh"])
@pytest.mark.parametrize("outputs", [3, 8])
@pytest.mark.parametrize(("size", "stride"), [((6, 8), 1), ((6, 8), 2), ((7, 5), 2)])
def test_conv1x1_equals_lax(size, stride, outputs, platform):
    x, kernel = _normal(2, *size, 5), _normal(1, 1, 5, outputs, seed=1)
    _assert_same_function(
        lambda x, k: _conv1x1(x, k, stride, platform),
        lambda x, k: _lax_conv(x, k, stride, 1),
        x,
        kernel,
    )


def test_conv1x1_of_bfloat16_and_its_gradients_end_in_bfloat16():
    x, kernel = _normal(1, 2, 2, 64).astype(jnp.bfloat16), _normal(1, 1, 64, 3, seed=1)
    kernel = kernel.astype(jnp.bfloat16)
    y, gradients = jax.vjp(_conv1x1, x, kernel)
    assert {a.dtype for a in (y, *gradients(y))} == {jnp.dtype(jnp.bfloat16)}


def test_conv1x1_of_bfloat16_can_end_in_float32():
    x, kernel = _normal(1, 2, 2, 64).astype(jnp.bfloat16), _normal(1, 1, 64, 3, seed=1)
    kernel = kernel.astype(jnp.bfloat16)
    wide = _conv1x1(x, kernel, dtype=jnp.float32)
    exact = _conv1x1(x.astype(jnp.float64), kernel.astype(jnp.float64))
    assert wide.dtype == jnp.float32
    np.testing.assert_allclose(wide, exact, rtol=1e-5, atol=1e-5)


_FORMS = [ops.conv3x3_by_products, ops.conv3x3_by_strips, ops.conv3x3_winograd]


@pytest.mark.parametrize("form", _FORMS)
@pytest.mark.parametrize("dilation", [1, 2, 4, 18])
@pytest.mark.parametrize("size", [(8, 8), (5, 13), (20, 3)])
def test_forms_of_conv3x3_equal_lax(size, dilation, form):
    x, kernel = _normal(2, *size, 4), _normal(3, 3, 4, 5, seed=1)
    _assert_same_function(
        lambda x, k: form(x, k, dilation, lax.Precision.HIGHEST),
        lambda x, k: _lax_conv(x, k, 1, dilation),
        x,
        kernel,
    )


def test_strips_of_rows_cover_tall_pictures(monkeypatch):
    monkeypatch.setattr("deeplab_jax.models.ops.convolution._STRIP", 12)
    for height in (1, 7, 9):  # strips of one row where the height is prime, else of three
        _assert_same_function(
            lambda x, k: ops.conv3x3_by_strips(x, k, 1, lax.Precision.HIGHEST),
            lambda x, k: _lax_conv(x, k, 1, 1),
            _normal(2, height, 4, 3),
            _normal(3, 3, 3, 2, seed=1),
        )


_PICTURES = [
    # platform, stride, dilation, (B, H, W, I): one case for each form and for each of its limits
    ("cpu", 1, 2, (1, 5, 4, 128)),
    ("cpu", 1, 3, (1, 9, 5, 128)),
    ("cpu", 1, 1, (2, 5, 6, 64)),
    ("cpu", 1, 2, (2, 5, 6, 63)),
    ("cpu", 2, 1, (2, 5, 6, 32)),
    ("cpu_mesh", 1, 2, (2, 5, 6, 32)),
    ("gpu", 1, 2, (2, 5, 6, 32)),
    ("tpu", 1, 1, (2, 5, 6, 32)),
]


@pytest.mark.parametrize(("platform", "stride", "dilation", "shape"), _PICTURES)
def test_conv3x3_equals_lax_on_every_platform(platform, stride, dilation, shape):
    _assert_same_function(
        lambda x, k: ops.conv3x3(x, k, stride, dilation, lax.Precision.HIGHEST, platform),
        lambda x, k: _lax_conv(x, k, stride, dilation),
        _normal(*shape),
        _normal(3, 3, shape[-1], 2, seed=1) / 16,
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 2), (7, 6)])
def test_constant_maps_equal_maps_written_out(size):
    x, constant, kernel = (
        _normal(2, *size, 3),
        _normal(2, 1, 1, 4, seed=1),
        _normal(3, 3, 7, 5, seed=2),
    )

    def written_out(x, constant, kernel):
        maps = jnp.broadcast_to(constant, (*x.shape[:3], 4))
        return _lax_conv(jnp.concatenate([x, maps], -1), kernel, 1, 1)

    def fast(x, constant, kernel):
        return ops.conv3x3_with_constant(x, constant, kernel, None, lax.Precision.HIGHEST, "cpu")

    _assert_same_function(fast, written_out, x, constant, kernel)


def test_constant_maps_end_where_the_picture_does():
    x, constant, kernel = (
        _normal(2, 6, 7, 3),
        _normal(2, 1, 1, 4, seed=1),
        _normal(3, 3, 7, 5, seed=2),
    )
    valid_size = jnp.asarray([(6, 4), (3, 7)])
    maps = jnp.concatenate([x, jnp.broadcast_to(constant, (2, 6, 7, 4))], -1)
    expected = _lax_conv(ops.mask_padding(maps, valid_size), kernel, 1, 1)
    x = ops.mask_padding(x, valid_size)
    got = ops.conv3x3_with_constant(x, constant, kernel, valid_size, lax.Precision.HIGHEST, "cpu")
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_kernels_gradient_in_bfloat16_is_summed_in_float32():
    x, g = (_normal(2, 64, 64, 1, seed=k).astype(jnp.bfloat16) for k in (0, 1))
    kernel = jnp.ones((3, 3, 1, 1), jnp.bfloat16)
    functions = (
        *(lambda k, form=form: form(x, k, 2, lax.Precision.DEFAULT) for form in _FORMS[:2]),
        lambda k: ops.depthwise_conv3x3(x, k, 2, "gpu"),
    )
    exact = jax.vjp(lambda k: _lax_conv(x.astype(float), k, 1, 2), kernel.astype(float))[1](
        g.astype(float)
    )[0]
    for function in functions:
        got = jax.vjp(function, kernel)[1](g)[0].astype(float)
        assert abs(got - exact).max() < 2**-8 * abs(exact).max()


@pytest.mark.parametrize("size", [(8, 6), (7, 6), (8, 5), (1, 1), (2, 3)])
def test_max_pool_equals_lax(size):
    def plain(x):
        return nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])

    _assert_same_function(ops.max_pool3x3, plain, _normal(2, *size, 4))
    ties = jnp.round(_normal(2, *size, 4))  # the first of equal maxima is the one
    _assert_same_function(ops.max_pool3x3, plain, ties)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("dilation", [1, 3, 6, 18])
@pytest.mark.parametrize("size", [(8, 8), (5, 13), (20, 3)])
def test_depthwise_equals_lax(platform, dilation, size):
    x, kernel = _normal(2, *size, 4), _normal(3, 3, 1, 4, seed=1)
    _assert_same_function(
        lambda x, k: ops.depthwise_conv3x3(x, k, dilation, platform),
        lambda x, k: _lax_conv(x, k, 1, dilation, groups=4),
        x,
        kernel,
    )


def _plain_resize(x, size):
    """The definition, one output pixel at a time as matrices."""
    for axis in (1, 2):
        length, out = x.shape[axis], size[axis - 1]
        matrix = np.zeros((out, length))
        for k in range(out):
            source = max((k + 0.5) * length / out - 0.5, 0)
            low = min(int(source), length - 1)
            matrix[k, low] += 1 - (source - low)
            matrix[k, min(low + 1, length - 1)] += source - low
        x = jnp.moveaxis(jnp.tensordot(jnp.asarray(matrix), x, (1, axis)), 0, axis)
    return x


@pytest.mark.parametrize(
    "size", [(16, 24), (4, 6), (64, 96), (17, 25), (7, 12), (3, 5), (4, 13), (1, 1)]
)
def test_resize_equals_its_definition(size):
    x = _normal(2, 4, 6, 3)
    for platform in ("cpu", "gpu"):
        _assert_same_function(
            lambda x, name=platform: ops.resize_bilinear(x, size, name),
            lambda x: _plain_resize(x, size),
            x,
        )


def test_resize_equals_pytorch(golden, recipe):
    arrays = np.load(golden / "data.npz")
    for case in json.loads((golden / "data.json").read_text())["interp_cases"]:
        x = recipe.draw_image(case["image"], case["input_shape"]).transpose(0, 2, 3, 1)
        expected = arrays[f"{case['name']}/out"]
        got = ops.resize_bilinear(jnp.asarray(x, jnp.float64), tuple(case["size"]), "cpu_mesh")
        got = recipe.sample(got.transpose(0, 3, 1, 2), len(expected))
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_gradients_need_no_scatter():
    # A scatter is what the plain gather's gradient would be, 2.5 to 8 times slower.
    for size in ((16, 24), (17, 25)):
        loss = jax.grad(lambda x, size=size: ops.resize_bilinear(x, size, "cpu_mesh").sum())
        assert "scatter" not in jax.jit(loss).lower(_normal(1, 4, 6, 3)).as_text()


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("size", [(1, 2), (5, 7), (32, 33), (64, 64)])
def test_normalize_equals_its_definition(size, platform):
    def plain(x, scale, bias):
        mean, var = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
        normal = (x - mean.reshape(1, 1, 1, -1)) / jnp.sqrt(var + ops.BN_EPSILON).reshape(
            1, 1, 1, -1
        )
        return normal * scale.reshape(1, 1, 1, -1) + bias.reshape(1, 1, 1, -1)

    _assert_same_function(
        lambda x, scale, bias: ops.normalize(x, scale, bias, jnp.ones(3), platform)[0],
        plain,
        _normal(2, *size, 3),
        _normal(3, seed=1),
        _normal(3, seed=2),
    )


def test_variance_on_a_processor_stands_a_centre_far_away():
    x = (_normal(2, 64, 64, 8) + 300).astype(jnp.float32)
    exact = np.asarray(x, np.float64)
    ones = jnp.ones(8, jnp.float32)
    _, mean, var = ops.normalize(x, ones, ones, 0 * ones, "cpu")
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(var, exact.var((0, 1, 2)), rtol=1e-5)
