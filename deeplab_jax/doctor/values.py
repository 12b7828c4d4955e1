"""The meaning of mask values, inferred from how often and where they occur."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from deeplab_jax.doctor.scan import SampleFacts

_THIN = 0.1  # largest share of inner pixels of a value that is but a seam between others
_FEW = 5  # a value is in few masks if it is in this many times fewer than is usual
_MIN_BLENDED = 3  # thin values in few masks that make a mask a blended one
_SPECK = 16  # pixels, or 1 in 10,000: a slip of the pen
_MANY, _MOSTLY = 16, 0.6  # a mask of so many values, such a share of them thin, is blended
_SHIFT_GAIN = 0.5  # nats a pixel; CamVid's masks reach 0.2 at most, shifted ones mostly 1
_MIN_STEP = 2  # between evenly spaced shades of grey
_MIN_MASKS = 8  # fewer say nothing of shares

_Holders = dict[int, list[SampleFacts]]  # {value: masks that hold it}


class Values(NamedTuple):
    """The inferred meaning of a data set's mask values."""

    classes: tuple[int, ...]  # values that are classes, in order
    ignored: tuple[int, ...]  # values that are not meant to be learnt
    rare: dict[int, list[str]]  # {class: masks that hold it}; in few masks, maybe mistakes
    stray: dict[int, list[str]]  # {value: masks that hold it}; in few masks, far from every class
    blended: dict[str, list[int]]  # {mask: values that look mixed, as by resizing or JPEG}
    shifted: dict[str, int]  # {mask: -1 or 1, to be added so that it fits the other masks}
    is_binary: bool = False  # 0 and 255 are all there is, so that 255 is a class


def infer_values(facts: Sequence[SampleFacts], ignored: Sequence[int] = (255,)) -> Values:
    """Returns which values of the masks are classes, which ignored, and which neither.

    Masks that could not be read are passed over; values of `ignored` need not occur.
    """
    masks = [f for f in facts if f.counts]
    used = sorted({value for f in masks for value in f.counts})
    if used == [0, 255] or (used == [255] and 255 not in ignored):
        return Values((0, 255), (), {}, {}, {}, {}, True)
    holders: _Holders = {v: [] for v in used if v not in ignored}
    for f in masks:
        for value in f.counts.keys() & holders.keys():
            holders[value].append(f)
    solid = [len(h) for v, h in holders.items() if any(not _is_thin(f, v) for f in h)]
    # Weighted by number of masks: many odd values of one mask must not move the median.
    usual = float(np.median(np.repeat(solid, solid))) if solid else 0.0
    blended = _find_blended(masks, holders, usual)
    classes, rare, stray = _find_classes(holders, blended, usual, len(masks))
    shifted = find_shifted([f for f in masks if f.pair.mask not in blended], classes)
    for value, paths in list(rare.items()):
        if shifted.keys() >= set(paths):  # a class of no other mask
            classes.remove(value)
            stray[value] = rare.pop(value)
    present = tuple(value for value in used if value in ignored)
    # White beside black, without another class, is no border between classes.
    white = [f for f in masks if 255 in f.counts] if 255 in present else []
    if classes == [0] and any(not _is_thin(f, 255) for f in white):
        return Values((0, 255), (), rare, stray, blended, {}, True)
    return Values(tuple(classes), present, rare, stray, blended, shifted)


def is_scale(values: Sequence[int]) -> bool:
    """Tells whether values are even steps of grey from black to white: 0, 85, 170, 255."""
    ideal = np.linspace(0, 255, len(values))
    is_wide = 2 < len(values) <= 255 // _MIN_STEP
    return is_wide and bool((abs(ideal - values) <= 1).all())


