"""Pixels of each class in a split, counted in its masks alone, and what is odd about them."""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from deeplab_jax.config import IGNORE_INDEX, DataConfig
from deeplab_jax.data.dataset import Dataset
from deeplab_jax.data.pipeline import num_threads
from deeplab_jax.data.workers import in_threads, reading
from deeplab_jax.errors import shorten

_MOSTLY_IGNORED = 0.9  # share of the pixels


class LabelCounts(NamedTuple):
    """Pixels of a split's masks."""

    pixels: tuple[int, ...]  # of classes 0, ..., C - 1
    ignored: int


def count_labels(
    dataset: Dataset, indices: Sequence[int], on_mask: Callable[[], None] = lambda: None
) -> LabelCounts:
    """Counts the pixels of some masks, read by threads; `on_mask` is called after each.

    Raises:
      DataError: the first mask that cannot be read, or has a value that means nothing.
      ReaderError: reading one does not end.
    """
    total = np.zeros(256, np.int64)
    read = partial(_count_mask, dataset)
    for counts in in_threads(read, indices, num_threads(), dataset.source.names):
        total += counts
        on_mask()
    *pixels, ignored = total[[*range(len(dataset.class_names)), IGNORE_INDEX]].tolist()
    return LabelCounts(tuple(pixels), ignored)


def _count_mask(dataset: Dataset, index: int) -> np.ndarray:
    """Returns the pixels of each class, int64 (256,)."""
    with reading(index):
        classes = dataset.to_classes(index, dataset.source.read_mask(index))
        return cv2.calcHist([classes], [0], None, [256], [0, 256]).ravel().astype(np.int64)


def fingerprint(dataset: Dataset) -> str:
    """Returns a text that changes with the masks or their meaning; "" where masks are missing.

    Masks are told apart by name, size and time of change; none is opened.
    """
    digest = hashlib.sha256(dataset.label_map.tobytes() + dataset.palette.tobytes())
    try:
        for index, name in enumerate(dataset.ids):
            digest.update(f"{name}\0{dataset.source.stamp(index)}\0".encode(errors="replace"))
    except OSError:
        return ""
    return digest.hexdigest()


def read_kept(path: Path, split: str, masks: str) -> LabelCounts | None:
    """Returns the counts that `path` keeps of a split whose fingerprint is `masks`, else None."""
    try:
        kept = json.loads(path.read_text("utf-8"))[split]
        if masks and kept["masks"] == masks:
            return LabelCounts(tuple(map(int, kept["pixels"])), int(kept["ignored"]))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass  # absent, cut short, or of another version: counted again
    return None


def to_keep(path: Path, split: str, masks: str, counts: LabelCounts) -> str:
    """Returns the content of `path` with the counts of a split added or replaced, as JSON."""
    try:
        kept = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        kept = {}
    kept = kept if isinstance(kept, dict) else {}
    return json.dumps(kept | {split: {"masks": masks, **counts._asdict()}}, indent=1) + "\n"


def oddities(counts: LabelCounts, dataset: Dataset, data: DataConfig, is_train: bool) -> list[str]:
    """Returns a line for each thing that is legal in a split's masks but probably a mistake."""
    split, found = dataset.split, sum(counts.pixels)
    if not found:
        loss = "nothing can be learnt" if is_train else "no IoU can be measured"
        return [f"every pixel of split {split} is ignored: {loss}"]
    lines = []
    absent = [n for n, c in zip(dataset.class_names, counts.pixels, strict=True) if not c]
    if absent:
        one = len(absent) == 1
        if is_train:
            loss = "it cannot be learnt" if one else "they cannot be learnt"
        else:
            loss = f"the mean IoU leaves {'it' if one else 'them'} out, or counts 0 where predicted"
        what = f"class {absent[0]}" if one else f"{len(absent)} classes ({shorten(absent, 5)})"
        lines.append(f"split {split} has no pixel of {what}: {loss}")
    if counts.ignored and counts.pixels[0] == found and _may_be_binary(data):
        flags = "--config.data.mask_format=binary"
        if len(counts.pixels) != 2:
            flags += " --config.model.num_classes=2"
        lines.append(
            f"the masks of split {split} hold 0 and {IGNORE_INDEX} alone, and {IGNORE_INDEX} is "
            f"ignored: if it is a class, add {flags}"
        )
    share = counts.ignored / (found + counts.ignored)
    if share > _MOSTLY_IGNORED:
        lines.append(f"{100 * share:.1f} % of the pixels of split {split} are ignored")
    return lines


def _may_be_binary(data: DataConfig) -> bool:
    """Tells whether class 0 is the value 0, and what is ignored the value 255."""
    is_plain = data.dataset == "folder" and data.mask_format == "index"
    is_plain = is_plain and not data.class_values and not data.reduce_zero_label
    return is_plain and tuple(data.ignore_values) == (IGNORE_INDEX,)
