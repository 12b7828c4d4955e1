from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from deeplab_jax.dry_run import hours
from deeplab_jax.dry_run.hardware import parse_hardware, peak_of_device, peak_speed


def test_a_guess_on_known_hardware_says_its_basis(narrow_config):
    config = narrow_config("model.dtype=bfloat16")
    time = hours.guess(989e12, config, parse_hardware("h200"))
    assert (time.low, time.high) == pytest.approx((5, 20))
    assert time.basis == "a guess: 5 % to 20 % of the peak, 989 TFLOP/s a device in bfloat16"
    assert hours.guess(989e12, config, parse_hardware("h200:4")).low == pytest.approx(5 / 4)


def test_full_products_on_a_tpu_take_six_passes():
    hardware = parse_hardware("v5e:2x4")
    assert peak_speed(hardware, "bfloat16") == 6 * peak_speed(hardware, "float32")
    assert peak_speed(hardware, "float64") is None


@pytest.mark.parametrize(
    ("kind", "name"),
    [("NVIDIA H200", "h200"), ("NVIDIA H100 80GB HBM3", "h100"), ("TPU v4", "v4:2x2x1"),
     ("TPU v5 lite", "v5e:1x1"), ("TPU v5p", "v5p:2x2x1"), ("TPU v6 lite", "v6e:1x1")],
)  # fmt: skip
def test_peak_is_known_by_the_name_that_jax_gives_a_device(kind, name):
    peak = peak_of_device(kind, "bfloat16")
    assert peak
    assert peak == peak_speed(parse_hardware(name), "bfloat16")
    assert peak_of_device("NVIDIA H100 PCIe", "bfloat16") is None
    assert peak_of_device("cpu", "float32") is None


def test_a_guess_on_a_processor_comes_from_its_own_speed(narrow_config):
    time = hours.guess(1e9, narrow_config(), parse_hardware("cpu:1"))
    assert 0 < time.low < time.high
    assert time.basis.startswith("a guess: ")
    assert "of a matrix product's speed here" in time.basis


@pytest.mark.parametrize(
    ("longest", "basis"), [(60.0, "the median of 3"), (0.0, "once")], ids=["short", "long"]
)
def test_a_step_is_measured_a_few_times_unless_it_is_long(monkeypatch, longest, basis):
    class Step(SimpleNamespace):
        def __call__(self, state, *batch):
            self.calls += 1
            return state, state

    step = Step(input_shardings=[None], calls=0)
    zero = jax.ShapeDtypeStruct((1,), jnp.float32)
    monkeypatch.setattr(hours, "abstract_arguments", lambda config: (zero,) * 4)
    monkeypatch.setattr(hours, "MAX_SECONDS", longest)
    got = hours.measure(step, None)
    assert got.basis == f"measured here, {basis}"
    assert step.calls == (4 if longest else 1)