def objects_of(values: Sequence[int]) -> int:
    """Returns K where values look like class x K + number of an object, as 24001 does; else 0."""
    for factor in (1000, 256):
        classes, numbers = {v // factor for v in values}, {v % factor for v in values}
        if 1 < len(classes) < len(values) and max(numbers) < factor // 2:
            return factor
    return 0


def of_other_scale(facts: Sequence[SampleFacts]) -> list[SampleFacts]:
    """Returns the masks of 0 and 255 alone, where no other mask has 255 but one has a class."""
    white = [f for f in facts if 255 in f.counts]
    is_alone = all(f.counts.keys() <= {0, 255} and not _is_thin(f, 255) for f in white)
    others = any(f.counts.keys() - {0, 255} for f in facts)
    return white if is_alone and others else []


def _find_blended(
    masks: Sequence[SampleFacts], holders: _Holders, usual: float
) -> dict[str, list[int]]:
    """Returns {mask: mixed values}; `usual` is the number of masks that a class is usually in."""
    blended = {}
    mixed = [v for v, found in holders.items() if all(_is_thin(f, v) for f in found)]
    if mixed and holders.keys() - {*mixed, 255} == {0} and len(mixed) >= _MIN_BLENDED:
        white = [f for f in masks if 255 in f.counts]
        if any(not _is_thin(f, 255) for f in white):  # soft edges between black and white
            found = {f.pair.mask: sorted(f.counts.keys() & {*mixed}) for f in white}
            if max(map(len, found.values())) >= _MIN_BLENDED:
                return {mask: values for mask, values in found.items() if values}
    for f in masks:
        values = sorted(f.counts.keys() & holders.keys())
        seams = [v for v in values if _is_thin(f, v)]
        few = [v for v in seams if len(holders[v]) * _FEW <= usual]
        if len(few) >= _MIN_BLENDED:
            blended[f.pair.mask] = few
        elif len(values) >= _MANY and len(seams) >= _MOSTLY * len(values):
            blended[f.pair.mask] = seams
    return blended


def _find_classes(
    holders: _Holders, blended: Mapping[str, Collection[int]], usual: float, num_masks: int
) -> tuple[list[int], dict[int, list[str]], dict[int, list[str]]]:
    """Returns `classes`, `rare` and `stray` of `Values`."""
    classes: list[int] = []
    rare, stray = {}, {}
    for value, found in holders.items():
        pure = [f for f in found if f.pair.mask not in blended]
        paths = [f.pair.mask for f in pure]
        last = classes[-1] if classes else -1
        is_far = len(paths) * _FEW <= usual and value - last > 4 + last // 8
        is_rare = len(paths) * _FEW * _FEW <= usual
        is_slip = is_rare and len(paths) * 100 <= num_masks
        if not paths:  # in mixed masks alone: a class where there are no others, and it is no seam
            mixed = sum(value in blended[f.pair.mask] for f in found)
            if len(blended) == num_masks and 2 * mixed < len(found):
                classes.append(value)
        elif is_far or (is_slip and all(_is_speck(f, value) for f in pure)):
            stray[value] = paths
        else:
            classes.append(value)
            if is_rare:
                rare[value] = paths
    return classes, rare, stray


def _is_thin(facts: SampleFacts, value: int) -> bool:
    return facts.interior.get(value, 0) <= _THIN * facts.counts[value]


def _is_speck(facts: SampleFacts, value: int) -> bool:
    return facts.counts[value] <= max(_SPECK, sum(facts.counts.values()) // 10_000)


def find_shifted(facts: Sequence[SampleFacts], classes: Sequence[int]) -> dict[str, int]:
    """Returns {mask: -1 or 1}: masks that fit the others better once that is added to each value.

    A mask fits by the likelihood of its shares of classes under the mean of all masks. A shift is
    seen only where classes differ in frequency, and only in a minority of the masks.
    """
    masks = [f for f in facts if f.counts.keys() & set(classes)]
    if len(masks) < _MIN_MASKS:
        return {}
    size = max(classes, default=0) + 3
    shares = np.zeros((len(masks), size))  # of value v in column v + 1: both neighbours exist
    for row, f in zip(shares, masks, strict=True):
        for value, count in f.counts.items():
            if value in classes or value - 1 in classes:
                row[value + 1] = count
        row /= max(row.sum(), 1)
    likely = np.log(shares.mean(0) + 1e-4)
    found = {}
    for row, f in zip(shares, masks, strict=True):
        here = float(row @ likely)
        gains = {step: float(np.roll(row, step) @ likely) - here for step in (-1, 1)}
        step = max(gains, key=lambda s: gains[s])
        if gains[step] > _SHIFT_GAIN:
            found[f.pair.mask] = step
    return found
