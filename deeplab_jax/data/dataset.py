"""One split of a data set as the rest of the package sees it, whatever source it is read from."""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from deeplab_jax.config import IGNORE_INDEX
from deeplab_jax.data.labels import INVALID, value_ranges
from deeplab_jax.data.pictures.masks import TRANSPARENT
from deeplab_jax.errors import DataError


class SampleSource(Protocol):
    """Random access to the samples of one split; picklable, and opens no file before `read`."""

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the image, uint8 (H, W, 3) RGB, and the raw mask, see `read_mask`.

        Raises:
          DataError: one of them cannot be read. Sizes and values are not checked.
        """
        ...

    def read_mask(self, index: int) -> np.ndarray:
        """Returns the raw mask alone, (H, W): uint8, uint16, or int32 with `TRANSPARENT`."""
        ...

    def stamp(self, index: int) -> str:
        """Returns a text that changes when the stored mask does, unread; "" if that is unknown."""
        ...

    def names(self, index: int) -> tuple[str, str]:
        """Returns the names of the image and the mask in messages."""
        ...


@dataclass(frozen=True, eq=False)
class SubsetSource:
    """Some samples of another source, in the order of `indices`."""

    source: SampleSource
    indices: Sequence[int]

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the image and the raw mask."""
        return self.source.read(self.indices[index])

    def read_mask(self, index: int) -> np.ndarray:
        """Returns the raw mask."""
        return self.source.read_mask(self.indices[index])

    def stamp(self, index: int) -> str:
        """Returns the mask's stamp."""
        return self.source.stamp(self.indices[index])

    def names(self, index: int) -> tuple[str, str]:
        """Returns the names of the image and the mask in messages."""
        return self.source.names(self.indices[index])


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a data set; picklable, and opens no sample before `read`."""

    name: str  # "voc", "ade20k", "cityscapes" or "folder"
    split: str  # name of the split, such as "train"
    ids: tuple[str, ...]  # names of the samples, in the source's order
    class_names: tuple[str, ...]  # names of classes 0, ..., C - 1
    palette: np.ndarray  # uint8 (C, 3), RGB
    label_map: np.ndarray  # int16 (65536,): mask value -> class, 255 (ignored), -1 (invalid)
    source: SampleSource
    notes: tuple[str, ...] = ()  # what was guessed of its lists, a line each
    mark: str = ""  # what else its fingerprint depends on

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the image, uint8 (H, W, 3) RGB, and its classes, uint8 (H, W), 255 = ignored.

        Raises:
          DataError: a file cannot be read, the sizes differ, or the mask has a value that means
            nothing.
        """
        image, raw = self.source.read(index)
        if image.shape[:2] != raw.shape:
            image_name, mask_name = self.source.names(index)
            what = f"is {raw.shape[0]} x {raw.shape[1]} pixels (height x width), but its image "
            what += f"{image_name} is {image.shape[0]} x {image.shape[1]}"
            fix = "give both one size"
            if image.shape[1::-1] == raw.shape:
                fix += "; it seems that one has an EXIF orientation, by which it is turned when "
                fix += "read, and the other none: turn the pixels of the one and drop its tag"
            raise DataError(mask_name, what, fix)
        return image, self.to_classes(index, raw)

    def to_classes(self, index: int, raw: np.ndarray) -> np.ndarray:
        """Returns the classes of sample `index`, uint8 (H, W), whose mask was read as `raw`.

        Raises:
          DataError: `raw` has a value that means nothing.
        """
        if raw.dtype == np.int32:
            is_transparent = raw == TRANSPARENT
            known = np.flatnonzero(self.label_map != INVALID)[0]  # any value that means something
            found = self.to_classes(index, np.where(is_transparent, known, raw).astype(np.uint16))
            return np.where(is_transparent, np.uint8(IGNORE_INDEX), found)
        classes = self.label_map
        if raw.dtype == np.uint8:
            classes = classes[:256]
            count = len(self.class_names)
            is_kept = np.array_equal(classes, [*range(count), *[INVALID] * (255 - count), 255])
            if is_kept and not cv2.hasNonZero(cv2.inRange(raw, count, 254)):
                return raw  # 20 times faster than counting and looking up
            counts = cv2.calcHist([raw], [0], None, [256], [0, 256]).ravel()
        else:
            counts = np.bincount(raw.ravel(), minlength=len(classes))
        bad = np.flatnonzero((counts > 0) & (classes == INVALID))
        if bad.size:
            what = f"has values {', '.join(value_ranges(bad))}; accepted are "
            what += ", ".join(value_ranges(np.flatnonzero(self.label_map != INVALID)))
            fix = "correct the mask, config.model.num_classes, or what config.data says of masks"
            raise DataError(self.source.names(index)[1], what, fix)
        table = classes.astype(np.uint8)
        return cv2.LUT(raw, table) if raw.dtype == np.uint8 else table[raw]

    def fingerprint(self) -> str:
        """Returns a text that changes with `mark`, and with samples added, removed, renamed."""
        names = [*self.ids, self.mark] if self.mark else self.ids
        digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
        return f"{len(self)} images ({digest[:12]})"

    def select(self, indices: Sequence[int]) -> "Dataset":
        """Returns the data set of some of its samples, in the given order."""
        ids = tuple(self.ids[index] for index in indices)
        return dataclasses.replace(self, ids=ids, source=SubsetSource(self.source, tuple(indices)))
