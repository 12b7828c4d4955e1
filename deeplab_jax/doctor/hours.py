"""A guess of a training's hours on this machine, from arithmetic alone: nothing is compiled."""

from typing import NamedTuple

from deeplab_jax.utils import machine

# Multiply-adds of one pixel, forward, of `config.get_config("folder", depth, 16)`; `dry_run.flops`
# counts them.
MACS_PER_PIXEL = {18: 72_464, 34: 123_152, 50: 245_640, 101: 319_624}
_PASSES = 3  # forward, gradients of inputs, gradients of kernels


class Machine(NamedTuple):
    """What a training would run on."""

    has_accelerator: bool  # a GPU or TPU
    cores: int
    product_speed: float  # FLOP/s of a matrix product on the processor; 0 with an accelerator


def this_machine() -> Machine:
    """Looks for an accelerator without JAX; times the processor if there is none."""
    if machine.has_accelerator():
        return Machine(True, machine.num_cores(), 0.0)
    return Machine(False, machine.num_cores(), machine.product_speed())


def step_seconds(here: Machine, depth: int, crop: tuple[int, ...], batch: int) -> float:
    """Returns the longer end of the guess of a training step's seconds on the processor."""
    flops = 2 * _PASSES * MACS_PER_PIXEL[depth] * crop[0] * crop[1] * batch
    return flops / (machine.STEP_SHARE[0] * here.product_speed)


def in_words(here: Machine, seconds: float) -> str:
    """Returns a guess for a run whose longer end is `seconds`."""
    least, most = machine.STEP_SHARE
    return f"{machine.describe(seconds * least / most, seconds)} on {here.cores} cores, a guess"
