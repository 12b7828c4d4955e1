"""SIGINT and SIGTERM: a run saves and leaves; where nothing is unsaved it leaves at once.

The command has a thread that takes signals, because the main thread runs no Python while XLA
compiles or a device computes. Other callers of `train` keep their process: there a signal is only
remembered.
"""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from deeplab_jax.distributed import cluster
from deeplab_jax.errors import ConfigError, DeepLabError, Interrupted

LEAST_SECONDS = 5  # that --save-within accepts
_MARGIN = 1.0  # seconds before the deadline at which the process is left
_LOOK = 0.25  # seconds between looks for a step on the disk
_NUMBERS = (int(signal.SIGINT), int(signal.SIGTERM))
_FIX = "repeat the command to go on"


class Stop:
    """Signals to stop a run, and what leaving would lose.

    Attributes:
      received: numbers of the signals that the run has to stop for. It looks after each step.
      is_orderly: whether the run looks at `received` and saves. Otherwise nothing is unsaved, and
        the command leaves at once.
      saved: the last step whose save is complete, as far as known.
    """

    def __init__(self, within: float | None = None):
        """Takes no signal yet; `within` is the time of `--save-within`, None for no limit.

        Raises:
          ConfigError: `within` is too short.
        """
        if within is not None and not LEAST_SECONDS <= within < math.inf:
            fix = f"give the seconds between the signal and the kill, {LEAST_SECONDS} or more"
            raise ConfigError("--save-within", f"must be {LEAST_SECONDS} or more", fix)
        self.received: list[int] = []
        self.is_orderly = False
        self._within = within
        self._first = 0  # signal
        self._is_over = False
        self.saved = 0
        self._step = 0  # the last begun
        self._step_seconds: float | None = None
        self._save_seconds: float | None = None
        self._saving: tuple[int, float] | None = None  # step under way to the disk, and since when

    def begun(self, step: int, seconds: float | None) -> None:
        """Notes that a step was begun, which is unsaved; `seconds`: a step's usual time."""
        self.is_orderly = True
        self._step, self._step_seconds = step, seconds

    def saving(self, step: int, is_there: Callable[[], bool]) -> None:
        """Notes that a save begins; a thread asks whether the finished step is there, and times it.

        A bucket that gives no answer is asked again.
        """
        is_known = step == self.saved or (self._saving or (0,))[0] == step
        if self._within is None or is_known:
            return
        mine = self._saving = step, time.monotonic()

        def look() -> None:
            is_done = False
            while self._saving is mine and not is_done:
                with suppress(DeepLabError):
                    is_done = is_there()
                if not is_done:
                    time.sleep(_LOOK)
            if self._saving is mine:
                self.saved, self._save_seconds = step, time.monotonic() - mine[1]
                self._saving = None

        threading.Thread(target=look, name="save", daemon=True).start()

    def take(self, number: int) -> None:
        """Acts on a signal to the command: leaves at once, or has the run stop."""
        if self._first:
            self._leave(number, ", asked twice: what was not saved before is lost")
        self._first = number
        if not self.is_orderly:
            self._leave(number, " before a new step; nothing was unsaved")
        if self._within is not None:
            deadline = time.monotonic() + self._within - _MARGIN
            misfit = self.misfit()
            target = self._give_up if misfit else self._end
            threading.Thread(target=target, args=(deadline, misfit), daemon=True).start()
            if misfit:
                return
        self.received.append(number)
        with suppress(OSError):
            os.write(2, b"\nstopping after this step; again to quit at once\n")

    def misfit(self) -> str:
        """Returns why step and save will not end in time, as far as measured; "" if they may.

        The step under way has to end, of several hosts also the next, then an earlier save.
        """
        step, save = self._step_seconds or 0.0, self._save_seconds or 0.0
        need = step * (2 if cluster.is_initialized() else 1) + save
        if self._saving is not None:
            need += max(0.0, save - (time.monotonic() - self._saving[1]))
        if self._within is None or need <= self._within - _MARGIN:
            return ""
        return f"a step takes {step:.1f} s and a save {save:.1f} s"

    def _give_up(self, deadline: float, why: str) -> NoReturn:
        """Leaves without another save, after the one under way."""
        while self._saving is not None and time.monotonic() < deadline:
            time.sleep(_LOOK)
        self._leave(self._first, f": {why}, --save-within {self._within:g}; {self._lost()}")

    def _end(self, deadline: float, _: str) -> NoReturn:
        """Leaves at the deadline, if the process is still there."""
        time.sleep(max(0.0, deadline - time.monotonic()))
        if self._is_over:  # the reason is told; other hosts or threads hold the process up
            os._exit(128 + self._first)
        what = f", and not saved within {self._within:g} s (--save-within); {self._lost()}"
        self._leave(self._first, what)

    def _lost(self) -> str:
        if self._step <= self.saved:
            return "nothing is lost"
        return f"lost are the steps after {self.saved}, up to {self._step}"

    def _leave(self, number: int, what: str) -> NoReturn:
        """Ends the process with one line; the system releases the lock of the work directory."""
        error = Interrupted("train", f"stopped by {_name(number)}{what}", _FIX, 128 + number)
        flush = threading.Thread(target=sys.stdout.flush, daemon=True)
        flush.start()
        flush.join(_LOOK)  # no longer: the main thread may hold the stream
        with suppress(OSError, ValueError):
            if sys.stdout.isatty():
                os.write(1, b"\x1b[?25h\n")  # the cursor, which a live area hides
        with suppress(OSError):
            _kill_readers()
        with suppress(OSError):
            os.write(2, f"{error}\n".encode())
        os._exit(error.exit_code)


