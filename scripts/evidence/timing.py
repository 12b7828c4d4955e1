"""Times alternatives against each other: warm-up, rounds in alternation, medians and spread."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from evidence.record import Box

_ROUND = 0.25  # seconds that a round of one alternative lasts at least
_MOST_CALLS = 200  # of a round


class Way(NamedTuple):
    """One of several ways to compute the same.

    Attributes:
      call: starts one computation; returns what `wait` needs.
      wait: returns when the computation, and all before it, is done.
    """

    call: Callable[[], Any]
    wait: Callable[[Any], Any]


def alternate(
    box: Box, ways: Mapping[str, Way], rounds: int = 7, seconds: float = 60
) -> dict[str, dict[str, Any]]:
    """Times the ways in turn, round by round; all are compiled and warm before the first.

    A round of one way is as many calls as fill a quarter of a second, begun one after the other and
    awaited once, so that the time between two launches hides behind the work. Rounds are dropped
    where `seconds`, or half of what the stage has left, are over; one is always measured.

    Returns:
      {way: {"median", "low", "high" (seconds of one call), "rounds", "calls"}}.
    """
    ends = time.time() + min(seconds, max(box.left / 2, 0))
    calls = {}
    for name, way in ways.items():
        for _ in range(box.pick(2, 1)):
            way.wait(way.call())  # compiles, tunes, allocates
        calls[name] = 1
        while not box.is_rehearsal and calls[name] < _MOST_CALLS:
            took = _round(way, calls[name])
            if took >= _ROUND:
                break
            calls[name] = min(_MOST_CALLS, max(2, round(1.2 * calls[name] * _ROUND / took)))
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(box.pick(rounds, 2)):
        if number and time.time() > ends:
            break
        for name, way in ways.items():
            found[name].append(_round(way, calls[name]) / calls[name])
    return {name: spread(values) | {"calls": calls[name]} for name, values in found.items()}


def spread(values: list[float]) -> dict[str, Any]:
    """Returns median, lowest and highest of some seconds, and their number."""
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "rounds": len(values),
    }


def _round(way: Way, calls: int) -> float:
    began = time.perf_counter()
    last = None
    for _ in range(calls):
        last = way.call()
    way.wait(last)
    return time.perf_counter() - began
