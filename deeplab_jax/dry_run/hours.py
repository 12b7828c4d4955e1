"""Time of a training step: measured on this machine's devices, else a guess that says so."""

import statistics
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.stages import Compiled

from deeplab_jax.config import Config
from deeplab_jax.dry_run.compiled import abstract_arguments
from deeplab_jax.dry_run.hardware import Hardware, peak_speed
from deeplab_jax.utils import compile_cache, machine

MAX_SECONDS = 60.0  # of a step that is measured
_REPEATS = 3
# Share of an accelerator's peak that a step may reach, low and high. Not measured: the TPU
# compiler's own cycles for v5e (docs/hardware.md) amount to 9 % (R-50-D16) to 18 % (R-101-D8).
_PEAK_SHARE = (0.05, 0.2)


@dataclass(frozen=True)
class StepTime:
    """Seconds of a training step, without reading samples; both ends are equal if measured."""

    low: float
    high: float
    basis: str  # how it is known


def guess(flops: float, config: Config, hardware: Hardware) -> StepTime | None:
    """Returns a guess of the time of a step of so many operations; None without a known peak."""
    if hardware.kind == "cpu":
        speed, (least, most) = machine.product_speed(), machine.STEP_SHARE
        basis = f"a guess: {least:.0%} to {most:.0%} of a matrix product's speed here"
        basis += f", {speed / 1e9:.0f} GFLOP/s"
    elif peak := peak_speed(hardware, config.model.dtype):
        speed, (least, most) = peak * hardware.num_devices, _PEAK_SHARE
        basis = f"a guess: {least:.0%} to {most:.0%} of the peak"
        basis += f", {peak / 1e12:.0f} TFLOP/s a device in {config.model.dtype}"
    else:
        return None
    return StepTime(flops / (most * speed), flops / (least * speed), basis.replace("%", " %"))


def measure(step: Compiled, config: Config) -> StepTime:
    """Runs a compiled step on zeros and returns its time, the median of a few.

    Ends after the first step that takes longer than `MAX_SECONDS`.

    Raises:
      JaxRuntimeError: RESOURCE_EXHAUSTED; the devices do not hold the step beside what they hold.
    """
    sharding = step.input_shardings[0]
    zeros = jax.jit(
        lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract_arguments(config)),
        out_shardings=sharding,
    )
    with compile_cache.without_alarms():
        state, *batch = zeros()
    seconds = []
    for _ in range(1 + _REPEATS):  # the first one warms up
        began = time.perf_counter()
        state, metrics = step(state, *batch)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - began)
        if seconds[-1] > MAX_SECONDS:
            break
    timed = seconds[1:] or seconds
    median = statistics.median(timed)
    how = "once" if len(timed) == 1 else f"the median of {len(timed)}"
    return StepTime(median, median, f"measured here, {how}")