@contextmanager
def watched(within: float | None = None) -> Iterator[Stop]:
    """Lets a thread take this process's signals while the block runs, the first of its command.

    Args:
      within: seconds of `--save-within`.

    Raises:
      ConfigError: `within` is too short.
    """
    stop = Stop(within)
    out, into = os.pipe()
    os.set_blocking(into, False)
    taken = threading.Semaphore(0)

    def wait_for_thread(number: int, frame: FrameType | None) -> None:
        taken.acquire(timeout=1)  # so that the main thread's next look sees the signal

    try:
        previous = {number: signal.signal(number, wait_for_thread) for number in _NUMBERS}
    except ValueError:  # not the main thread: the caller handles signals
        os.close(out)
        os.close(into)
        yield stop
        return
    wakeup = signal.set_wakeup_fd(into, warn_on_full_buffer=False)

    def watch() -> None:
        while number := os.read(out, 1):
            if number[0] in _NUMBERS:
                stop.take(number[0])
                taken.release()

    thread = threading.Thread(target=watch, name="signals", daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        stop._is_over = True
        signal.set_wakeup_fd(wakeup)
        for number, handler in previous.items():
            signal.signal(number, handler or signal.SIG_DFL)
        os.close(into)
        thread.join()
        os.close(out)


@contextmanager
def remembered() -> Iterator[Stop]:
    """Remembers the first SIGINT or SIGTERM while the block runs; a second one acts as before."""
    stop = Stop()
    previous: dict[int, Any] = {}

    def remember(number: int, frame: FrameType | None) -> None:
        stop.received.append(number)
        for other, handler in previous.items():
            signal.signal(other, handler)
        with suppress(OSError):  # not print, which the signal may have interrupted
            os.write(2, b"\nstopping after this step; again to quit at once\n")

    with suppress(ValueError):  # not the main thread: the caller handles signals
        for number in _NUMBERS:
            previous[number] = signal.signal(number, remember) or signal.SIG_DFL
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def interrupted(number: int, step: int, total: int) -> Interrupted:
    """Returns the error with which a run stopped by a signal ends."""
    what = f"stopped by {_name(number)} and saved at step {step} of {total}"
    return Interrupted("train", what, _FIX, 128 + number)


def _kill_readers() -> None:
    """Ends the processes that read, which would print errors if they are just being started."""
    for task in Path("/proc/self/task").glob("*/children"):
        for pid in task.read_text().split():
            with suppress(OSError):  # it has ended
                # Python's remover of shared memory ends by itself, after its work.
                if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(int(pid), signal.SIGKILL)


def _name(number: int) -> str:
    return signal.Signals(number).name
