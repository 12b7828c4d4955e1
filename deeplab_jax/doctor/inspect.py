"""What the files of a data set hold: every image and mask decoded once, in threads.

`scan` turns samples into `Facts`; `infer_values` says which mask values are classes. What of it is
a fault is decided in `findings.py`. Nothing here writes a file.
"""

import filecmp
import hashlib
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from deeplab_jax.data.images import orientation, read_color_label, read_image, read_label, read_size
from deeplab_jax.data.labels import ColorTable
from deeplab_jax.errors import DataError

_LOSSY_FORMATS = ("JPEG", "MPO", "WEBP")
_MODES = {
    "LA": "grey and alpha",
    "La": "grey and alpha",
    "PA": "palette and alpha",
    "F": "fractions",
}
_MAX_COLORS = 1000  # kept of one mask; a table of classes has fewer
_KERNEL = np.ones((3, 3), np.uint8)

Color = tuple[int, int, int]


class Sample(NamedTuple):
    """Paths of an image and its mask, empty where one is missing."""

    split: str
    stem: str
    image: str
    mask: str


@dataclass
class Facts:
    """What one sample holds.

    Attributes:
      sample: whose facts these are.
      image_size: (height, width) as opened, upright; None where it cannot be decoded.
      image_error: why it cannot.
      image_hash: of the decoded pixels, equal for equal pictures alone.
      image_mode: Pillow's, such as "RGB", "L" or "CMYK".
      orientation: of the EXIF data; 1 is upright.
      is_same_file: image and mask are one file, or equal files.
      mask_size: (height, width); None where it cannot be decoded.
      mask_error: why it cannot be used as it is.
      mask_kind: "index", "palette", "color" or "lossy".
      mask_hash: of the decoded values.
      mask_orientation: as `orientation`.
      counts: {value: pixels}; of a mask in declared colours {class: pixels}; of colours that are
        all grey {grey: pixels}.
      interior: {value: pixels whose eight neighbours have the same value}.
      palette: {value used: its colour} of a palette mask.
      colors: {colour: pixels} of a mask in colours that are not declared, the first 1000.
      seconds: of this thread's processor, of which `decode_seconds` reading and decoding.
    """

    sample: Sample
    image_size: tuple[int, int] | None = None
    image_error: str = ""
    image_hash: bytes = b""
    image_mode: str = ""
    orientation: int = 1
    is_same_file: bool = False
    mask_size: tuple[int, int] | None = None
    mask_error: str = ""
    mask_kind: str = ""
    mask_hash: bytes = b""
    mask_orientation: int = 1
    counts: dict[int, int] = field(default_factory=dict)
    interior: dict[int, int] = field(default_factory=dict)
    palette: dict[int, Color] = field(default_factory=dict)
    colors: dict[Color, int] = field(default_factory=dict)
    seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def is_grey(self) -> bool:
        """Whether a mask in colours that are not declared holds shades of grey alone."""
        return bool(self.colors) and all(r == g == b for r, g, b in self.colors)


def scan(samples: Sequence[Sample], color_table: ColorTable | None = None) -> Iterator[Facts]:
    """Yields the facts of the samples, in order, read in as many threads as there are cores.

    Args:
      samples: what to read.
      color_table: of masks in declared colours.
    """
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the samples are shared out, not their pixels
    pool = ThreadPoolExecutor(num_cores())  # decoding holds no lock of Python's
    try:
        yield from pool.map(lambda sample: scan_sample(sample, color_table), samples)
    finally:
        pool.shutdown(cancel_futures=True)
        cv2.setNumThreads(threads)


def num_cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def scan_sample(sample: Sample, color_table: ColorTable | None = None) -> Facts:
    """Returns what one sample holds; what is wrong with it is told there, never raised."""
    facts, began = Facts(sample), time.thread_time()
    if sample.image:
        try:
            image = read_image(sample.image)
            with Image.open(sample.image) as header:
                facts.image_mode = header.mode
                facts.orientation = orientation(header)
            facts.decode_seconds += time.thread_time() - began
            facts.image_size = image.shape[:2]
            shape = np.array(image.shape).tobytes()
            facts.image_hash = hashlib.sha256(shape + image.data).digest()
        except DataError as error:
            facts.image_error = error.what
    if sample.mask:
        try:
            _scan_mask(facts, color_table)
        except DataError as error:
            facts.mask_error = error.what
    if facts.image_size and facts.mask_size:
        facts.is_same_file = _is_same_file(sample.image, sample.mask)
    facts.seconds = time.thread_time() - began
    return facts


def _is_same_file(one: str, other: str) -> bool:
    try:  # compares contents where sizes are equal alone
        return filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False


