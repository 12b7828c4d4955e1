"""One split of a data set as the rest of the package sees it, whatever it is read from.

VOC, ADE20k and Cityscapes in their official layouts (sssegmentation's table), and a folder of
one's own (`files`, `labels`); the same samples can come from TFDS or a cache (`sources`).
"""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import cv2
import numpy as np

from deeplab_jax.config import TRAIN_IDS
from deeplab_jax.data.files import LOSSY_SUFFIXES, Files, find_files
from deeplab_jax.data.labels import INVALID, ColorTable, label_map, open_classes
from deeplab_jax.data.sources import FolderSource, Source, SubsetSource
from deeplab_jax.errors import DataError, shorten


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a data set; picklable, and reads nothing until asked.

    Attributes:
      name: "voc", "ade20k", "cityscapes" or "folder".
      split: such as "train" or "val".
      ids: names of the samples, in the source's order.
      class_names: of classes 0, ..., C - 1.
      palette: uint8 (C, 3), RGB.
      label_map: int16 (65536,), from a mask's value to a class, 255 (ignored) or -1 (invalid).
      source: where samples are read.
    """

    name: str
    split: str
    ids: tuple[str, ...]
    class_names: tuple[str, ...]
    palette: np.ndarray
    label_map: np.ndarray
    source: Source

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
            raise DataError(
                mask_name,
                f"is {raw.shape[0]} x {raw.shape[1]} pixels (height x width), but its image "
                f"{image_name} is {image.shape[0]} x {image.shape[1]}",
                _size_fix(image.shape, raw.shape),
            )
        return image, self.to_classes(index, raw)

    def to_classes(self, index: int, raw: np.ndarray) -> np.ndarray:
        """Returns the classes of sample `index`, uint8 (H, W), whose mask was read as `raw`.

        Raises:
          DataError: the mask has a value that means nothing.
        """
        classes = self.label_map
        if raw.dtype == np.uint8:
            classes = classes[:256]
            count = len(self.class_names)
            is_kept = np.array_equal(classes, [*range(count), *[INVALID] * (255 - count), 255])
            if is_kept and not cv2.hasNonZero(cv2.inRange(raw, count, 254)):
                return raw  # a twentieth of the time of counting and looking up
            counts = cv2.calcHist([raw], [0], None, [256], [0, 256]).ravel()
        else:
            counts = np.bincount(raw.ravel(), minlength=len(classes))
        bad = np.flatnonzero((counts > 0) & (classes == INVALID))
        if bad.size:
            raise DataError(
                self.source.names(index)[1],
                f"has values {_ranges(bad)}; accepted are "
                f"{_ranges(np.flatnonzero(self.label_map != INVALID))}",
                "correct the mask, config.model.num_classes, or what config.data says of masks",
            )
        table = classes.astype(np.uint8)
        return cv2.LUT(raw, table) if raw.dtype == np.uint8 else table[raw]

    def select(self, indices: Sequence[int]) -> "Dataset":
        """Returns the data set of some of its samples, in the given order."""
        ids = tuple(self.ids[index] for index in indices)
        return dataclasses.replace(self, ids=ids, source=SubsetSource(self.source, tuple(indices)))


def open_dataset(data_config: Any, num_classes: int, split: str) -> Dataset:
    """Returns a split of the data set that the configuration names, all its files found.

    Args:
      data_config: `config.data`, checked.
      num_classes: `config.model.num_classes`.
      split: `config.data.train_split` or `config.data.val_split`.

    Raises:
      DataError: a folder, list, image or mask is missing, or there are none.
      ConfigError: the data set has another number of classes.
    """
    if data_config.source == "tfds":
        from deeplab_jax.data.builders import open_tfds

        return open_tfds(data_config, num_classes, split)
    if data_config.source == "cache":
        from deeplab_jax.data.cache import open_cache

        return open_cache(data_config, num_classes, split)
    return _open_folder(data_config, num_classes, split)


def _open_folder(data_config: Any, num_classes: int, split: str) -> Dataset:
    classes = open_classes(data_config, num_classes)
    files = find_files(data_config, split)
    if data_config.dataset == "cityscapes" and not data_config.mask_suffix and not files.masks:
        data_config = data_config.copy_and_resolve_references()  # the caller's stays as it was
        data_config.mask_suffix = TRAIN_IDS
        files = find_files(data_config, split)
    _check_complete(data_config.root, split, files)
    is_color = data_config.mask_format == "color"
    return Dataset(
        name=data_config.dataset,
        split=split,
        ids=tuple(stem + files.id_suffix for stem in files.stems),
        class_names=classes.names,
        palette=classes.palette,
        label_map=label_map(data_config, num_classes),
        source=FolderSource(
            tuple(files.images[stem] for stem in files.stems),
            tuple(files.masks[stem] for stem in files.stems),
            ColorTable(classes) if is_color else None,
        ),
    )


def _check_complete(root: str, split: str, files: Files) -> None:
    if not files.stems:
        fix = "check the folder or list of ids"
        raise DataError(str(root), f"split {split!r} has no images", fix)
    outside = [s for s in files.stems if os.path.isabs(s) or ".." in PurePosixPath(s).parts]
    if outside:
        what = f"split {split!r} lists what lies outside ({shorten(outside)}); none was opened"
        fix = "list images under config.data.images, by their path there without the suffix"
        raise DataError(str(root), what, fix)
    missing = []
    for kind, found in (("images", files.images), ("masks", files.masks)):
        names = [stem for stem in files.stems if stem not in found]
        if names:
            missing.append(f"{len(names)} {kind} missing ({shorten(names)})")
    if missing:
        what = f"split {split!r} of {len(files.stems)} samples: {'; '.join(missing)}"
        raise DataError(str(root), what, "add them, or remove these samples")
    lossy = [files.masks[s] for s in files.stems if files.masks[s].lower().endswith(LOSSY_SUFFIXES)]
    if lossy:
        what = f"is a JPEG or WebP, which changes class indices ({len(lossy)} such masks)"
        raise DataError(lossy[0], what, "store masks as PNG")


def _size_fix(image_shape: tuple[int, ...], mask_shape: tuple[int, ...]) -> str:
    fix = "give both one size"
    if image_shape[1::-1] == mask_shape:
        fix += "; it seems that one has an EXIF orientation, by which it is turned when read, and "
        fix += "the other none: turn the pixels of the one and drop its tag"
    return fix


def _ranges(values: np.ndarray) -> str:
    """Returns sorted whole numbers as text: "0..4, 255"."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)
