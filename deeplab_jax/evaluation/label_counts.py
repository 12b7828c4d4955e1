"""Pixels of each class in a split's masks, counted before training or an evaluation.

Masks alone are read. Their counts are kept in `label_counts.json` of the work directory, so that a
continued run or a later evaluation of the same files counts nothing again. A data set of a caller's
own without `fingerprint()` is counted anew: its ids do not tell its pixels.
"""

import hashlib
import json
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deeplab_jax.config import IGNORE_INDEX, DataConfig
from deeplab_jax.data import Dataset
from deeplab_jax.data.pipeline import num_threads
from deeplab_jax.data.workers import in_threads, reading
from deeplab_jax.distributed import hosts
from deeplab_jax.errors import DataError, ResourceError, shorten
from deeplab_jax.utils.atomic import atomic_write
from deeplab_jax.utils.progress import counting

# {split: {stamp of its files: [class 0's pixels, ..., ignored ones, then as `around`]}}
FILE = "label_counts.json"
_KEPT = 2  # counts of a split: with its bad samples and without, where both splits are one
_MOSTLY = 0.9  # share of ignored pixels from which on it is said


class LabelCounts(NamedTuple):
    """Sums over the masks of a split.

    Attributes:
      pixels: int64 (C + 1,), pixels of class 0, ..., C - 1 and of what is ignored.
      around: int64 (C,), pixels of any class in the masks that hold class 0, ..., C - 1.
    """

    pixels: np.ndarray
    around: np.ndarray


def count_labels(dataset: Dataset, folder: Path) -> np.ndarray:
    """Returns the pixels of class 0, ..., C - 1 and of what is ignored; see `count_all`."""
    return count_all(dataset, folder).pixels


def count_all(dataset: Dataset, folder: Path) -> LabelCounts:
    """Returns the sums over the masks of a split.

    Hosts share the masks; the first keeps the sums in `folder`, which exists.

    Raises:
      DataError: a mask cannot be read, or has a value that means nothing; on all hosts.
      ReaderError: reading one does not end; on all hosts.
    """
    path, kept, known, stamp = folder / FILE, {}, None, ""
    if hosts.is_primary():  # alone: others may see an older file, or other times
        stamp, kept = _stamp(dataset), _read(path)
        known = kept.get(dataset.split, {}).get(stamp)
    size = len(dataset.class_names) + 1
    known = hosts.all_gather(known)[0]
    if known is not None and len(known) == 2 * size - 1:  # else of a version without `around`
        return LabelCounts(*np.split(np.array(known, np.int64), [size]))
    with hosts.sync_errors():
        own = _count(dataset)
    total: list[int] = np.sum(hosts.all_gather(own.tolist()), axis=0).tolist()
    if stamp:
        counts = {**kept.get(dataset.split, {}), stamp: total}
        kept[dataset.split] = dict([*counts.items()][-_KEPT:])
        # It only saves counting again.
        with suppress(OSError, ResourceError), atomic_write(path) as file:
            file.write(f"{json.dumps(kept)}\n".encode())
    return LabelCounts(*np.split(np.array(total, np.int64), [size]))


def _count(dataset: Dataset) -> np.ndarray:
    """Returns the sums of this host's share of the masks, `pixels` and then `around`."""
    size = len(dataset.class_names)
    own = hosts.own_share(range(len(dataset)))
    total, around = np.zeros(256, np.int64), np.zeros(size, np.int64)
    with counting(len(own), f"masks of split {dataset.split} counted") as count:
        found = in_threads(partial(_of_mask, dataset), own, num_threads(), dataset.source.names)
        for counts in found:
            total += counts
            around += np.where(counts[:size] > 0, counts[:size].sum(), 0)
            count()
    return np.concatenate([total[:size], total[[IGNORE_INDEX]], around])


def _of_mask(dataset: Dataset, index: int) -> np.ndarray:
    with reading(index):
        label = dataset.to_classes(index, dataset.source.read_mask(index))
    return np.bincount(label.ravel(), minlength=256)


def _stamp(dataset: Dataset) -> str:
    """Returns a text that changes with the samples, their masks' files and the values' meaning.

    It is "" where the source cannot tell whether a mask has changed.
    """
    digest = hashlib.sha256(dataset.label_map.tobytes())
    digest.update(f"{dataset.class_names}\n".encode("utf-8", "surrogateescape"))
    digest.update(dataset.palette.tobytes())  # colour masks mean something else by another
    for index, name in enumerate(dataset.ids):
        with suppress(OSError, ValueError):  # no file: reading it will say so
            if not (stamp := dataset.source.stamp(index)):
                return ""
            name += f"\t{stamp}"
        digest.update(f"{name}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _read(path: Path) -> dict[str, dict[str, list[int]]]:
    """Returns what is kept; nothing of a file that is missing or is not ours."""
    with suppress(OSError, ResourceError, ValueError, AttributeError):
        kept = json.loads(path.read_text("utf-8"))
        return {k: v for k, v in kept.items() if all(isinstance(x, list) for x in v.values())}
    return {}


def refuse_none(pixels: np.ndarray, dataset: Dataset, data_config: DataConfig) -> None:
    """Refuses a split to be evaluated of which every pixel is ignored (DataError)."""
    if not pixels[:-1].any():
        what = f"split {dataset.split!r} has no pixel to be scored: all {pixels[-1]} are ignored"
        fix = "name a split whose masks hold classes: --config.data.val_split=NAME"
        raise DataError(data_config.root, what, f"{fix}, or correct what config.data ignores")


def warnings(
    pixels: np.ndarray, dataset: Dataset, data_config: DataConfig, is_training: bool
) -> list[str]:
    """Returns a line for each fact of the counts that is legal but probably a mistake."""
    names, split = dataset.class_names, dataset.split
    counts, ignored, total = pixels[:-1], int(pixels[-1]), int(pixels.sum())
    if not counts.any():
        lines = [f"split {split} has no pixel that counts: all {total} are ignored"]
        return [*dataset.notes, *lines]
    lines = [*dataset.notes]
    absent = [f"{c} ({name})" for c, name in enumerate(names) if not counts[c]]
    if absent:
        have, are = ("has", "is") if len(absent) == 1 else ("have", "are")
        what = (
            f"{len(absent)} of {len(names)} classes {have} no pixel in the masks of split {split}"
        )
        unscored = f"{are} left out of the mean IoU if not predicted"
        loss = "cannot be learnt" if is_training else unscored
        lines.append(f"{what}, and {loss}: {shorten(absent)}")
    is_binary = len(names) == 2 and not counts[1] and 255 in data_config.ignore_values
    if is_binary and ignored and data_config.mask_format == "index":
        lines.append(
            f"the masks of split {split} hold class 0 and ignored values alone; where these are"
            " 0 and 255 for two classes, set --config.data.mask_format=binary"
        )
    if ignored > _MOSTLY * total:
        lines.append(f"{100 * ignored / total:.1f} % of the pixels of split {split} are ignored")
    return lines