def _scan_mask(facts: Facts, color_table: ColorTable | None) -> None:
    path, began = facts.sample.mask, time.thread_time()
    try:
        if color_table is None:
            label = read_label(path)
        else:
            label = color_table(path, read_color_label(path))
    except DataError:
        _look_at_refused(facts)
        raise
    with Image.open(path) as header:
        facts.mask_orientation = orientation(header)
        palette = header.getpalette() if header.mode == "P" else None
    facts.decode_seconds += time.thread_time() - began
    facts.mask_kind = "index" if palette is None else "palette"
    facts.mask_size = label.shape
    facts.mask_hash = hashlib.sha256(np.array(label.shape).tobytes() + label.data).digest()
    _count_values(facts, label)
    if palette:
        entries = [*zip(palette[::3], palette[1::3], palette[2::3], strict=False)]
        facts.palette = {v: entries[v] for v in facts.counts if v < len(entries)}


def _count_values(facts: Facts, label: np.ndarray) -> None:
    facts.counts = _histogram(label)
    if len(facts.counts) > 1:
        is_inside = cv2.erode(label, _KERNEL) == cv2.dilate(label, _KERNEL)
        facts.interior = _histogram(label, is_inside)
    else:
        facts.interior = dict(facts.counts)


def _histogram(label: np.ndarray, where: np.ndarray | None = None) -> dict[int, int]:
    if label.dtype == np.uint8:  # twice as fast as bincount
        mask = None if where is None else where.view(np.uint8)
        counts = cv2.calcHist([label], [0], mask, [256], [0, 256]).ravel().astype(np.int64)
    else:
        counts = np.bincount(label.ravel() if where is None else label[where])
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def _look_at_refused(facts: Facts) -> None:
    """Fills in what can be said of a mask that is no index mask.

    Raises:
      DataError: it is of a mode that holds neither indices nor colours.
    """
    path, began = facts.sample.mask, time.thread_time()
    try:
        read_size(path)  # refuses pipes, which would wait, and formats that run programs
    except DataError:
        return
    with Image.open(path) as header:
        kind, mode, size = header.format, header.mode, header.size
    if kind in _LOSSY_FORMATS:
        facts.mask_kind, facts.mask_size = "lossy", size[::-1]
    elif mode in ("RGB", "RGBA"):
        colors = read_color_label(path)
        facts.decode_seconds += time.thread_time() - began
        facts.mask_kind, facts.mask_size = "color", colors.shape[:2]
        facts.colors = _count_colors(colors)
        if facts.is_grey:
            _count_values(facts, np.ascontiguousarray(colors[..., 0]))
    elif mode in _MODES:
        what = f"is of mode {mode} ({_MODES[mode]}), not one class index per pixel"
        raise DataError(path, what, "store masks as grey or palette PNG")


def _count_colors(colors: np.ndarray) -> dict[Color, int]:
    codes = cv2.cvtColor(colors, cv2.COLOR_RGB2RGBA).view("<u4").ravel()  # alpha, B, G, R
    # By runs of one colour, of which a mask has few: sorting all pixels takes longer than decoding.
    starts = np.concatenate(([0], np.flatnonzero(codes[1:] != codes[:-1]) + 1, [codes.size]))
    values, which = np.unique(codes[starts[:-1]], return_inverse=True)
    counts = np.bincount(which, np.diff(starts)).astype(int).tolist()
    pairs = zip(values.tolist(), counts, strict=True)
    return {
        (v & 255, v >> 8 & 255, v >> 16 & 255): n for v, n in itertools.islice(pairs, _MAX_COLORS)
    }


class Values(NamedTuple):
    """What the values of a data set's masks seem to mean.

    Attributes:
      classes: values that are classes, in order.
      ignored: values that are not meant to be learnt.
      rare: classes that few masks have, and which may be mistakes.
      stray: {value: masks that hold it}, of few and far from every class.
      blended: {mask: values} of masks whose values look mixed, as resizing or JPEG does.
      shifted: {mask: what to add to its values, -1 or 1, so that they fit the other masks}.
      is_binary: 0 and 255 are all there is, so that 255 is a class.
    """

    classes: tuple[int, ...]
    ignored: tuple[int, ...]
    rare: dict[int, list[str]]
    stray: dict[int, list[str]]
    blended: dict[str, list[int]]
    shifted: dict[str, int]
    is_binary: bool = False


_THIN = 0.1  # largest share of inner pixels of a value that is but a seam between others
_FEW = 5  # a value in so many times fewer masks than is usual is in few
_MIN_BLENDED = 3  # such values of one mask that make it a blended one
_SPECK = 16  # pixels, or 1 in 10,000: a slip of the pen
_MANY = 16  # values, ...
_MOSTLY = 0.6  # ... of which so many are seams, tell a blended mask without looking at others


