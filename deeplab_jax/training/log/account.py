"""What the processes of a run spend their time on, as lines of its log."""

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from deeplab_jax.training.log.lines import JsonLog
from deeplab_jax.utils import compile_cache
from deeplab_jax.utils.stopwatch import Stopwatch

# What a process does: before its first step; compiling; waiting for a batch; the steps and all that
# is done between them; evaluating; saving.
PARTS = ("starting", "compile", "input", "steps", "evaluation", "saving")


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
