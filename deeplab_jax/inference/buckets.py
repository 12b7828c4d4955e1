"""The shapes that a network is compiled for when images have many sizes.

A smaller image is padded and the padding masked, so shapes change no result beyond rounding.
"""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

LIMIT = 16  # shapes of one plan
_MANY = 2.5  # times the limit: number of shapes from which on only coarse ones are added
_MAX_MERGED = 256  # sizes that are merged one by one
_STEP = 32  # divides the sides of shapes for unplanned sizes
_FINE = 1.25  # ratio of such sides, and of padded to own pixels up to which no shape is added
_COARSE = 2.0  # ratio of sides where shapes are many; its square is that of pixels
_SMALL = 128 * 128  # pixels that smaller images count as, where shapes are many
_PLANNED = 1.1  # ratio of pixels up to which a planned size takes a known shape

Size = tuple[int, int]


class Shape(NamedTuple):
    """Input shape of a program.

    Attributes:
      size: (height, width).
      is_masked: whether smaller images are padded to it.
    """

    size: Size
    is_masked: bool


class Buckets:
    """Chooses a shape for each size; the choice for a size never changes.

    The sizes of one plan share at most `limit` shapes. An unplanned size keeps its own while there
    are fewer than `limit` shapes. Then it takes a known shape that pads it to at most 1.25 times
    its pixels, or a new one with sides rounded up. From 2.5 times `limit` shapes on, a new one is
    added only for a size that all known ones would pad to more than four times its pixels, and to
    more than 65536.
    """

    def __init__(self, limit: int = LIMIT):
        self._limit, self._many = limit, int(_MANY * limit)
        self._shapes: dict[Size, Shape] = {}

    def plan(self, sizes: Iterable[Size]) -> None:
        """Chooses shapes for those of `sizes` that have none; frequent sizes get less padding."""
        new = Counter(size for size in sizes if size not in self._shapes)
        known = set(self._shapes.values())
        for size in list(new):
            if shape := _fitting(size, known, _PLANNED):
                self._shapes[size] = shape
                del new[size]
        room = min(self._limit, self._many - len(known))
        if room > 0:  # otherwise each is unplanned
            self._shapes |= plan_buckets(new.elements(), room)

    def shape(self, size: Size) -> Shape:
        """Returns the shape for one size (height, width)."""
        if size not in self._shapes:
            self._shapes[size] = self._new(size)
        return self._shapes[size]

    def _new(self, size: Size) -> Shape:
        known = set(self._shapes.values())
        if len(known) < self._limit:
            return Shape(size, is_masked=False)
        is_fine = len(known) < self._many
        step, padding = (_FINE, _FINE) if is_fine else (_COARSE, _COARSE**2)
        own = Shape((_stepped(size[0], step), _stepped(size[1], step)), is_masked=True)
        # Padding of small images costs less than a program.
        padding *= 1 if is_fine else max(_SMALL / _area(size), 1)
        return _fitting(size, known, padding) or own


def plan_buckets(sizes: Iterable[Size], limit: int = LIMIT) -> dict[Size, Shape]:
    """Returns a shape for each size, at most `limit` different ones with little padding.

    Starts from all sizes and merges the two shapes that add least padding, over all images, until
    `limit`, 1 or more, are left. A size alone in its shape is not padded. `sizes` are (height,
    width) of every image.
    """
    counts = Counter(sizes)
    step, rounded = 1, counts
    while len(rounded) > max(_MAX_MERGED, limit):  # merging compares all pairs
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


def _merge(counts: Counter[Size], limit: int) -> dict[Size, Size]:
    """Returns the shape of each size after merging pairs until `limit` shapes are left."""
    sizes = sorted(counts)
    shapes = np.array(sizes).reshape(-1, 2)
    weights = np.array([counts[size] for size in sizes], float)
    owner = np.arange(len(sizes))
    while len(shapes) > limit:
        top = np.maximum(shapes[:, None], shapes[None]).prod(-1)
        padding = top - shapes.prod(-1)  # [i, j]: of j, if i and j merge
        added = weights * padding + (weights * padding).T
        np.fill_diagonal(added, np.inf)
        first, second = sorted(np.unravel_index(np.argmin(added), added.shape))
        shapes[first] = np.maximum(shapes[first], shapes[second])
        weights[first] += weights[second]
        shapes, weights = np.delete(shapes, second, 0), np.delete(weights, second)
        owner[owner == second] = first
        owner[owner > second] -= 1
    return {size: (int(h), int(w)) for size, (h, w) in zip(sizes, shapes[owner], strict=True)}


def _fitting(size: Size, shapes: Iterable[Shape], padding: float) -> Shape | None:
    """Returns the smallest masked shape that holds a size in at most `padding` times its pixels."""
    fitting = [
        shape
        for shape in shapes
        if shape.is_masked and size[0] <= shape.size[0] and size[1] <= shape.size[1]
    ]
    best = min(fitting, key=lambda shape: (_area(shape.size), shape), default=None)
    return best if best and _area(best.size) <= padding * _area(size) else None


def _stepped(side: int, factor: float) -> int:
    """Returns the first of 32, 32 * factor, ..., in multiples of 32, that is not below `side`."""
    step = _STEP
    while step < side:
        step = _round_up(int(step * factor), _STEP)
    return step


def _area(size: Size) -> int:
    return size[0] * size[1]


def _round_up(side: int, step: int) -> int:
    return -(-side // step) * step
