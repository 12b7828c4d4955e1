"""Times of several sides in alternation, and what is made of them."""

import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax

_HIT = "/jax/compilation_cache/cache_hits"
Times = dict[str, list[float]]
Run = Callable[[int], object]  # does a thing so many times, and returns when all are done


@dataclass
class First:
    """What it took until the first result: tracing, compiling and running once.

    Attributes:
      seconds: of wall time.
      cpu_seconds: of all threads of the process.
      is_cached: whether the compile cache held the program.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    is_cached: bool = False

    def as_json(self) -> dict[str, Any]:
        """Returns the fields of a side in the results."""
        return {
            "first_seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "compile": "cached" if self.is_cached else "cold",
        }


@contextmanager
def first() -> Iterator[First]:
    """Measures the block, which compiles a program and waits for its first result."""
    measured, hits = First(), 0

    def hear(event: str, **_: Any) -> None:
        nonlocal hits
        hits += event == _HIT

    jax.monitoring.register_event_listener(hear)
    began, used = time.perf_counter(), _cpu_seconds()
    try:
        yield measured
    finally:
        jax.monitoring.unregister_event_listener(hear)
    measured.seconds, measured.cpu_seconds = time.perf_counter() - began, _cpu_seconds() - used
    measured.is_cached = hits > 0


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def alternate(sides: Mapping[str, Run], rounds: int, least: float) -> Times:
    """Returns the seconds of one call of each side, a number a round.

    Each side has run before, so nothing compiles. A round repeats every side as often as the first
    side needs to fill `least` seconds. Who begins changes from round to round.

    Args:
      sides: by name.
      rounds: number of rounds.
      least: seconds that the first side runs in a round, at least; 0 for a single call.
    """
    names = list(sides)
    repeats = 1 if not least else max(1, round(least / max(seconds_of(sides[names[0]], 1), 1e-6)))
    times: Times = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(seconds_of(sides[name], repeats))
    return times


def seconds_of(run: Run, count: int) -> float:
    """Returns the seconds of one of `count` calls."""
    began = time.perf_counter()
    run(count)
    return (time.perf_counter() - began) / count


def summary(seconds: Sequence[float], images: int) -> dict[str, Any]:
    """Returns a side's raw times, their median and spread, and images a second by the median."""
    median = statistics.median(seconds)
    return {
        "seconds": list(seconds), "median": median, "low": min(seconds), "high": max(seconds),
        "images_per_second": images / median,
    }  # fmt: skip


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Returns our time over theirs, round by round: median, low and high; below 1 ours is less."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