def infer_values(facts: Sequence[Facts], ignored: Sequence[int] = (255,)) -> Values:
    """Returns which values of the masks are classes, which ignored, and which neither.

    Args:
      facts: of all samples; masks that could not be read are passed over.
      ignored: values that are ignored if they occur.
    """
    masks = [f for f in facts if f.counts]
    used = sorted({value for f in masks for value in f.counts})
    if used == [0, 255] or (used == [255] and 255 not in ignored):
        return Values((0, 255), (), {}, {}, {}, {}, True)
    holders: dict[int, list[Facts]] = {v: [] for v in used if v not in ignored}
    for f in masks:
        for value in f.counts.keys() & holders.keys():
            holders[value].append(f)
    solid = [len(h) for v, h in holders.items() if any(not _is_thin(f, v) for f in h)]
    # Over the masks' values, not over values: many odd ones of one mask are not what is usual.
    usual = float(np.median(np.repeat(solid, solid))) if solid else 0.0
    blended = {}
    for f in masks:
        values = sorted(f.counts.keys() & holders.keys())
        seams = [v for v in values if _is_thin(f, v)]
        few = [v for v in seams if len(holders[v]) * _FEW <= usual]
        if len(few) >= _MIN_BLENDED:
            blended[f.sample.mask] = few
        elif len(values) >= _MANY and len(seams) >= _MOSTLY * len(values):
            blended[f.sample.mask] = seams
    classes: list[int] = []
    rare, stray = {}, {}
    for value, found in holders.items():
        pure = [f for f in found if f.sample.mask not in blended]
        paths = [f.sample.mask for f in pure]
        is_few = len(paths) * _FEW <= usual
        last = classes[-1] if classes else -1
        if not paths:  # in mixed masks alone: a class where there are no others, and it is no seam
            mixed = sum(value in blended[f.sample.mask] for f in found)
            if len(blended) == len(masks) and 2 * mixed < len(found):
                classes.append(value)
            continue
        if is_few and value - last > 4 + last // 8:
            stray[value] = paths
            continue
        classes.append(value)
        if len(paths) * _FEW * _FEW <= usual:
            rare[value] = paths
            if len(paths) * 100 <= len(masks) and all(_is_speck(f, value) for f in pure):
                classes.pop()
                stray[value] = rare.pop(value)
    shifted = find_shifted([f for f in masks if f.sample.mask not in blended], classes)
    for value, paths in list(rare.items()):
        if shifted.keys() >= set(paths):  # a class of no other mask
            classes.remove(value)
            stray[value] = rare.pop(value)
    present = tuple(value for value in used if value in ignored)
    # White beside black, without another class, is no border between classes.
    if (
        classes == [0]
        and 255 in present
        and any(not _is_thin(f, 255) for f in masks if 255 in f.counts)
    ):
        return Values((0, 255), (), rare, stray, blended, {}, True)
    return Values(tuple(classes), present, rare, stray, blended, shifted)


def _is_thin(facts: Facts, value: int) -> bool:
    return facts.interior.get(value, 0) <= _THIN * facts.counts[value]


def _is_speck(facts: Facts, value: int) -> bool:
    return facts.counts[value] <= max(_SPECK, sum(facts.counts.values()) // 10_000)


_SHIFT_GAIN = 0.5  # nats a pixel; CamVid's masks reach 0.2 at most, shifted ones mostly 1


def find_shifted(facts: Sequence[Facts], classes: Sequence[int]) -> dict[str, int]:
    """Returns {mask: -1 or 1}: masks that fit the others better once that is added to each value.

    Compared is how likely a mask's shares of classes are under the mean of all masks. Seen only
    where classes are of different frequency, and only in a minority of the masks.

    Args:
      facts: of all samples.
      classes: values that are classes.
    """
    masks = [f for f in facts if f.counts.keys() & set(classes)]
    size = max(classes, default=0) + 3
    shares = np.zeros((len(masks), size))  # of value v in column v + 1: both neighbours exist
    for row, f in zip(shares, masks, strict=True):
        for value, count in f.counts.items():
            if value in classes or value - 1 in classes:
                row[value + 1] = count
        row /= max(row.sum(), 1)
    if len(masks) < 8:
        return {}
    mean = shares.mean(0)
    likely = np.log(mean + 1e-4)
    found = {}
    for row, f in zip(shares, masks, strict=True):
        here = float(row @ likely)
        gains = {step: float(np.roll(row, step) @ likely) - here for step in (-1, 1)}
        step = max(gains, key=lambda s: gains[s])
        if gains[step] > _SHIFT_GAIN:
            found[f.sample.mask] = step
    return found
