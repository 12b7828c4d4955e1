"""Samples of a data set that a caller in Python brings."""

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from deeplab_jax.config import IGNORE_INDEX
from deeplab_jax.data.colors import safe_palette
from deeplab_jax.data.dataset import Dataset
from deeplab_jax.data.labels import INVALID
from deeplab_jax.errors import ConfigError, DataError, clip, shorten

_MEMBERS = ("__len__", "read", "ids", "class_names")


class GivenData(Protocol):
    """A data set of a caller's own. Several threads call `read` at once.

    It may also have `palette`, uint8 (C, 3) RGB, the classes' colours, and `fingerprint()`, which
    returns a text that changes when samples do; without it, ids alone tell two data sets apart.
    Where `config.data.num_workers` is not 0, it is picklable.

    Attributes:
      ids: N different names of the samples.
      class_names: names of classes 0, ..., C - 1.
    """

    ids: Sequence[str]
    class_names: Sequence[str]

    def __len__(self) -> int: ...

    def read(self, index: int, /) -> tuple[np.ndarray, np.ndarray]:
        """Returns image uint8 (H, W, 3) RGB and label, whole numbers (H, W), 255 = ignored."""
        ...


@dataclass(frozen=True, eq=False)
class GivenSource:
    """Samples of `data`; what it returns is checked."""

    data: GivenData
    name: str  # of the argument, such as "train_data"
    ids: tuple[str, ...]
    mark: str  # what `data.fingerprint` returned, or ""

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the image and the label, uint8."""
        where = self.names(index)[0]
        try:
            image, label = map(np.asarray, self.data.read(index))
        except (TypeError, ValueError) as error:
            what = f"does not return an image and a label ({clip(str(error))})"
            raise DataError(where, what, "return (image, label), two arrays") from error
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            what = f"returns an image {image.dtype} {image.shape}"
            raise DataError(where, what, "return uint8 (H, W, 3), RGB, not empty")
        if label.dtype.kind not in "iu" or label.ndim != 2:
            what = f"returns a label {label.dtype} {label.shape}"
            raise DataError(where, what, "return whole numbers (H, W): classes, and 255 = ignored")
        ends = [label.min(), label.max()] if label.size else [0]
        if not 0 <= min(ends) <= max(ends) <= IGNORE_INDEX:
            what = f"returns a label with values {min(ends)} to {max(ends)}"
            raise DataError(where, what, "return classes from 0 on, and 255 for ignored pixels")
        return np.ascontiguousarray(image), label.astype(np.uint8)

    def read_mask(self, index: int) -> np.ndarray:
        """Returns the label."""
        return self.read(index)[1]

    def stamp(self, index: int) -> str:
        """Returns the data set's fingerprint; "" if it has none."""
        return self.mark

    def names(self, index: int) -> tuple[str, str]:
        """Returns the calls that read the image and its label."""
        call = f"{self.name}.read({index}) of {clip(self.ids[index])!r}"
        return call, f"the label of {call}"


def open_given(data: GivenData, name: str, num_classes: int, split: str) -> Dataset:
    """Returns a caller's data set as a split of one.

    Args:
      data: the data set; no sample is read.
      name: of the argument in messages, such as "train_data".
      num_classes: `config.model.num_classes`.
      split: name of the split.

    Raises:
      TypeError: `data` lacks a member.
      ValueError: its ids are not one for each sample, or its colours not one for each class.
      DataError: it is empty.
      ConfigError: it has another number of classes.
    """
    if absent := [member for member in _MEMBERS if not hasattr(data, member)]:
        kind, accepted = type(data).__name__, ", ".join(f"`{member}`" for member in _MEMBERS)
        raise TypeError(f"`{name}` must have {accepted}; {kind} has no `{absent[0]}`.")
    ids, class_names = tuple(map(str, data.ids)), tuple(map(str, data.class_names))
    if len(ids) != len(data):
        raise ValueError(
            f"`{name}.ids` must be one for each of {len(data)} samples, got {len(ids)}."
        )
    if twice := sorted(text for text, count in Counter(ids).items() if count > 1):
        raise ValueError(f"`{name}.ids` must differ; given twice: {shorten(twice, 4)}.")
    if not ids:
        raise DataError(name, "has no sample", "give a data set with samples")
    if len(class_names) != num_classes:
        what = f"is {num_classes}, and `{name}` has {len(class_names)} class names"
        fix = f"set config.model.num_classes = {len(class_names)}"
        raise ConfigError("config.model.num_classes", what, fix)
    palette = np.asarray(getattr(data, "palette", safe_palette(num_classes)), np.uint8)
    if palette.shape != (num_classes, 3):
        raise ValueError(f"`{name}.palette` must be uint8 ({num_classes}, 3), got {palette.shape}.")
    mark = str(data.fingerprint()) if hasattr(data, "fingerprint") else ""
    return Dataset(
        name=type(data).__name__,
        split=split,
        ids=ids,
        class_names=class_names,
        palette=palette,
        label_map=_classes(num_classes),
        source=GivenSource(data, name, ids, mark),
        mark=mark,
    )


@functools.cache
def _classes(num_classes: int) -> np.ndarray:
    """Returns the label map of values that are classes already."""
    table = np.full(65536, INVALID, np.int16)
    table[:num_classes] = np.arange(num_classes)
    table[IGNORE_INDEX] = IGNORE_INDEX
    return table
