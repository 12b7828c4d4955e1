"""Steps that are not finite or whose loss is a spike, batches left out, and what can be saved."""

import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from deeplab_jax.config import Config, TrainConfig
from deeplab_jax.data import Dataset
from deeplab_jax.distributed import hosts
from deeplab_jax.errors import DataError, Interrupted, NumericError, ReaderError, ResourceError
from deeplab_jax.training.state import State, not_finite


class Saved(NamedTuple):
    """What a run goes back to: a saved step (None: its start) and what the loop knew then."""

    step: int | None
    loss: float | None  # smoothed
    losses: tuple[float, ...]


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


class Words(NamedTuple):
    """What is wrong with a step: the numbers at fault, the fault, and the remedy."""

    reason: str
    what: str
    fix: str


def describe(
    state: State,
    left_out: LeftOut,
    config: Config,
    start: int,
    step: int,
    values: Mapping[str, float],
) -> Words:
    """Returns what is wrong with a step that is not finite.

    Args:
      state: after that step, or the next.
      left_out: the steps left out until now.
      config: the run's configuration.
      start: the step that was restored last, or 0.
      step: the step's number.
      values: its metrics.
    """
    first = first_not_finite(state, step)
    reason = f"loss {values['loss']}, gradient norm {values['grad_norm']}"
    what = f"step {step} is not finite: {reason}, {first}; lr {values['lr']:.3g}"
    fix = "lower config.train.lr or look at these images"
    if config.train.on_nonfinite == "stop":
        fix += "; --config.train.on_nonfinite=rollback leaves such batches out"
    if start and set(range(start + 1, step)) <= set(left_out.steps):
        what += f"; it follows the restored step {start}, whose checkpoint may be damaged"
        fix += "; or go back behind that step: --step N, of `deeplab checkpoint ls`"
    return Words(reason, what, fix)


def images(dataset: Dataset, index: np.ndarray) -> str:
    """Returns the images of a step in words; every host calls this with its rows."""
    told = hosts.all_gather([dataset.ids[i] for i in index])
    return f"images {', '.join(list(dict.fromkeys(i for own in told for i in own))[:8])}"


def first_not_finite(state: State, step: int) -> str:
    """Returns the first array that is not finite, in words; `step` is the one at fault."""
    paths = not_finite(state)
    later = ", a step later" if int(state["step"]) > step else ""
    return f"first array {paths[0]} (of {len(paths)}{later})" if paths else "no array by itself"


def can_save(reason: Exception | None) -> bool:
    """Tells whether the state is whole, and all hosts take part in saving it."""
    if reason is None or isinstance(reason, Interrupted | DataError | ReaderError):
        return True  # hosts have agreed on these
    lost = NumericError | ResourceError | jax.errors.JaxRuntimeError
    return not hosts.are_multiple() and not isinstance(reason, lost)
