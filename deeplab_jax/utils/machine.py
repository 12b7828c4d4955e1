"""Speed of this machine's processor, for guesses of how long a training takes."""

import time

import numpy as np

_SIDE = 768  # of the matrices; 1 ms to 50 ms a product
_REPEATS = 10
# A training step's speed over a matrix product's, low and high. Seen on two cores of an Intel Xeon,
# 2026-11-30: 0.61 for ResNet-18 (4 x 304 x 400), 0.54 for ResNet-50 (4 x 320 x 320), both at output
# stride 16.
STEP_SHARE = (0.3, 0.7)


def product_speed() -> float:
    """Returns FLOP/s of a float32 matrix product on all cores, the best of a few."""
    matrix = np.ones((_SIDE, _SIDE), np.float32)
    seconds = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        np.dot(matrix, matrix)
        seconds.append(time.perf_counter() - began)
    return 2 * _SIDE**3 / min(seconds)


def describe(low: float, high: float) -> str:
    """Returns a range of seconds in words, such as "1.2 to 3.6 h"; equal ends give one number."""
    unit, name = next(((u, n) for u, n in ((3600, "h"), (60, "min")) if high >= 1.5 * u), (1, "s"))
    first, last = (_short(value / unit) for value in (low, high))
    return f"{first} {name}" if first == last else f"{first} to {last} {name}"


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"
