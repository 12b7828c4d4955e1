"""Output of a run under way: a JSON line per logged step, and a line on the terminal."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deeplab_jax.utils.atomic import atomic_write
from deeplab_jax.utils.progress import PLAIN_SECONDS, discard

_SMOOTHING = 0.9  # weight of the past in the printed loss


class JsonLog:
    """A file of JSON lines to which a continued run appends.

    Each line has "event": "train" (a step), "eval" or "end", and "step": optimiser steps done.
    """

    def __init__(self, path: Path | None, step: int):
        """Opens `path` and drops the end and lines after `step`, which will be written again.

        Without a path, for hosts other than the first, lines go nowhere.
        """
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
        with atomic_write(path) as file:
            file.writelines(line.encode() for line in kept)
        self._file = path.open("a")

    def write(self, event: str, step: int, values: dict[str, Any]) -> None:
        """Appends one line and hands it to the operating system."""
        self._file.write(json.dumps({"event": event, "step": step, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Speed:
    """Images per second and share of time spent waiting for data, since the last reading."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self.pause()

    def pause(self) -> None:
        """Starts anew, as after time that was not training, such as an evaluation."""
        self._start, self._waited, self._steps = time.perf_counter(), 0.0, 0

    def waited(self, seconds: float) -> None:
        """Adds time spent waiting for a batch."""
        self._waited += seconds

    def finished_step(self) -> None:
        """Counts a finished step."""
        self._steps += 1

    def read(self) -> dict[str, float]:
        """Returns "images_per_second" and "data_wait" (fraction), and starts anew."""
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        values = {
            "images_per_second": round(self._steps * self._batch_size / elapsed, 2),
            "data_wait": round(min(self._waited / elapsed, 1), 4),
        }
        self.pause()
        return values


class Display:
    """One live line on a terminal, else a plain line now and then."""

    def __init__(self, total: int, done: int, on_gone: Callable[[], None] = lambda: None):
        """Shows a run of `total` optimiser steps, of which `done` are done; prints nothing yet.

        `on_gone` is called when the reader of the output has gone, as in `... | head`.
        """
        self._total, self._first = total, done
        self._on_gone = on_gone
        self._start = time.perf_counter()
        self._printed = -PLAIN_SECONDS
        self._loss: float | None = None
        self._bar: Any = None

    @contextmanager
    def live(self) -> Iterator["Display"]:
        """Shows a progress bar while the block runs, if the output is a terminal."""
        if not sys.stdout.isatty():
            self._print("compiling")
            yield self
            return
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (BarColumn(bar_width=8), TextColumn("{task.description}"))
        with Progress(*columns) as bar:
            self._task = bar.add_task("compiling", total=self._total, completed=self._first)
            self._bar = bar
            yield self
        self._bar = None

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            self._print(text)

    def step(self, step: int, values: dict[str, float], is_last: bool) -> None:
        """Shows a finished step: on a terminal each, else one in ten seconds and the last.

        `values` are "loss", "lr", "images_per_second" and "data_wait".
        """
        keep = _SMOOTHING if self._loss is not None else 0.0
        self._loss = keep * (self._loss or 0.0) + (1 - keep) * values["loss"]
        elapsed = time.perf_counter() - self._start
        left = elapsed / max(step - self._first, 1) * (self._total - step)
        text = (
            f"step {step}/{self._total}  loss {self._loss:.3f}  lr {values['lr']:.1e}"
            f"  left {_duration(left)}  {values['images_per_second']:.1f} images/s"
            f"  data wait {100 * values['data_wait']:.0f} %"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)
        elif is_last or elapsed - self._printed >= PLAIN_SECONDS:
            self._printed = elapsed
            self._print(text)

    def _print(self, text: str) -> None:
        try:
            print(text, flush=True)
        except BrokenPipeError:
            discard(sys.stdout)
            self._on_gone()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
