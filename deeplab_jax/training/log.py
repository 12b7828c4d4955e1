"""Output of a run under way: a JSON line per logged step, and a line on the screen."""

import io
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from deeplab_jax.evaluation.metrics import over_classes
from deeplab_jax.utils.atomic import atomic_write
from deeplab_jax.utils.places import is_address
from deeplab_jax.utils.progress import PLAIN_SECONDS, Screen, View, duration

SMOOTHING = 0.9  # weight of the past, per step, in the smoothed loss and time of a step
_GIB = 2**30


def smooth(past: float | None, value: float) -> float:
    """Returns the smoothed value after one more step; `past` is None before the first."""
    return value if past is None else SMOOTHING * past + (1 - SMOOTHING) * value


class Log(NamedTuple):
    """Curves of a run: (step, value) by quantity, from training steps and from evaluations."""

    train: dict[str, list[tuple[float, float]]]
    eval: dict[str, list[tuple[float, float]]]

    def over_classes(self) -> str:
        """Returns "" where the last evaluation's mean is over all classes, else how many it is."""
        counts = (self.eval.get(key) for key in ("num_classes_in_mean", "num_classes"))
        count, total = (values[-1][1] if values else 0.0 for values in counts)
        return over_classes(count, total)


def read_log(path: Path) -> Log:
    """Returns the finite numbers of a run's `log.jsonl`.

    Lines that cannot be read are left out; a missing file is an empty log.
    """
    log = Log({}, {})
    events = log._asdict()
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
            event, step = events[entry["event"]], float(entry["step"])
        except (ValueError, KeyError, TypeError):
            continue  # such as a line that a kill cut short
        for key, value in entry.items():
            if isinstance(value, int | float) and key != "step" and math.isfinite(value):
                event.setdefault(key, []).append((step, float(value)))
    return log


class JsonLog:
    """A file of JSON lines to which a continued run appends.

    Each line has "event": "train" (a step), "eval" or "end", and "step": optimiser steps done. A
    file in a bucket cannot be appended to: lines are kept here until `sync`, which a run calls
    before each save. What a kill loses is then computed, and logged, again.
    """

    def __init__(self, path: Path | None, step: int):
        """Opens `path` and drops the end and lines after `step`, which will be written again.

        Without a path, for hosts other than the first, lines go nowhere.
        """
        self._address: Path | None = None
        self._file: TextIO
        if path is None:
            path = Path(os.devnull)
            self._file = path.open("a")
            return
        kept = []
        if path.exists():
            for line in path.read_text(errors="replace").splitlines():
                try:
                    entry = json.loads(line)
                    if entry["step"] <= step and entry["event"] != "end":
                        kept.append(line + "\n")
                except (ValueError, KeyError, TypeError):
                    continue  # such as a line that a kill cut short
        if is_address(path):
            self._address, self._file = path, io.StringIO()
            self._file.writelines(kept)
            return
        with atomic_write(path) as file:
            file.writelines(line.encode() for line in kept)
        self._file = path.open("a")

    def write(self, event: str, step: int, values: dict[str, Any]) -> None:
        """Appends one line and hands it to the operating system."""
        self._file.write(json.dumps({"event": event, "step": step, **values}) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Writes the lines of a file in a bucket there.

        Raises:
          ResourceError: the bucket does not answer, or refuses.
        """
        if isinstance(self._file, io.StringIO) and self._address is not None:
            self._address.write_text(self._file.getvalue())

    def close(self) -> None:
        """Closes the file; raises as `sync`."""
        self.sync()
        self._file.close()


class Speed:
    """Rate of training, share of time spent waiting for data, and time left.

    Rate and share are means since the last `pause`, or since the start. The first step of a
    process, which compiles, is not counted.
    """

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._step_seconds: float | None = None  # smoothed
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
        self._step_seconds = smooth(self._step_seconds, now - self._last)
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
        if self._step_seconds is None:
            return None
        seconds = steps * self._step_seconds
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
