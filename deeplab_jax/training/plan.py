"""Length of a run, the steps of its evaluations and saves, its batches, and those it leaves out."""

import math
import statistics
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from deeplab_jax.config import Config, TrainConfig
from deeplab_jax.data import Dataset, TrainBatch, train_batches
from deeplab_jax.errors import DataError


@dataclass(frozen=True)
class Plan:
    """Length of a run, and steps between its saves and evaluations, in optimiser steps."""

    total: int
    steps_per_epoch: int
    save_every: int
    eval_every: int

    def is_eval_due(self, step: int) -> bool:
        """Tells whether to evaluate after `step` steps."""
        return step % self.eval_every == 0 or step == self.total

    def evaluations_from(self, step: int) -> int:
        """Returns the number of evaluations after step number `step` and later ones."""
        return -(-self.total // self.eval_every) - (step - 1) // self.eval_every

    def is_save_due(self, step: int) -> bool:
        """Tells whether to save after `step` steps; always after evaluated ones, for the best."""
        return step % self.save_every == 0 or self.is_eval_due(step)


def steps_per_epoch(config: Config, num_samples: int) -> int:
    """Returns floor(ceil(N / P) / (B / P)), P the loss groups (spec section 5)."""
    groups = config.train.loss_groups
    return -(-num_samples // groups) // (config.train.batch_size // groups)


def total_steps(config: Config, num_samples: int) -> int:
    """Returns the number of optimiser steps of the whole run, T of the schedule."""
    return config.train.steps or config.train.epochs * steps_per_epoch(config, num_samples)


def make_plan(config: Config, num_samples: int) -> Plan:
    """Returns the plan of a run over `num_samples` training images.

    Raises:
      DataError: the images do not fill one batch.
    """
    per_epoch = steps_per_epoch(config, num_samples)
    if per_epoch < 1:
        what = f"{num_samples} images do not fill one batch of {config.train.batch_size}"
        parts, groups = config.train.gradient_accumulation, config.train.loss_groups
        size = max(num_samples // (unit := math.lcm(parts, groups)) * unit, 2 * parts)
        fix = f"lower it: --config.train.batch_size={size}, or add images"
        raise DataError(str(config.data.root), what, fix)
    total = total_steps(config, num_samples)
    save_every = config.checkpoint.every_steps or per_epoch
    return Plan(total, per_epoch, save_every, config.eval.every_epochs * per_epoch)


def read_batches(
    config: Config,
    dataset: Dataset,
    plan: Plan,
    steps: range,
    rows: Sequence[int],
    num_workers: int,
) -> Iterator[TrainBatch]:
    """Yields the batches of a run's steps, reduced to some of their rows."""
    data = config.data
    return train_batches(
        dataset,
        seed=config.seed,
        batch_size=config.train.batch_size,
        steps_per_epoch=plan.steps_per_epoch,
        start=steps.start,
        stop=steps.stop,
        rows=rows,
        crop_size=data.crop_size,
        resize_base=data.resize_base,
        scale_range=data.scale_range,
        num_workers=num_workers,
    )


class LeftOut:
    """The steps whose batch is left out, and the losses by which a spike is told.

    Both are saved with every step, so that a continued run decides the same.

    Attributes:
      steps: numbers of those steps, in the order they were found.
      losses: the last `SPAN` losses, oldest first; none where spikes are not looked for.
    """

    SPAN, FEWEST = 100, 5  # losses that a median is of

    def __init__(self, train: TrainConfig, steps: Sequence[int], losses: Sequence[float]):
        self._train = train
        self.steps = tuple(steps)
        self.losses = deque(losses if train.spike_factor else (), self.SPAN)

    @property
    def may_grow(self) -> bool:
        """Whether another batch may be left out."""
        is_allowed = self._train.on_nonfinite == "rollback"
        return is_allowed and len(self.steps) < self._train.max_rollbacks

    def usual_loss(self, loss: float) -> float | None:
        """Returns the median of the losses before where `loss` is a spike, else None.

        With fewer than `FEWEST` losses nothing is a spike.
        """
        if not self._train.spike_factor or len(self.losses) < self.FEWEST:
            return None
        median = statistics.median(self.losses)
        return median if loss > self._train.spike_factor * median else None

    def finished_step(self, loss: float) -> None:
        """Takes the loss of a step, if spikes are looked for."""
        if self._train.spike_factor:
            self.losses.append(loss)
