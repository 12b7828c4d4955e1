"""Output of a run under way: a JSON line per logged step, and a line on the screen."""

import io
import json
import math
import os
import statistics
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from deeplab_jax.evaluation.metrics import over_classes
from deeplab_jax.utils import compile_cache
from deeplab_jax.utils.atomic import atomic_write, named
from deeplab_jax.utils.places import is_address
from deeplab_jax.utils.progress import PLAIN_SECONDS, Screen, View, duration
from deeplab_jax.utils.stopwatch import Stopwatch

SMOOTHING = 0.9  # weight of the past, per step, in the smoothed loss and time of a step
EARLY = 20  # steps at the start of a run whose losses are all logged
# What a process does: before its first step; compiling; waiting for a batch; the steps and all that
# is done between them; evaluating; saving.
PARTS = ("starting", "compile", "input", "steps", "evaluation", "saving")
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

    Each line has "event" and "step": optimiser steps done. Events: "train" (a logged step),
    "loss" (one of the first `EARLY` steps, where it is not logged), "eval", "spike" (a loss),
    "rollback" (its step's batch is left out), "end", and "time" (see `Account`).

    A file in a bucket cannot be appended to: lines are kept here until `sync`, which a run calls
    before each save. What a kill loses is then computed, and logged, again.
    """

    def __init__(self, path: Path | None, step: int, left_out: Collection[int] = ()):
        """Opens `path` as `go_back` leaves it.

        Without a path, for hosts other than the first, lines go nowhere.
        """
        self._path, self._is_kept = path or Path(os.devnull), path is not None
        self._is_remote = is_address(self._path)
        self._lock = threading.Lock()  # the account has a thread
        self._file: TextIO = io.StringIO()
        self.go_back(step, left_out)

    def go_back(self, step: int, left_out: Collection[int]) -> None:
        """Drops the end and lines after `step`, which will be written again.

        The account's lines all stay: they tell of steps that are computed again. Of the rollbacks
        those to leave out a step of `left_out` stay: they are not repeated.
        """
        with self._lock:
            kept = self._lines_until(step, left_out) if self._is_kept else []
            self._file.close()
            if self._is_remote:
                self._file = io.StringIO()
                self._file.writelines(kept)
                return
            if self._is_kept:
                with atomic_write(self._path) as file:
                    file.writelines(line.encode() for line in kept)
            self._file = self._path.open("a")

    def _lines_until(self, step: int, left_out: Collection[int]) -> list[str]:
        """Returns the lines of the file, or of those not yet in a bucket, that stay."""
        text = self._file.getvalue() if isinstance(self._file, io.StringIO) else ""
        if not text and self._path.exists():
            text = self._path.read_text(errors="replace")
        kept = []
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                is_past = entry["step"] <= step and entry["event"] != "end"
                is_known = entry["event"] == "rollback" and entry["step"] in left_out
                if is_past or is_known or entry["event"] == "time":
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue  # such as a line that a kill cut short
        return kept

    def write(self, event: str, step: int, values: dict[str, Any]) -> None:
        """Appends one line and hands it to the operating system."""
        line = json.dumps({"event": event, "step": step, **values}) + "\n"
        with self._lock, named(self._path):
            self._file.write(line)
            self._file.flush()

    def sync(self) -> None:
        """Writes the lines of a file in a bucket there.

        Raises:
          ResourceError: the bucket does not answer, or refuses.
        """
        if self._is_remote and isinstance(self._file, io.StringIO):
            with self._lock:
                text = self._file.getvalue()
            self._path.write_text(text)

    def close(self) -> None:
        """Closes the file; raises as `sync`."""
        self.sync()
        with named(self._path):
            self._file.close()


def beat(seconds: Mapping[str, float]) -> float:
    """Returns the seconds from a line of the account to the next, at most.

    A hundredth of the process's life so far, but at least 1 s and at most 60 s.

    Args:
      seconds: of the process by part.
    """
    return min(max(sum(seconds.values()) / 100, 1.0), 60.0)


class Account:
    """What one process of a run spends its time on, as lines of the log with "event": "time".

    Every line has "at", "time" (Unix seconds), "step" (steps done) and the process's seconds of
    each of `PARTS` so far, by a clock that is never set. "at" is "start" (with facts of the
    process, and "began": its first moment), "saved" (a save of "step" has begun), "stop" (the
    process ends by itself), or "run", which a thread of its own writes every `beat` seconds. So a
    killed process is known to have lived until its last line, and to have ended within `beat`
    seconds of it. A process that ends before it has restored its state writes no line.

    Attributes:
      step: optimiser steps done.
      during: context manager; the block is another part than "steps".
    """

    def __init__(self, log: JsonLog, began: float, step: int, facts: dict[str, Any]):
        """Writes the first line; "starting" lasts from `began`, Unix seconds, to `trains`."""
        self._log, self.step = log, step
        seconds = max(time.time() - began, 0.0)
        self._watch = Stopwatch(PARTS, seconds, ("compile", compile_cache.seconds))
        self.during = self._watch.during
        self._over = threading.Event()
        self._write("start", {"began": round(began, 3), **facts})
        self._thread = threading.Thread(target=self._beat, name="account", daemon=True)
        self._thread.start()

    def trains(self) -> None:
        """Ends the part "starting"."""
        self._watch.switch("steps")

    def saved(self) -> None:
        """Writes that the state of `step` is being saved."""
        self._write("saved")

    def close(self) -> None:
        """Writes the last line of the process, once; where it cannot, the run has told why."""
        if not self._over.is_set():
            self._over.set()
            self._thread.join()
            with suppress(OSError):
                self._write("stop")

    def _beat(self) -> None:
        while not self._over.wait(beat(self._watch.read())):
            try:
                self._write("run")
            except OSError:  # a full disk: the main thread meets it at its own next line
                return

    def _write(self, at: str, facts: dict[str, Any] | None = None) -> None:
        seconds = {part: round(value, 3) for part, value in self._watch.read().items()}
        stamp = {"at": at, "time": round(time.time(), 3)}
        self._log.write("time", self.step, stamp | seconds | (facts or {}))


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
