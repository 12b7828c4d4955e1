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
from deeplab_jax.data.pictures import tiff
from deeplab_jax.data.pictures.masks import TRANSPARENT, fault_of_mode, to_index
from deeplab_jax.errors import DataError
from deeplab_jax.utils.machine import num_cores

COLOR_MODES = ("RGB", "RGBA", "RGBX")
_MAX_COLORS = 1000  # kept of one mask; a table of classes has fewer
_OUTSIDE = 1e-3  # share of a 16-bit image's values at each end that may be dead pixels
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
    image_bulk: tuple[int, ...] = ()  # the same without 1 of 1000 values at each end
    image_levels: bytes = b""  # uint16: at most 256 of its different values, in even steps
    has_more_bands: bool = False  # the image is a TIFF of RGB and a band that is not read
    orientation: int = 1  # EXIF orientation of the image; 1 is upright
    is_same_file: bool = False  # image and mask are one file, or equal files
    mask_size: tuple[int, int] | None = None  # (height, width); None if the mask cannot be decoded
    mask_error: str = ""  # why the mask cannot be used as it is
    mask_fix: str = ""  # what to do about it
    mask_kind: str = ""  # "index", "palette", "color" or "lossy"
    mask_hash: bytes = b""  # digest of size and values
    mask_orientation: int = 1  # EXIF orientation of the mask
    # {value: pixels}, in declared colours {class: pixels}; without transparent pixels
    counts: dict[int, int] = field(default_factory=dict)
    # {value: pixels whose eight neighbours have the same value}
    interior: dict[int, int] = field(default_factory=dict)
    palette: dict[int, Color] = field(default_factory=dict)  # {value used: its colour}
    # undeclared, also those that encode an index; pixels of the first 1000
    colors: dict[Color, int] = field(default_factory=dict)
    mask_mode: str = ""  # Pillow's mode
    transparent: int = 0  # pixels of the mask
    seconds: float = 0.0  # processor time of the thread
    decode_seconds: float = 0.0  # share of `seconds` spent reading and decoding


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
                facts.has_more_bands = tiff.has_unmarked_band(images.directory_of(header))
            facts.decode_seconds += time.thread_time() - began
            facts.image_size, facts.image_hash = image.shape[:2], _digest(image)
            if image.dtype == np.uint16:
                _count_depth(facts, image)
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


def _count_depth(facts: SampleFacts, image: np.ndarray) -> None:
    counts = np.bincount(image.ravel())
    levels = np.flatnonzero(counts)
    facts.image_values = int(levels[0]), int(levels[-1])
    ends = np.searchsorted(np.cumsum(counts), [_OUTSIDE * image.size, (1 - _OUTSIDE) * image.size])
    facts.image_bulk = max(int(ends[0]), int(levels[0])), min(int(ends[1]), int(levels[-1]))
    steps = np.linspace(0, len(levels) - 1, min(len(levels), 256)).round().astype(int)
    facts.image_levels = levels[steps].astype(np.uint16).tobytes()


def _digest(pixels: np.ndarray) -> bytes:
    return hashlib.sha256(np.array(pixels.shape).tobytes() + pixels.data).digest()


def _scan_mask(facts: SampleFacts, color_table: ColorTable | None) -> None:
    path, began = facts.pair.mask, time.thread_time()
    images.read_size(path)  # refuses pipes, which would wait, and formats that run programs
    with Image.open(path) as header:
        kind, mode, size = header.format, header.mode, header.size
        facts.mask_mode = mode
        facts.mask_orientation = images.orientation(header)
        palette = header.getpalette() if mode == "P" else None
    is_lossy = kind in images.LOSSY_FORMATS
    if is_lossy:
        facts.mask_kind, facts.mask_size = "lossy", size[::-1]
    if color_table or (mode in COLOR_MODES and not is_lossy):
        colors = images.read_color_label(path)
        facts.decode_seconds += time.thread_time() - began
        if colors.shape[2] == 4:
            facts.transparent = int((colors[..., 3] == 0).sum())
        label = _label_of_colors(facts, colors, mode, color_table)
    else:
        label = images.read_label(path)
        facts.decode_seconds += time.thread_time() - began
        facts.transparent = int((label == TRANSPARENT).sum()) if label.dtype == np.int32 else 0
    facts.mask_kind = "index" if palette is None else "palette"
    facts.mask_size, facts.mask_hash = label.shape, _digest(label)
    _count_values(facts, label)
    if palette:
        entries = [*zip(palette[::3], palette[1::3], palette[2::3], strict=False)]
        facts.palette = {v: entries[v] for v in facts.counts if v < len(entries)}


def _label_of_colors(
    facts: SampleFacts, colors: np.ndarray, mode: str, color_table: ColorTable | None
) -> np.ndarray:
    """Returns the classes of declared colours, or the index that colours encode.

    Raises:
      DataError: they are neither; the facts then hold them.
    """
    path, fault = facts.pair.mask, None
    if color_table is not None:
        try:
            return color_table(path, colors)
        except DataError as error:
            fault = error
    if mode in COLOR_MODES:
        facts.colors = _count_colors(colors)
        label = None if fault else to_index(path, colors)
        if label is not None:
            return label
        facts.mask_kind, facts.mask_size = "color", colors.shape[:2]
    raise fault or DataError(path, *fault_of_mode(mode, None))


def _count_values(facts: SampleFacts, label: np.ndarray) -> None:
    if label.dtype == np.int32:  # transparent pixels are no value, but an edge for the others
        label = label.astype(np.int16)
    is_inside = cv2.erode(label, _KERNEL) == cv2.dilate(label, _KERNEL)
    facts.counts, facts.interior = _histogram(label), _histogram(label, is_inside)


def _histogram(label: np.ndarray, where: np.ndarray | None = None) -> dict[int, int]:
    if label.dtype == np.uint8:  # twice as fast as bincount
        mask = None if where is None else where.view(np.uint8)
        counts = cv2.calcHist([label], [0], mask, [256], [0, 256]).ravel().astype(np.int64)
    else:
        values = label.ravel() if where is None else label[where]
        counts = np.bincount(values[values != TRANSPARENT])
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def _count_colors(colors: np.ndarray) -> dict[Color, int]:
    if colors.shape[2] == 4:
        # What transparent pixels hide is no class.
        colors = np.ascontiguousarray(colors[colors[..., 3] > 0][None, :, :3])
    if not colors.size:
        return {}
    codes = cv2.cvtColor(colors, cv2.COLOR_RGB2RGBA).view("<u4").ravel()  # alpha, B, G, R
    # By runs of one colour, of which a mask has few: sorting all pixels takes longer than decoding.
    starts = np.concatenate(([0], np.flatnonzero(codes[1:] != codes[:-1]) + 1, [codes.size]))
    values, which = np.unique(codes[starts[:-1]], return_inverse=True)
    counts = np.bincount(which, np.diff(starts)).astype(int).tolist()
    pairs = itertools.islice(zip(values.tolist(), counts, strict=True), _MAX_COLORS)
    return {(v & 255, v >> 8 & 255, v >> 16 & 255): n for v, n in pairs}
