"""Structure of the network, and parity with the PyTorch reference on its golden values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.config import get_config
from deeplab_jax.models import ComputePolicy, build_model, init_variables

_ROWS = [
    f"r{depth}_d{stride}_c{c}" for depth in (50, 101) for stride in (8, 16) for c in (21, 150, 19)
]
_PARAMETERS = {  # ssseg spec section 1
    (50, 21): 45_956_602,
    (50, 150): 46_088_956,
    (50, 19): 45_954_550,
    (101, 21): 64_948_730,
    (101, 150): 65_081_084,
    (101, 19): 64_946_678,
}


def _parse(name):
    depth, stride, classes = name.split("_")
    return int(depth[1:]), int(stride[1:]), int(classes[1:])


@pytest.mark.parametrize("name", _ROWS)
def test_parameter_counts_are_the_tables(name):
    depth, stride, classes = _parse(name)
    config = get_config("voc", depth, stride).model
    config.num_classes = classes
    model = build_model(config, "cpu")
    variables = jax.eval_shape(lambda: init_variables(model, 0))
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert count == _PARAMETERS[depth, classes]


def test_logits_have_a_quarter_of_the_resolution():
    config = get_config("folder", depth=18).model
    model = build_model(config, "cpu")
    variables = jax.eval_shape(lambda: init_variables(model, 0))
    images = jax.ShapeDtypeStruct((2, 65, 98, 3), jnp.float32)
    output = jax.eval_shape(model.apply, variables, images)
    assert output.logits.shape == (2, 17, 25, 2)
    assert output.aux_logits.shape == (2, 5, 7, 2)


def test_no_axis_name_is_in_the_model():
    # Statistics are global under jit because the batch is; a collective of our own would be wrong.
    model = build_model(get_config("folder", depth=18).model, "cpu")
    variables = jax.eval_shape(lambda: init_variables(model, 0))
    images = jax.ShapeDtypeStruct((2, 33, 33, 3), jnp.float32)
    program = jax.jit(lambda v, x: model.apply(v, x, is_train=True, mutable=["batch_stats"])).lower(
        variables, images
    )
    assert "all_reduce" not in program.as_text()


def _check_forward(measure, name, dtype, tolerance, is_long=False):
    """Checks the small image and its inner stages, or the long ones that reach every dilation."""
    for case, pairs in measure.forward(name, *measure.network(name, dtype), is_long):
        for key, (got, expected) in pairs.items():
            np.testing.assert_allclose(got, expected, **tolerance, err_msg=f"{case} {key}")
            if key in ("logits", "aux"):
                agree = np.argmax(got, -1) == np.argmax(expected, -1)
                assert agree.mean() > 0.995, (case, key)


@pytest.fixture
def _highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


_FLOAT32 = {"atol": 5e-4, "rtol": 1e-4}
_FLOAT64 = {"atol": 1e-6, "rtol": 1e-6}  # expected values are stored as float32
_LONG = [row for row in _ROWS if row.endswith("c21") or row == "r101_d8_c19"]  # have long cases
_FULL_SIZE = pytest.mark.parity(
    "half a minute a network; a narrow one is in tests/golden/test_narrow.py"
)
_MINUTES = pytest.mark.slow("minutes a network on two cores")


@_FULL_SIZE
@pytest.mark.usefixtures("_highest_precision")
@pytest.mark.parametrize("name", _ROWS)
def test_forward_equals_pytorch_in_float32(measure, name):
    _check_forward(measure, name, "float32", _FLOAT32)


@_FULL_SIZE
@pytest.mark.usefixtures("_highest_precision")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[_MINUTES] * n.startswith("r101")) for n in _LONG]
)
def test_forward_of_long_images_equals_pytorch_in_float32(measure, name):
    _check_forward(measure, name, "float32", _FLOAT32, is_long=True)


@_FULL_SIZE
@pytest.mark.parametrize("name", [row for row in _ROWS if row.startswith("r50")])
def test_forward_equals_pytorch_in_float64(measure, name):
    with jax.enable_x64(True):
        _check_forward(measure, name, "float64", _FLOAT64)


@_MINUTES
@pytest.mark.parametrize("name", [row for row in _LONG if row.startswith("r50")])
def test_forward_of_long_images_equals_pytorch_in_float64(measure, name):
    with jax.enable_x64(True):
        _check_forward(measure, name, "float64", _FLOAT64, is_long=True)


@pytest.mark.slow("XLA compiles bfloat16 slowly on a CPU")
def test_bfloat16_stays_close_to_float32():
    outputs = {}
    for dtype in ("float32", "bfloat16"):
        config = get_config("folder", depth=18).model
        config.width, config.head_channels, config.dtype = 8, 16, dtype
        model = build_model(config, "cpu")
        variables = init_variables(model, 0)
        images = np.random.default_rng(0).standard_normal((1, 33, 33, 3)).astype(np.float32)
        outputs[dtype] = np.asarray(jax.jit(model.apply)(variables, images).logits)
    error = np.abs(outputs["bfloat16"] - outputs["float32"]).max()
    assert 0 < error < 0.05 * np.abs(outputs["float32"]).max()


def test_float64_without_64_bit_mode_is_refused():
    config = get_config("folder").model
    config.dtype = "float64"
    with pytest.raises(ValueError, match="JAX_ENABLE_X64"):
        build_model(config)


def test_numerics_widen_by_dtype():
    assert ComputePolicy(jnp.dtype("bfloat16")).wide_dtype == jnp.float32
    assert ComputePolicy(jnp.dtype("float64")).wide_dtype == jnp.float64
