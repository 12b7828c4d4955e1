"""Parity of training with the PyTorch reference (five steps on one batch, dropout off), options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from deeplab_jax.distributed import mesh as mesh_lib
from deeplab_jax.dry_run.compiled import read_collectives
from deeplab_jax.models import build_model
from deeplab_jax.training.optimizer import build_optimizer
from deeplab_jax.training.state import init_state
from deeplab_jax.training.step import make_update

_RUNS = ["r50_d16_c21", "r50_d8_c21"]
_TWO_PROGRAMS = pytest.mark.parity("compiles the step twice; whole batches are in the first tier")
_FULL_SIZE = pytest.mark.parity("ResNet-50; a narrow network is in tests/golden/test_narrow.py")


@pytest.fixture(scope="module", params=_RUNS)
def float64_run(measure, request):
    with jax.enable_x64(True):
        return measure.training(request.param, "float64")


_SECOND = pytest.mark.slow("another network's step; float64 compares both")


@pytest.fixture(scope="module", params=[_RUNS[0], pytest.param(_RUNS[1], marks=_SECOND)])
def float32_run(measure, request):
    with jax.default_matmul_precision("highest"):
        return measure.training(request.param, "float32")


def _errors(pair):
    """Returns, for each row, the largest difference relative to the row's largest value."""
    got, expected = (np.asarray(value).reshape(len(value), -1) for value in pair)
    return np.abs(got - expected).max(1) / np.abs(expected).max(1)


@_FULL_SIZE
@pytest.mark.parametrize(
    "quantity",
    ["loss_main", "loss_aux", "loss", "grad/l2", "grad/value", "bn_after_1/value", "bn_after_5/l2"]
    + [f"delta_after_{step}/{what}" for step in (1, 5) for what in ("l2", "value")],
)
def test_training_equals_pytorchs_in_float64(float64_run, quantity):
    assert _errors(float64_run[quantity]).max() < 1e-6


@_FULL_SIZE
def test_norm_rates_and_logits_equal_pytorchs_in_float64(float64_run):
    norm, expected = float64_run["grad_norm"]
    assert norm == pytest.approx(expected, rel=1e-6)
    assert _errors(float64_run["lr"]).max() < 1e-12
    logits, expected = float64_run["eval_after_5/logits"]
    assert np.abs(logits - expected).max() < 1e-6 * np.abs(expected).max()


# In float32 rounding is amplified from step to step, by PyTorch as by us.


@_FULL_SIZE
@pytest.mark.parametrize("quantity", ["loss_main", "loss_aux", "loss"])
def test_losses_stay_within_the_golden_tolerances_in_float32(float32_run, quantity):
    assert (_errors(float32_run[quantity]) < (1e-5, 5e-5, 5e-4, 2e-3, 2e-3)).all()


@_FULL_SIZE
@pytest.mark.parametrize(
    ("quantity", "median", "worst"),
    [
        ("grad/l2", 2e-3, 5e-2),
        ("delta_after_1/l2", 2e-3, 5e-2),
        ("delta_after_5/l2", 2e-2, 2e-1),
        ("bn_after_1/value", 1e-4, 1e-4),
    ],
)
def test_changes_stay_within_the_golden_tolerances_in_float32(float32_run, quantity, median, worst):
    errors = _errors(float32_run[quantity])
    assert np.median(errors) < median
    assert errors.max() < worst


@_FULL_SIZE
def test_logits_stay_close_to_pytorchs_in_float32(float32_run):
    logits, expected = float32_run["eval_after_5/logits"]
    assert np.abs(logits - expected).max() < 0.1 * np.abs(expected).max()


# Accumulation and recomputation, on a narrow network in float64


PARTS = 2
IN_PARTS = f"train.gradient_accumulation={PARTS}"


@pytest.fixture
def narrow(narrow_config, compile_quickly):
    """Returns narrow(*changes) -> Config of a narrow network in float64, two groups of two."""
    fields = "model.dtype=float64", "model.dropout_rate=0", "train.batch_size=4"
    return functools.partial(narrow_config, *fields, "train.loss_groups=2")


def _batch():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, (4, 64, 64)).astype(np.int32)
    labels[0, :40] = 255  # groups and parts count differently
    return rng.standard_normal((4, 64, 64, 3)), labels


def _compile(c):
    model = build_model(c.model, "cpu")
    optimizer, _ = build_optimizer(c.train, 10)
    state = jax.jit(lambda: init_state(model, optimizer, 0))()
    # Statistics that are not those of a new network, so that frozen norms do something.
    state["batch_stats"] = jax.tree.map(lambda leaf: leaf + 0.5, state["batch_stats"])
    return state, jax.jit(make_update(model, c, 10)).lower(state, *_batch()).compile()


def _step(c):
    state, update = _compile(c)
    return update(state, *_batch())


