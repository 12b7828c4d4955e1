"""Padded images give the logits of an exact-size run; so do norms that are part of kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.models import ComputePolicy, DeepLabV3Plus, fold_batch_norm

PADDED = (96, 128)
SIZES = [(65, 97), (1, 50), (33, 1), (96, 127), (17, 64), (96, 128)]  # height, width
_OTHERS = pytest.mark.parity("three networks more; one is in the first tier")


def small(dtype, depth=18, output_stride=16, stem="deep"):
    """Returns a narrow network and variables whose logits neither vanish nor blow up."""
    model = DeepLabV3Plus(
        num_classes=5,
        depth=depth,
        output_stride=output_stride,
        atrous_rates=(1, 2, 9),
        policy=ComputePolicy(jnp.dtype(dtype)),
        width=8,
        stem=stem,
        head_channels=8,
        low_level_channels=4,
        aux_channels=8,
    )
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if leaf.ndim == 4:
            return rng.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape)
        return 0.3 * rng.normal(size=leaf.shape)  # biases leak where nothing masks them

    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    return model, jax.tree.map(lambda x: jnp.asarray(x, dtype), variables)


def relative(got, expected):
    return float(np.abs(got - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(
    ("dtype", "depth", "output_stride", "stem", "rows"),
    [  # each exact size is compiled, so every case has sizes of its own
        ("float64", 18, 8, "7x7", (0, 1)),
        pytest.param("float64", 50, 16, "deep", (0, 3), marks=_OTHERS),
        pytest.param("float32", 50, 8, "deep", (2,), marks=_OTHERS),
        pytest.param("float32", 18, 16, "7x7", (4, 5), marks=_OTHERS),
    ],
)
def test_padded_images_give_the_logits_of_their_own_size(dtype, depth, output_stride, stem, rows):
    with jax.enable_x64(dtype == "float64"):
        model, variables = small(dtype, depth, output_stride, stem)
        exact = jax.jit(lambda x: model.apply(variables, x).logits)
        masked = jax.jit(
            lambda x, valid_size: model.apply(variables, x, valid_size=valid_size).logits
        )
        rng = np.random.default_rng(1)
        images = [rng.normal(size=(*size, 3)).astype(dtype) for size in SIZES]
        batch = np.full((len(SIZES), *PADDED, 3), 7, dtype)  # padding that must not matter
        for row, image in enumerate(images):
            batch[row, : image.shape[0], : image.shape[1]] = image
        logits = np.asarray(masked(batch, np.array(SIZES, np.int32)))
        assert masked._cache_size() == 1
        for row in rows:
            expected = np.asarray(exact(images[row][None]))[0]
            got = logits[row, : expected.shape[0], : expected.shape[1]]
            assert np.ptp(expected) > 0.1
            assert relative(got, expected) < (1e-10 if dtype == "float64" else 1e-5)


@pytest.mark.parity("a second network; the engine's tests compare folded with plain networks")
def test_folded_norms_change_no_logits():
    model, variables = small("float32", depth=50)
    policy = model.policy._replace(is_folded=True)
    image = np.random.default_rng(2).normal(size=(1, 65, 97, 3)).astype(np.float32)
    expected = jax.jit(model.apply)(variables, image)
    folded = fold_batch_norm(variables)
    got = jax.jit(model.clone(policy=policy).apply)(folded, image)
    for ours, theirs in zip(got, expected, strict=True):
        assert relative(np.asarray(ours), np.asarray(theirs)) < 1e-5
    norm = folded["params"]["backbone"]["stem"]["conv1"]["norm"]
    assert list(norm) == ["bias"]
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(folded))
