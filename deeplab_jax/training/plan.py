"""Length of a run, the steps of its evaluations and saves, and its batches."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from deeplab_jax.config import Config
from deeplab_jax.data import Dataset, TrainBatch, train_batches
from deeplab_jax.data.augment.functions import Function
from deeplab_jax.errors import ConfigError, DataError


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
      ConfigError: the run ends before its warm-up.
    """
    per_epoch = steps_per_epoch(config, num_samples)
    if per_epoch < 1:
        what = f"{num_samples} images do not fill one batch of {config.train.batch_size}"
        parts, groups = config.train.gradient_accumulation, config.train.loss_groups
        size = max(num_samples // (unit := math.lcm(parts, groups)) * unit, 2 * parts)
        fix = f"lower it: --config.train.batch_size={size}, or add images"
        raise DataError(str(config.data.root), what, fix)
    total = total_steps(config, num_samples)
    if config.train.warmup_steps >= total:
        what = f"must be below the run's {total} steps, got {config.train.warmup_steps}"
        fix = f"lower it: --config.train.warmup_steps={total // 10}"
        raise ConfigError("config.train.warmup_steps", what, fix)
    save_every = config.checkpoint.every_steps or per_epoch
    return Plan(total, per_epoch, save_every, config.eval.every_epochs * per_epoch)


def read_batches(
    config: Config,
    dataset: Dataset,
    plan: Plan,
    steps: range,
    rows: Sequence[int],
    num_workers: int,
    transform: Function | None = None,
) -> Iterator[TrainBatch]:
    """Yields the batches of a run's steps, reduced to some of their rows.

    `transform` is a caller's own; see `train_batches`.
    """
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
        names=data.transforms,
        transform=transform,
    )