def _assert_close(got, expected, rtol):
    """Leaf by leaf, relative to the leaf's norm."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True)
    for (path, leaf), other in pairs:
        leaf, other = (np.asarray(value, float) for value in (leaf, other))
        error = np.linalg.norm(leaf - other)
        assert error <= rtol * np.linalg.norm(other), jax.tree_util.keystr(path)


@_TWO_PROGRAMS
def test_parts_of_a_batch_equal_the_whole_where_norms_are_frozen(narrow):
    frozen = "model.freeze_batch_norm=true"
    with jax.enable_x64(True):
        whole, metrics = _step(narrow(frozen))
        parts, part_metrics = _step(narrow(frozen, IN_PARTS))
    _assert_close(parts["params"], whole["params"], 1e-14)
    _assert_close(parts["opt_state"], whole["opt_state"], 1e-11)  # its momentum is the gradient
    _assert_close(part_metrics, metrics, 1e-12)


@_TWO_PROGRAMS
def test_norms_see_one_part_after_the_other(narrow):
    c = narrow(IN_PARTS)
    with jax.enable_x64(True):
        state, _ = _compile(c)
        after, _ = _step(c)
        model = build_model(c.model, "cpu")
        variables = {name: state[name] for name in ("params", "batch_stats")}
        images, _ = _batch()
        for k in range(PARTS):
            _, updated = model.apply(
                variables, images[k::PARTS], is_train=True, mutable=["batch_stats"]
            )
            variables |= updated
    _assert_close(after["batch_stats"], variables["batch_stats"], 1e-12)


@pytest.mark.parity("compiles for two devices; whole batches on four are in test_mesh.py")
def test_parts_lie_on_every_device(narrow):
    c = narrow(IN_PARTS)
    with jax.enable_x64(True):
        mesh = mesh_lib.mesh_of(c, jax.devices()[:2])
        model = build_model(c.model, "cpu_mesh")
        optimizer, _ = build_optimizer(c.train, 10)
        state = jax.eval_shape(lambda: init_state(model, optimizer, 0))
        whole, rows = mesh_lib.replicated(mesh), mesh_lib.batch_sharding(mesh)
        update = jax.jit(make_update(model, c, 10), in_shardings=(whole, rows, rows))
        text = update.lower(state, *_batch()).compile().as_text()
    assert read_collectives(text).keys() == {"all-reduce"}


@_TWO_PROGRAMS
def test_recomputed_stages_keep_less_and_give_the_same(narrow):
    images, _ = _batch()

    def forward(c, params, batch_stats):
        model, variables = build_model(c.model), {"params": params}
        variables["batch_stats"] = batch_stats
        return model.apply(variables, images, is_train=True, mutable=["batch_stats"])[0]

    def kept(c, state):
        # What the backward pass needs. A CPU's compiler recomputes nothing, whatever it is told.
        vjp = jax.eval_shape(
            lambda params: jax.vjp(lambda p: forward(c, p, state["batch_stats"]), params)[1],
            state["params"],
        )
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(vjp))

    sizes = []
    with jax.enable_x64(True):
        state, update = _compile(narrow())
        expected, _ = update(state, *_batch())
        for stages in ("", "1", "1,2", "1,2,3,4"):
            c = narrow(f"model.remat={stages}")
            sizes.append(kept(c, state))
        _, update = _compile(c)
        got, _ = update(state, *_batch())
    _assert_close(got["params"], expected["params"], 1e-13)
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


def test_bfloat16_keeps_weights_statistics_and_loss_in_float32(narrow):
    c = narrow("model.dtype=bfloat16")
    model = build_model(c.model, "gpu")
    optimizer, _ = build_optimizer(c.train, 10)
    state = jax.eval_shape(lambda: init_state(model, optimizer, 0))
    images, labels = _batch()
    update = make_update(model, c, 10)
    jaxpr = jax.make_jaxpr(update)(state, images.astype(np.float32), labels)
    after, metrics = jax.eval_shape(update, state, images.astype(np.float32), labels)
    kinds = {leaf.dtype for leaf in jax.tree.leaves((after, metrics))}
    assert kinds == {np.dtype(name) for name in ("float32", "int32", "bool")}
    dtypes = {
        (equation.primitive.name, equation.invars[0].aval.dtype)
        for equation in _equations(jaxpr.jaxpr)
        if equation.invars
    }
    low, full = jnp.dtype("bfloat16"), jnp.dtype("float32")
    assert ("conv_general_dilated", low) in dtypes
    assert ("conv_general_dilated", full) not in dtypes
    for name in ("exp", "log", "rsqrt", "square", "reduce_sum"):  # softmax, variance, sums
        assert (name, low) not in dtypes, name


def _equations(jaxpr):
    """Yields all equations, of inner functions too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in core.jaxprs_in_params(equation.params):
            yield from _equations(inner)
