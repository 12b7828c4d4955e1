"""Facts of each sample's files; every image and mask is decoded once, in threads.

Nothing is judged here, and no file is written.
"""

import filecmp
import hashlib
import itertools
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from deeplab_jax.data import images
from deeplab_jax.data.labels import ColorTable
from deeplab_jax.errors import DataError
from deeplab_jax.utils.machine import num_cores

_MODES = {"LA": "grey and alpha", "La": "grey and alpha", "PA": "palette and alpha",
          "F": "fractions"}  # fmt: skip
_MAX_COLORS = 1000  # kept of one mask; a table of classes has fewer
_KERNEL = np.ones((3, 3), np.uint8)

Color = tuple[int, int, int]


class Pair(NamedTuple):
    """Paths of a sample's image and mask; the path of a missing file is empty."""

    split: str
    stem: str
    image: str
    mask: str


@dataclass
class SampleFacts:
    """Facts of one sample's files."""

    pair: Pair
    image_size: tuple[int, int] | None = None  # (height, width), upright; None if unreadable
    image_error: str = ""  # why the image cannot be decoded
    image_fix: str = ""  # what to do about it
    image_hash: bytes = b""  # digest of size and pixels; equal for equal pictures alone
    image_mode: str = ""  # Pillow's mode, such as "RGB", "L" or "CMYK"
    image_values: tuple[int, ...] = ()  # smallest and largest of a 16-bit image; empty: 8 bits
    orientation: int = 1  # EXIF orientation of the image; 1 is upright
    is_same_file: bool = False  # image and mask are one file, or equal files
    mask_size: tuple[int, int] | None = None  # (height, width); None if the mask cannot be decoded
    mask_error: str = ""  # why the mask cannot be used as it is
    mask_fix: str = ""  # what to do about it
    mask_kind: str = ""  # "index", "palette", "color" or "lossy"
    mask_hash: bytes = b""  # digest of size and values
    mask_orientation: int = 1  # EXIF orientation of the mask
    # {value: pixels}, in declared colours {class: pixels}, in grey stored as RGB {grey: pixels}
    counts: dict[int, int] = field(default_factory=dict)
    # {value: pixels whose eight neighbours have the same value}
    interior: dict[int, int] = field(default_factory=dict)
    palette: dict[int, Color] = field(default_factory=dict)  # {value used: its colour}
    colors: dict[Color, int] = field(default_factory=dict)  # undeclared; pixels of the first 1000
    seconds: float = 0.0  # processor time of the thread
    decode_seconds: float = 0.0  # share of `seconds` spent reading and decoding

    @property
    def is_grey(self) -> bool:
        """Whether a mask in undeclared colours holds shades of grey alone."""
        return bool(self.colors) and all(r == g == b for r, g, b in self.colors)


def scan(pairs: Sequence[Pair], color_table: ColorTable | None = None) -> Iterator[SampleFacts]:
    """Yields the facts of the samples, in order, read by one thread for each core."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the samples are shared out, not their pixels
    pool = ThreadPoolExecutor(num_cores())  # decoding holds no lock of Python's
    try:
        yield from pool.map(lambda pair: scan_sample(pair, color_table), pairs)
    finally:
        pool.shutdown(cancel_futures=True)
        cv2.setNumThreads(threads)


def scan_sample(pair: Pair, color_table: ColorTable | None = None) -> SampleFacts:
    """Returns the facts of one sample; errors of its files are facts, and are not raised."""
    facts, began = SampleFacts(pair), time.thread_time()
    if pair.image:
        try:
            image = images.read_pixels(pair.image)
            with Image.open(pair.image) as header:
                facts.image_mode, facts.orientation = header.mode, images.orientation(header)
            facts.decode_seconds += time.thread_time() - began
            facts.image_size, facts.image_hash = image.shape[:2], _digest(image)
            if image.dtype == np.uint16:
                facts.image_values = int(image.min()), int(image.max())
        except DataError as error:
            facts.image_error, facts.image_fix = error.what, error.fix
    if pair.mask:
        try:
            _scan_mask(facts, color_table)
        except DataError as error:
            facts.mask_error, facts.mask_fix = error.what, error.fix
    if facts.image_size and facts.mask_size:
        with suppress(OSError):  # compares contents where sizes are equal alone
            facts.is_same_file = filecmp.cmp(pair.image, pair.mask, shallow=False)
    facts.seconds = time.thread_time() - began
    return facts


def _digest(pixels: np.ndarray) -> bytes:
    return hashlib.sha256(np.array(pixels.shape).tobytes() + pixels.data).digest()


def _scan_mask(facts: SampleFacts, color_table: ColorTable | None) -> None:
    path, began = facts.pair.mask, time.thread_time()
    try:
        if color_table is None:
            label = images.read_label(path)
        else:
            label = color_table(path, images.read_color_label(path))
    except DataError:
        _look_at_refused(facts)
        raise
    with Image.open(path) as header:
        facts.mask_orientation = images.orientation(header)
        palette = header.getpalette() if header.mode == "P" else None
    facts.decode_seconds += time.thread_time() - began
    facts.mask_kind = "index" if palette is None else "palette"
    facts.mask_size, facts.mask_hash = label.shape, _digest(label)
    _count_values(facts, label)
    if palette:
        entries = [*zip(palette[::3], palette[1::3], palette[2::3], strict=False)]
        facts.palette = {v: entries[v] for v in facts.counts if v < len(entries)}


def _count_values(facts: SampleFacts, label: np.ndarray) -> None:
    is_inside = cv2.erode(label, _KERNEL) == cv2.dilate(label, _KERNEL)
    facts.counts, facts.interior = _histogram(label), _histogram(label, is_inside)


def _histogram(label: np.ndarray, where: np.ndarray | None = None) -> dict[int, int]:
    if label.dtype == np.uint8:  # twice as fast as bincount
        mask = None if where is None else where.view(np.uint8)
        counts = cv2.calcHist([label], [0], mask, [256], [0, 256]).ravel().astype(np.int64)
    else:
        counts = np.bincount(label.ravel() if where is None else label[where])
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def _look_at_refused(facts: SampleFacts) -> None:
    """Fills in the facts of a mask that is no index mask; refuses modes without any colours."""
    path, began = facts.pair.mask, time.thread_time()
    try:
        images.read_size(path)  # refuses pipes, which would wait, and formats that run programs
    except DataError:
        return
    with Image.open(path) as header:
        kind, mode, size = header.format, header.mode, header.size
    if kind in images.LOSSY_FORMATS:
        facts.mask_kind, facts.mask_size = "lossy", size[::-1]
    elif mode in ("RGB", "RGBA"):
        colors = images.read_color_label(path)
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
    pairs = itertools.islice(zip(values.tolist(), counts, strict=True), _MAX_COLORS)
    return {(v & 255, v >> 8 & 255, v >> 16 & 255): n for v, n in pairs}
