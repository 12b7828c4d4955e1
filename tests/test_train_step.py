"""Parity of training with the PyTorch reference: five steps on one batch, dropout off."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert import keymap
from deeplab_jax.config import get_config
from deeplab_jax.models import build_model
from deeplab_jax.optimizer import build_optimizer
from deeplab_jax.train_state import eval_variables, start_state
from deeplab_jax.train_step import make_update


class _Golden:
    """Our run of a golden training: five steps, and what the reference recorded."""

    def __init__(self, golden, recipe, name, dtype, num_steps):
        self.recipe = recipe
        self.facts = json.loads((golden / f"train_{name}.json").read_text())
        self.arrays = np.load(golden / f"train_{name}.npz")
        self.config = get_config("voc", 50, 8 if "_d8_" in name else 16)
        self.config.train.reference_processes = 1
        self.config.model.dtype = dtype
        model = build_model(self.config.model, "cpu")
        weights = recipe.weights(golden / f"manifest_{name}.json")
        variables, _ = keymap.to_variables(weights, 50)
        variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), variables)
        optimizer, _ = build_optimizer(self.config.train, 10)
        state = start_state(variables, optimizer)
        update = jax.jit(make_update(model, self.config, 10, use_dropout=False))
        batch, _, height, width = self.facts["input_shape"]
        images = recipe.image(self.facts["name"], self.facts["input_shape"])
        labels = recipe.labels(self.facts["name"], (batch, height, width), 21)
        labels = np.where(labels == recipe.IGNORE, 255, labels).astype(np.int32)
        images = images.transpose(0, 2, 3, 1).astype(dtype)
        self.before = self._tensors(state)
        self.metrics, self.after = [], {}
        for step in range(1, num_steps + 1):
            state, metrics = update(state, images, labels)
            self.metrics.append(jax.device_get(metrics))
            self.after[step] = self._tensors(state)
        self.logits = jax.jit(model.apply)(eval_variables(state), images).logits

    def _tensors(self, state):
        return keymap.to_tensors(jax.device_get(eval_variables(state)), {}, 50)

    def changes(self, step):
        """Yields (key, our change since the start, the reference's record of it)."""
        for key, record in self.facts[f"delta_after_{step}"].items():
            yield key, self.after[step][key] - self.before[key], record

    def sample(self, value):
        return value.ravel()[self.recipe.sample_index(value.size)]


def _relative(got, expected):
    """Largest difference relative to the largest expected value."""
    return np.abs(got - expected).max() / np.abs(expected).max()


@pytest.fixture(scope="module")
def float64_run(golden, recipe):
    with jax.enable_x64(True):
        return _Golden(golden, recipe, "r50_d16_c21", "float64", num_steps=5)


def test_first_step_losses_equal_pytorchs(float64_run):
    facts, metrics = float64_run.facts, float64_run.metrics[0]
    assert metrics["loss_main"] == pytest.approx(facts["loss_cls"][0], rel=1e-6)
    assert metrics["loss_aux"] == pytest.approx(facts["loss_aux"][0], rel=1e-6)
    assert metrics["loss"] == pytest.approx(facts["loss_total"][0], rel=1e-6)
    assert metrics["lr"] == facts["lr"][0]
    assert metrics["is_finite"]


def test_first_step_gradients_equal_pytorchs(float64_run):
    facts, lr = float64_run.facts, float64_run.facts["lr"][0]
    total = float64_run.metrics[0]["grad_norm"]
    assert total == pytest.approx(facts["grad_l2_total"], rel=1e-6)
    for key, change, _ in float64_run.changes(1):
        gradient = -change / lr - 5e-4 * float64_run.before[key]
        record = facts["grad"][key]
        norm = np.linalg.norm(gradient)
        # The norm's rounding: subtracting the decay loses digits where it is most of the update.
        assert norm == pytest.approx(record["l2"], rel=1e-6, abs=1e-9), key
        got = gradient.ravel()[record["index"]]
        np.testing.assert_allclose(got, record["value"], rtol=1e-6, atol=1e-6 * norm, err_msg=key)


@pytest.mark.parametrize("step", [1, 5])
def test_weight_changes_equal_pytorchs(float64_run, step):
    for key, change, record in float64_run.changes(step):
        assert np.linalg.norm(change) == pytest.approx(record["l2"], rel=1e-6), key
        assert _relative(float64_run.sample(change), np.array(record["value"])) < 1e-6, key


def test_batch_norm_statistics_equal_pytorchs(float64_run):
    for name in float64_run.arrays.files:
        prefix, _, key = name.partition("/")
        if prefix == "bn1" and not key.endswith("num_batches_tracked"):
            assert _relative(float64_run.after[1][key], float64_run.arrays[name]) < 1e-6, key
    for key, l2 in float64_run.facts["bn_after_5_l2"].items():
        assert np.linalg.norm(float64_run.after[5][key]) == pytest.approx(l2, rel=1e-6), key


def test_later_losses_rates_and_logits_equal_pytorchs(float64_run):
    facts = float64_run.facts
    for step, metrics in enumerate(float64_run.metrics):
        assert metrics["loss"] == pytest.approx(facts["loss_total"][step], rel=1e-6)
        assert metrics["lr"] == pytest.approx(facts["lr"][step], rel=1e-12)
    expected = float64_run.arrays["eval_after_5/logits"].transpose(0, 2, 3, 1)
    assert _relative(np.asarray(float64_run.logits), expected) < 1e-6


@pytest.mark.slow
def test_float32_training_stays_within_the_golden_tolerances(golden, recipe):
    with jax.default_matmul_precision("highest"):
        run = _Golden(golden, recipe, "r50_d16_c21", "float32", num_steps=5)
    for step, tolerance in enumerate((1e-5, 5e-5, 5e-4, 2e-3, 2e-3)):
        expected = run.facts["loss_total"][step]
        assert run.metrics[step]["loss"] == pytest.approx(expected, rel=tolerance)
    for step, median, worst in ((1, 2e-3, 5e-2), (5, 2e-2, 2e-1)):
        errors = [abs(np.linalg.norm(d) / r["l2"] - 1) for _, d, r in run.changes(step)]
        assert np.median(errors) < median
        assert max(errors) < worst


@pytest.mark.slow
def test_output_stride_8_trains_as_pytorchs(golden, recipe):
    with jax.enable_x64(True):
        run = _Golden(golden, recipe, "r50_d8_c21", "float64", num_steps=5)
    for step in (1, 5):
        for key, change, record in run.changes(step):
            assert np.linalg.norm(change) == pytest.approx(record["l2"], rel=1e-6), key
    for step, metrics in enumerate(run.metrics):
        assert metrics["loss"] == pytest.approx(run.facts["loss_total"][step], rel=1e-6)
