"""The file `log.jsonl` of a run: a JSON line for each event."""

import io
import json
import math
import os
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from deeplab_jax.evaluation.metrics import over_classes
from deeplab_jax.utils.atomic import atomic_write, named
from deeplab_jax.utils.places import is_address

EARLY = 20  # steps at the start of a run whose losses are all logged


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
            before = self._file  # stays open where the disk is full
            if self._is_remote:
                self._file = io.StringIO()
                self._file.writelines(kept)
            else:
                if self._is_kept:
                    with atomic_write(self._path) as file:
                        file.writelines(line.encode() for line in kept)
                self._file = self._path.open("a")
            before.close()

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
