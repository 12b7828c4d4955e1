"""A guess of a training's hours on this machine, from arithmetic alone: nothing is compiled."""

import shlex
from collections.abc import Sequence
from typing import NamedTuple

from deeplab_jax.config import Config
from deeplab_jax.utils import machine

# Multiply-adds of one pixel, forward, of `config.get_config("folder", depth, 16)`; `dry_run.flops`
# counts them.
MACS_PER_PIXEL = {18: 72_464, 34: 123_152, 50: 245_640, 101: 319_624}
_WIDTH = 64  # of the stem, in these networks
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


def of_recipe(here: Machine, config: Config, images: int, words: Sequence[str]) -> str:
    """Returns a line about the hours of a recipe's training: a guess, or the command that tells.

    `words` name the recipe on the command line, with its overrides.
    A guess is there on a processor alone, for the networks of `MACS_PER_PIXEL`.
    """
    model, train = config.model, config.train
    steps = train.steps or train.epochs * (images // train.batch_size)
    command = shlex.join(["deeplab", "train", "--config", *words, "--dry-run"])
    length = f"training {steps:,} steps of {train.batch_size} images"
    if here.has_accelerator or (model.output_stride, model.width) != (16, _WIDTH) or not steps:
        return f"{length}; hours here: {command}"
    seconds = steps * step_seconds(here, model.depth, config.data.crop_size, train.batch_size)
    return f"{length}: {in_words(here, seconds)}, without evaluations; measured: {command}"
