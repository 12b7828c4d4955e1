"""Each term against PyTorch in float64, by another way: boolean indexing, loops over groups."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.config import LossConfig
from deeplab_jax.training.losses import row_weights
from deeplab_jax.training.losses.build import head_loss
from deeplab_jax.training.losses.terms import focal, hard_pixels

torch = pytest.importorskip("torch")
F = torch.nn.functional

GROUPS = 2
WEIGHTS = (0.5, 3.0, 0.0, 1.25)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def drawn(classes, case="usual"):
    """Returns logits (4, 5, 7, C) and labels; each group holds other classes."""
    rng = np.random.default_rng(classes)
    logits = 2 * rng.standard_normal((4, 5, 7, classes))
    labels = rng.integers(0, classes, (4, 5, 7))
    labels[:2][labels[:2] == 1] = 0  # class 1 is absent in the first group
    labels[rng.random(labels.shape) < 0.3] = 255
    if case == "empty group":
        labels[:2] = 255
    if case == "one class":
        labels[labels != 255] = classes - 1
    if case == "one pixel":
        labels[:], labels[3, 2, 2] = 255, 1
    return logits, labels


def by_torch(logits, labels, recipe):
    """Returns (value, gradient) of the terms of a recipe."""
    x = torch.tensor(logits, requires_grad=True)
    of_groups = zip(x.chunk(GROUPS), torch.tensor(labels).chunk(GROUPS), strict=True)
    total = sum(of_group(*group, recipe) for group in of_groups) / GROUPS + 0 * x.sum()
    total.backward()
    return total.item(), x.grad.numpy()


def of_group(x, labels, recipe):
    count, valid = x.shape[-1], labels != 255
    images, x, y = len(x), x[valid], labels[valid]  # (n, C), (n,)
    w = torch.tensor(recipe.class_weights or (1,) * count, dtype=x.dtype)
    p, total = x.softmax(-1), torch.zeros((), dtype=x.dtype)
    if not len(y):
        return total
    own = p[torch.arange(len(y)), y]
    if recipe.cross_entropy:
        kept = torch.ones_like(valid[valid])
        if recipe.ohem_threshold:
            rank = min(recipe.ohem_min_kept * images, len(y) - 1)
            limit = max(recipe.ohem_threshold, own.sort()[0][rank].item())
            kept = own < (limit if recipe.ohem_min_kept else recipe.ohem_threshold)
        if kept.any() and w[y[kept]].sum():
            ce = F.cross_entropy(x[kept], y[kept], w, label_smoothing=recipe.label_smoothing)
            total = total + recipe.cross_entropy * ce
    if recipe.focal:
        each = w[y] * (1 - own) ** recipe.focal_gamma * -own.log()
        total = total + recipe.focal * each.sum() / w[y].sum()
    present = y.unique()
    for c in present if recipe.dice else ():
        g = (y == c).double()
        share = 2 * (p[:, c] * g).sum() / (p[:, c] + g).sum()
        total = total + recipe.dice * (1 - share) / len(present)
    for c in present if recipe.lovasz else ():
        total = total + recipe.lovasz * jaccard_extension(p[:, c], y == c) / len(present)
    return total


def jaccard_extension(p, is_class):
    """The Lovasz extension by its definition: sum of m times the loss's growth, pixel by pixel."""
    errors = torch.where(is_class, 1 - p, p)
    total, before, taken = 0, 0.0, torch.zeros_like(is_class)
    for i in errors.argsort(descending=True):
        taken[i] = True  # these are wrong, the others right
        left, union = (is_class & ~taken).sum(), (is_class | taken).sum()
        now = 1 - left.item() / union.item()
        total, before = total + errors[i] * (now - before), now
    return total


@partial(jax.jit, static_argnums=2)
def value_and_gradient(logits, labels, recipe):
    weights = row_weights(labels, GROUPS, class_weights=recipe.class_weights)
    return jax.value_and_grad(head_loss)(logits, labels, weights, recipe, GROUPS)


def ours(logits, labels, recipe, dtype=jnp.float64):
    arrays = jnp.asarray(logits, dtype), jnp.asarray(labels, jnp.int32)
    return jax.device_get(value_and_gradient(*arrays, recipe))


ALONE = {
    "class weights": {"class_weights": WEIGHTS, "label_smoothing": 0.2},
    "ohem": {"ohem_threshold": 0.3},
    "ohem, min kept": {"ohem_threshold": 0.01, "ohem_min_kept": 8, "class_weights": WEIGHTS},
    "ohem, more than there are": {"ohem_threshold": 1e-9, "ohem_min_kept": 100},
    "focal, gamma 1/2": {"cross_entropy": 0, "focal": 2, "focal_gamma": 0.5,
                         "class_weights": WEIGHTS},
    "dice": {"cross_entropy": 0.0, "dice": 1.0},
    "lovasz": {"cross_entropy": 0.0, "lovasz": 1.0},
    "all": {"cross_entropy": 0.5, "dice": 2, "focal": 1, "lovasz": 3, "focal_gamma": 1,
            "label_smoothing": 0.1, "class_weights": WEIGHTS, "ohem_threshold": 0.4,
            "ohem_min_kept": 5},
}  # fmt: skip


CASES = [(2, "usual"), (4, "empty group"), (4, "one class"), (2, "one pixel")]


@pytest.mark.parametrize(
    ("name", "classes", "case"),
    [(name, 4, "usual") for name in ALONE] + [("all", *c) for c in CASES],
)
def test_value_and_gradient_equal_pytorchs(name, classes, case):
    changes = dict(ALONE[name])
    if "class_weights" in changes:
        changes["class_weights"] = WEIGHTS[:classes]
    recipe = LossConfig(**changes)
    logits, labels = drawn(classes, case)
    value, gradient = ours(logits, labels, recipe)
    expected, slope = by_torch(logits, labels, recipe)
    np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(gradient, slope, rtol=1e-10, atol=1e-12)


def test_no_valid_pixel_is_zero_without_a_gradient():
    logits, labels = drawn(4)
    value, gradient = ours(logits, np.full_like(labels, 255), LossConfig(**ALONE["all"]))
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize("name", ["all", "focal, gamma 1/2"])
def test_large_logits_are_finite_in_float32(name):
    logits, labels = drawn(4)
    with jax.enable_x64(False):
        logits = 1e4 * np.sign(logits)
        value, gradient = ours(logits, labels, LossConfig(**ALONE[name]), jnp.float32)
    assert value.dtype == np.float32
    assert np.isfinite(value)
    assert value > 0
    assert np.isfinite(gradient).all()


def test_focal_has_a_gradient_where_the_prediction_is_certain():
    log_p = jax.nn.log_softmax(jnp.array([[0.0, 1000.0]]).reshape(1, 1, 1, 2))
    labels = jnp.ones((1, 1, 1), jnp.int32)
    slope = jax.grad(lambda x: jnp.sum(focal(x, labels, gamma=0.5)))(log_p)
    np.testing.assert_array_equal(slope, 0)


def test_hard_pixels_are_the_hardest_of_each_group():
    logits, labels = drawn(3)
    log_p = jax.nn.log_softmax(jnp.asarray(logits))
    labels = jnp.asarray(labels)
    kept = np.asarray(hard_pixels(log_p, labels, GROUPS, 1e-9, 6))
    own = np.take_along_axis(np.asarray(log_p), np.asarray(labels % 3)[..., None], -1)[..., 0]
    for half in (slice(0, 2), slice(2, 4)):
        valid = np.asarray(labels[half]) != 255
        assert kept[half].sum() == 12
        assert own[half][kept[half]].max() < own[half][valid & ~kept[half]].min()
