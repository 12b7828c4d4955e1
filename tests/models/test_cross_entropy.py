"""The cross entropy without large logits against the plain one, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from deeplab_jax.dry_run.compiled import read_collectives
from deeplab_jax.training.losses import segmentation_loss

B, C = 4, 5


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def _draw(logits_size, aux_size, size):
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((B, *s, C)) * 3 for s in (logits_size, aux_size))
    labels = rng.integers(0, C, (B, *size))
    labels[rng.random(labels.shape) < 0.3] = 255
    labels[1] = 255
    weights = rng.random(B)
    return *map(jnp.asarray, logits), jnp.asarray(labels, jnp.int32), jnp.asarray(weights)


def _value_and_gradient(platform, **layouts):
    def loss(logits, aux_logits, labels, weights):
        losses = segmentation_loss(logits, aux_logits, labels, weights=weights, platform=platform)
        return losses["loss"], losses

    function = jax.value_and_grad(loss, (0, 1), has_aux=True)
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **layouts)


def _assert_same(got, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), got, expected
    )


@pytest.mark.parametrize(
    ("logits_size", "aux_size", "size"),
    [
        ((4, 6), (1, 3), (8, 24)),  # by two and four; a single row by eight
        ((5, 4), (3, 2), (15, 12)),  # odd factors, three and five
        ((4, 6), (2, 3), (4, 6)),  # no resizing; by two
        ((4, 7), (2, 5), (8, 25)),  # columns by no whole number
        ((8, 6), (4, 9), (4, 5)),  # rows that shrink: the plain form
        ((3, 4), (2, 3), (7, 8)),  # rows by no whole number: the plain form
    ],
)
def test_equals_the_plain_form(logits_size, aux_size, size):
    args = _draw(logits_size, aux_size, size)
    _assert_same(_value_and_gradient("tpu")(*args), _value_and_gradient("cpu")(*args))


def test_survives_logits_far_apart():
    # The maximum over the four corners would leave no exponential above zero between them.
    logits = jnp.zeros((B, 2, 2, C)).at[:, :, 0, 0].set(1e4).at[:, :, 1, 1].set(1e4)
    args = logits, logits, *_draw((2, 2), (2, 2), (8, 8))[2:]
    got = _value_and_gradient("tpu")(*args)
    assert np.isfinite(got[0][0])
    _assert_same(got, _value_and_gradient("cpu")(*args))


def test_split_rows_compute_the_same_with_no_more_collectives():
    mesh = jax.make_mesh((2, 2), ("data", "spatial"), devices=jax.devices()[:4])
    rows = NamedSharding(mesh, PartitionSpec("data", "spatial"))
    layouts = rows, rows, rows, NamedSharding(mesh, PartitionSpec("data"))
    args = _draw((8, 4), (4, 3), (16, 12))
    expected = _value_and_gradient("cpu")(*args)
    counts = {}
    for platform in ("cpu_mesh", "tpu"):
        compiled = _value_and_gradient(platform, in_shardings=layouts).lower(*args).compile()
        _assert_same(compiled(*jax.device_put(args, layouts)), expected)
        found = read_collectives(compiled.as_text())
        counts[platform] = {kind: count for kind, (count, _) in found.items()}
    assert counts["tpu"].keys() == {"all-reduce", "collective-permute"}
    assert all(counts["tpu"][kind] <= counts["cpu_mesh"][kind] for kind in counts["tpu"]), counts
