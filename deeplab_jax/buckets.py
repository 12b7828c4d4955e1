"""Which shapes a network is compiled for, when images come in many sizes.

A smaller image is padded to its shape and masked there, so shapes change no result beyond rounding.
"""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

LIMIT = 16  # shapes of one run
_FEW = 256  # sizes that are merged one by one
_STEP = 32  # sides of shapes for sizes that come as a surprise
_WASTE = 1.25  # share of padding that is better than another program

Size = tuple[int, int]


class Shape(NamedTuple):
    """What a program is compiled for.

    Attributes:
      size: (height, width).
      is_masked: images of other sizes are padded to it.
    """

    size: Size
    is_masked: bool


class Buckets:
    """Chooses a shape for each size and stays by it.

    Sizes that are planned share at most `limit` shapes. Others keep their own size as long as
    shapes are few, then take a shape that fits well, or sides rounded up to multiples of 32.
    """

    def __init__(self, limit: int = LIMIT):
        self._limit = limit
        self._shapes: dict[Size, Shape] = {}

    def plan(self, sizes: Iterable[Size]) -> None:
        """Chooses shapes for all of `sizes`, as often as they occur."""
        self._shapes |= plan_buckets(sizes, self._limit)

    def shape(self, size: Size) -> Shape:
        """Returns the shape for one size (height, width)."""
        if size not in self._shapes:
            self._shapes[size] = self._new(size)
        return self._shapes[size]

    def _new(self, size: Size) -> Shape:
        known = set(self._shapes.values())
        if len(known) < self._limit:
            return Shape(size, is_masked=False)
        fitting = [
            shape
            for shape in known
            if shape.is_masked and size[0] <= shape.size[0] and size[1] <= shape.size[1]
        ]
        best = min(fitting, key=lambda shape: _area(shape.size), default=None)
        if best is not None and _area(best.size) <= _WASTE * _area(size):
            return best
        return Shape((_round_up(size[0], _STEP), _round_up(size[1], _STEP)), is_masked=True)


def plan_buckets(sizes: Iterable[Size], limit: int = LIMIT) -> dict[Size, Shape]:
    """Returns a shape for each size, at most `limit` different ones with little padding.

    Starts from all sizes and merges the two shapes that add least padding, over all images, until
    they are few enough. One size alone in its shape is not padded.

    Args:
      sizes: (height, width) of every image.
      limit: 1 or more.
    """
    counts = Counter(sizes)
    step, rounded = 1, counts
    while len(rounded) > max(_FEW, limit):  # merging looks at all pairs
        step *= 2
        rounded = Counter()
        for (height, width), count in counts.items():
            rounded[_round_up(height, step), _round_up(width, step)] += count
    shapes = _merge(rounded, limit)
    chosen = {size: shapes[_round_up(size[0], step), _round_up(size[1], step)] for size in counts}
    members: dict[Size, list[Size]] = {}
    plan: dict[Size, Shape] = {}
    for size, shape in chosen.items():
        members.setdefault(shape, []).append(size)
    for own in members.values():
        top = max(size[0] for size in own), max(size[1] for size in own)
        plan |= {size: Shape(top, is_masked=len(own) > 1) for size in own}
    return {size: plan[size] for size in sorted(plan)}


def _merge(counts: Counter, limit: int) -> dict[Size, Size]:
    """Returns the shape of each size."""
    sizes = sorted(counts)
    shapes = np.array(sizes).reshape(-1, 2)
    weights = np.array([counts[size] for size in sizes], float)
    owner = np.arange(len(sizes))
    while len(shapes) > limit:
        top = np.maximum(shapes[:, None], shapes[None]).prod(-1)
        padding = top - shapes.prod(-1)  # of the second of a pair
        added = weights * padding + (weights * padding).T
        np.fill_diagonal(added, np.inf)
        first, second = sorted(np.unravel_index(np.argmin(added), added.shape))
        shapes[first] = np.maximum(shapes[first], shapes[second])
        weights[first] += weights[second]
        shapes, weights = np.delete(shapes, second, 0), np.delete(weights, second)
        owner[owner == second] = first
        owner[owner > second] -= 1
    return {size: (int(h), int(w)) for size, (h, w) in zip(sizes, shapes[owner], strict=True)}


def _area(size: Size) -> int:
    return size[0] * size[1]


def _round_up(side: int, step: int) -> int:
    return -(-side // step) * step
