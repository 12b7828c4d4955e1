"""Axes of a plot: round numbers along them, points thinned, places in the frame."""

import math
from collections.abc import Sequence

Point = tuple[float, float]  # (x, y)


def span(values: Sequence[float]) -> tuple[float, float]:
    """Returns the ends of a vertical axis; from 0 if the lowest is in (0, 0.7 x the highest)."""
    low, high = min(values), max(values)
    low = 0.0 if 0 < low < 0.7 * high else low
    numbers = ticks(low, high)
    return min(low, numbers[0]), max(high, numbers[-1])


def ticks(low: float, high: float) -> list[float]:
    """Returns round numbers from about `low` to about `high`, three to six of them."""
    if high <= low:
        return [low]
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    # Rounding both ends inwards keeps numbers off the frame's corners.
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]


def position(value: float, low: float, high: float) -> float:
    """Returns the place between the ends of an axis, in [0, 1]; the middle if they are equal."""
    return (value - low) / (high - low) if high > low else 0.5


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """Returns at most `most` means of equal groups of neighbours."""
    size = math.ceil(len(points) / most)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
