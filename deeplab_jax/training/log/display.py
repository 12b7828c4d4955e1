"""Where a run is, in one line on the screen."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax

from deeplab_jax.training.log.lines import Log
from deeplab_jax.utils.progress import PLAIN_SECONDS, Screen, View, duration

SMOOTHING = 0.9  # weight of the past, per step, in the smoothed loss and time of a step
_GIB = 2**30


def smooth(past: float | None, value: float) -> float:
    """Returns the smoothed value after one more step; `past` is None before the first."""
    return value if past is None else SMOOTHING * past + (1 - SMOOTHING) * value


class Speed:
    """Rate of training, share of time spent waiting for data, and time left.

    Rate and share are means since the last `pause`, or since the start. The first step of a
    process, which compiles, is not counted.

    Attributes:
      step_seconds: smoothed time of a step; None before the second.
    """

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self.step_seconds: float | None = None  # smoothed
        self._evaluations: list[float] = []  # seconds of each
        self.pause()

    def pause(self) -> None:
        """Starts new means, as after a line of the log or an evaluation."""
        self._start = self._last = time.perf_counter()
        self._waited, self._steps = 0.0, 0

    def waited(self, seconds: float) -> None:
        """Adds time spent waiting for a batch."""
        self._waited += seconds

    def finished_step(self) -> None:
        """Counts a finished step."""
        now = time.perf_counter()
        self.step_seconds = smooth(self.step_seconds, now - self._last)
        self._last, self._steps = now, self._steps + 1

    def read(self) -> dict[str, float]:
        """Returns "images_per_second" and "data_wait" (fraction); nothing without any step."""
        if not self._steps:
            return {}
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        return {
            "images_per_second": round(self._steps * self._batch_size / elapsed, 2),
            "data_wait": round(min(self._waited / elapsed, 1), 4),
        }

    def evaluated(self, seconds: float) -> None:
        """Counts a finished evaluation."""
        self._evaluations.append(seconds)

    def left(self, steps: int, evaluations: int) -> str | None:
        """Returns the time of the steps and evaluations left; None before the first step.

        Steps are taken at their recent rate, evaluations at their mean. Before the first evaluation
        of the process the text is such as "1:02:03 + evaluations".
        """
        if self.step_seconds is None:
            return None
        seconds = steps * self.step_seconds
        if not evaluations:
            return duration(seconds)
        if not self._evaluations:
            return f"{duration(seconds)} + evaluations"
        return duration(seconds + evaluations * statistics.mean(self._evaluations))


class Display:
    """Where a run is: one line, redrawn on a terminal, else printed now and then."""

    def __init__(
        self,
        total: int,
        steps_per_epoch: int,
        on_gone: Callable[[], None] | None = None,
        memory: Callable[[], int | None] = lambda: None,
    ):
        """Shows nothing yet.

        Args:
          total: optimiser steps of the run.
          steps_per_epoch: for the number of epochs.
          on_gone: called when the reader of the output has gone, as in `... | head`.
          memory: returns the most bytes that a device has held; None where it does not tell.
        """
        self._total, self._per_epoch, self._memory = total, steps_per_epoch, memory
        self._scores: list[float] = []
        self._over = ""
        self._latest: tuple[int, dict[str, float], str | None] | None = None
        self._screen = Screen(self._view, on_gone=on_gone)
        self._printed: float | None = None
        self.say = self._screen.say  # prints a line that stays

    @contextmanager
    def live(self) -> Iterator["Display"]:
        """Redraws the line while the block runs, if the output is a terminal."""
        with self._screen.open():
            yield self

    def evaluated(self, *scores: float, over: str = "") -> None:
        """Adds mean IoUs, fractions, of evaluations in their order; the last is `over_classes`."""
        self._scores += scores
        self._over = over

    def recall(self, log: Log) -> float | None:
        """Takes the scores of a continued run from its log; returns its last smoothed loss.

        Where the run stopped between two logged steps, the steps since the last line are missing in
        the smoothed loss, which then differs from an uninterrupted run's for some tens of steps.
        """
        scores = [score for _, score in log.eval.get("mean_iou", ())]
        self.evaluated(*scores, over=log.over_classes())
        losses = log.train.get("loss_smoothed")
        return losses[-1][1] if losses else None

    def step(
        self, step: int, values: dict[str, float], left: str | None = None, is_last: bool = False
    ) -> None:
        """Shows a finished step.

        Where the output is not a terminal, the first step of the process is printed, then one in
        ten seconds, and the last.

        Args:
          step: its number.
          values: as in the log; "images_per_second" and "data_wait" may be absent.
          left: time left, in words; None where unknown.
          is_last: whether it ends the run.
        """
        self._latest = step, values, left
        now = time.perf_counter()
        is_due = self._printed is None or is_last or now - self._printed >= PLAIN_SECONDS
        if is_due and not self._screen.is_live:
            self._printed = now
            self.say("  ".join(self._parts(*self._latest)))

    def _view(self) -> View:
        if self._latest is None:
            return View(["starting"])
        return View([*self._parts(*self._latest)], self._latest[0] / self._total)

    def _parts(self, step: int, values: dict[str, float], left: str | None) -> Iterator[str]:
        yield f"step {step}/{self._total}"
        yield f"epoch {step / self._per_epoch:.1f}"
        yield f"loss {values['loss']:.3f} (smoothed {values['loss_smoothed']:.3f})"
        yield f"lr {values['lr']:.1e}"
        if "images_per_second" in values:
            yield f"{values['images_per_second']:.1f} images/s"
            yield f"data wait {100 * values['data_wait']:.0f} %"
        if left is not None:
            yield f"left {left}"
        if self._scores:
            last, best = 100 * self._scores[-1], 100 * max(self._scores)
            yield f"mIoU last {last:.1f} best {best:.1f}{self._over}"
        memory = self._memory()
        if memory is not None:
            yield f"memory {memory / _GIB:.1f} GiB"


def peak_memory() -> int | None:
    """Returns the most bytes that one of this host's devices has held; None if none tells."""
    try:
        told = [device.memory_stats() or {} for device in jax.local_devices()]
    except Exception:  # would end the thread that draws the screen, not the run
        return None
    return max(statistics.get("peak_bytes_in_use", 0) for statistics in told) or None
