"""Parity of training with the PyTorch reference: five steps on one batch, dropout off."""

import jax
import numpy as np
import pytest

_RUNS = ["r50_d16_c21", "r50_d8_c21"]


@pytest.fixture(scope="module", params=_RUNS)
def float64_run(measure, request):
    with jax.enable_x64(True):
        return measure.training(request.param, "float64")


@pytest.fixture(scope="module", params=_RUNS)
def float32_run(measure, request):
    with jax.default_matmul_precision("highest"):
        return measure.training(request.param, "float32")


def _errors(pair):
    """Returns, for each row, the largest difference relative to the row's largest value."""
    got, expected = (np.asarray(value).reshape(len(value), -1) for value in pair)
    return np.abs(got - expected).max(1) / np.abs(expected).max(1)


@pytest.mark.parametrize(
    "quantity",
    ["loss_main", "loss_aux", "loss", "grad/l2", "grad/value", "bn_after_1/value", "bn_after_5/l2"]
    + [f"delta_after_{step}/{what}" for step in (1, 5) for what in ("l2", "value")],
)
def test_training_equals_pytorchs_in_float64(float64_run, quantity):
    assert _errors(float64_run[quantity]).max() < 1e-6


def test_norm_rates_and_logits_equal_pytorchs_in_float64(float64_run):
    norm, expected = float64_run["grad_norm"]
    assert norm == pytest.approx(expected, rel=1e-6)
    assert _errors(float64_run["lr"]).max() < 1e-12
    logits, expected = float64_run["eval_after_5/logits"]
    assert np.abs(logits - expected).max() < 1e-6 * np.abs(expected).max()


# In float32 rounding is amplified from step to step, by PyTorch as by us.


@pytest.mark.parametrize("quantity", ["loss_main", "loss_aux", "loss"])
def test_losses_stay_within_the_golden_tolerances_in_float32(float32_run, quantity):
    assert (_errors(float32_run[quantity]) < (1e-5, 5e-5, 5e-4, 2e-3, 2e-3)).all()


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


def test_logits_stay_close_to_pytorchs_in_float32(float32_run):
    logits, expected = float32_run["eval_after_5/logits"]
    assert np.abs(logits - expected).max() < 0.1 * np.abs(expected).max()
