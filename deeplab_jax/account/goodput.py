"""The account of a run's wall time, from the lines of `log.jsonl` with "event": "time".

Wall time lasts from the first process's start to the last line, and is the sum of these parts:

  start-up     from a process's start to its first batch: imports, lists of data, restoring
  compile      compiling the training step and the networks of evaluations
  input wait   waiting for a batch
  steps        training steps and all that is done between them, such as logging
  evaluation   evaluating, without compiling
  saving       until the arrays are copied, and waiting for the disk at the end
  lost work    input wait, steps, evaluation and saving after the step that a later process
               restored: they were done again
  stopped      no process ran
  unknown      what no line tells

A killed process (`kill -9`, a power cut) wrote its last line at most `log.beat` seconds before its
end: a hundredth of its life, but 1 s to 60 s. Of the gap behind that line, so many seconds are
unknown, as the process may have lived; the rest is stopped. What it computed then is nowhere else.
A process that ended before its first step leaves no line: its time is stopped. A process measures
itself by a clock that is never set. What the clock of the time stamps shows beyond that, as after a
machine slept, is unknown; a clock that was set back takes nothing away.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deeplab_jax.errors import ConfigError
from deeplab_jax.training.log import PARTS, beat

NAMES = ("steps", "input wait", "compile", "start-up", "evaluation", "saving", "lost work",
         "stopped", "unknown")  # fmt: skip
_NAME_OF = {"starting": "start-up", "input": "input wait"}  # of a part of the log; others: its own
_REPEATED = ("input", "steps", "evaluation", "saving")  # parts that a restored step makes void
_SLACK = 1.0  # seconds; smaller steps of a clock are not told


@dataclass(frozen=True)
class Line:
    """One line of the account in the log."""

    at: str
    time: float
    step: int
    seconds: Mapping[str, float]  # of the process so far, by part


@dataclass(frozen=True)
class Process:
    """One process of a run, as the log tells of it."""

    began: float
    batch_size: int
    devices: Mapping[str, Any]  # of `hosts.devices`
    lines: Sequence[Line]

    @property
    def start(self) -> int:
        """The step that it restored; 0 for a new run."""
        return self.lines[0].step

    @property
    def last(self) -> Line:
        """Its last line."""
        return self.lines[-1]

    @property
    def is_ended(self) -> bool:
        """Whether it ended by itself; otherwise it was killed, or still runs."""
        return self.last.at == "stop"

    def until(self, step: float) -> Mapping[str, float]:
        """Returns its seconds, by part, until the save of a step; at most those of its last line.

        Where no line tells of that save, they are interpolated between lines.
        """
        last = self.last
        if step > last.step or (step == last.step and self.is_ended):
            return last.seconds
        if saved := [x for x in self.lines if x.step == step and x.at in ("saved", "start")]:
            return saved[0].seconds
        before = [line for line in self.lines if line.step <= step] or [self.lines[0]]
        after = next((line for line in self.lines if line.step > step), last)
        first = before[-1]
        share = (step - first.step) / (after.step - first.step) if after.step > first.step else 0.0
        share = max(share, 0.0)
        return {p: v + share * (after.seconds[p] - v) for p, v in first.seconds.items()}


@dataclass(frozen=True)
class Account:
    """Where the wall time of a run went.

    Attributes:
      seconds: by part, in the order of `NAMES`.
      processes: of the run, in order.
      kept: of each process, seconds of steps and input wait that were not lost.
      start: step at which the account begins; greater than 0 where older processes logged no times.
      step: the last step that the log tells of.
      lost_steps: number of steps that were computed again.
      set_back: seconds by which the time stamps went back, in all.
    """

    seconds: Mapping[str, float]
    processes: Sequence[Process]
    kept: Sequence[float]
    start: int
    step: int
    lost_steps: int
    set_back: float

    @property
    def wall(self) -> float:
        """Seconds from the first start to the last line."""
        return sum(self.seconds.values())

    @property
    def images(self) -> int:
        """Number of images of the steps that were kept."""
        return (self.step - self.start) * self.processes[0].batch_size

    def images_per_second(self) -> tuple[float, float]:
        """Returns images of kept steps, per second of wall time and of steps and input wait."""
        return self.images / max(self.wall, 1e-9), self.images / max(sum(self.kept), 1e-9)


def read_account(workdir: Path) -> Account:
    """Returns the account of a run.

    Raises:
      ConfigError: there is no log, or none of its lines tells times.
    """
    path = workdir / "log.jsonl"
    if not path.is_file():
        what = "there is no log of a run"
        raise ConfigError(str(path), what, "give a work directory of `deeplab train`")
    processes = read_processes(path)
    if not processes:
        what = "tells no times: an older version of deeplab_jax wrote it"
        fix = "continue the run with deeplab train: its account begins there"
        raise ConfigError(str(path), what, fix)
    return make_account(processes)


def read_processes(path: Path) -> list[Process]:
    """Returns the processes that a log tells of; lines that cannot be read are left out."""
    found: list[tuple[dict[str, Any], list[Line]]] = []
    for text in path.read_text("utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(text)
            if entry["event"] != "time":
                continue
            numbers = {part: float(entry[part]) for part in PARTS}
            line = Line(str(entry["at"]), float(entry["time"]), int(entry["step"]), numbers)
            if not all(map(math.isfinite, (line.time, *numbers.values()))):
                continue
            if line.at == "start":
                facts = {"began": float(entry["began"]), "batch_size": int(entry["batch_size"])}
                devices = dict(entry["devices"])
                found.append((facts | {"devices": devices | {"count": int(devices["count"])}}, []))
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # such as a line that a kill cut short
        if found:
            found[-1][1].append(line)
    return [Process(**facts, lines=tuple(lines)) for facts, lines in found]


def make_account(processes: Sequence[Process]) -> Account:
    """Returns the account of at least one process."""
    seconds = dict.fromkeys(NAMES, 0.0)
    kept, lost_steps, set_back = [], 0, 0.0
    for number, process in enumerate(processes):
        later = processes[number + 1 :]
        restored = min((other.start for other in later), default=math.inf)
        spent, valid = process.last.seconds, process.until(restored)
        for part in PARTS:
            name, all_ = _NAME_OF.get(part, part), spent[part]
            own = valid[part] if part in _REPEATED else all_
            seconds[name] += own
            seconds["lost work"] += all_ - own
        kept.append(valid["input"] + valid["steps"])
        if restored < process.last.step:
            lost_steps += process.last.step - max(int(restored), process.start)
        measured, stamped = sum(spent.values()), process.last.time - process.began
        seconds["unknown"] += max(stamped - measured, 0.0)
        set_back += max(measured - stamped - _SLACK, 0.0)
        if later:
            gap = later[0].began - process.last.time
            set_back += max(-gap, 0.0)
            gap = max(gap, 0.0)
            alive = 0.0 if process.is_ended else min(gap, beat(spent))
            seconds["unknown"] += alive
            seconds["stopped"] += gap - alive
    start, step = processes[0].start, processes[-1].last.step
    return Account(seconds, processes, kept, start, step, lost_steps, set_back)
