"""Samples in the files of a folder."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from deeplab_jax.config import TRAIN_IDS, DataConfig
from deeplab_jax.data.dataset import Dataset
from deeplab_jax.data.files import LOSSY_SUFFIXES, Files, find_files
from deeplab_jax.data.images import read_color_label, read_image, read_label
from deeplab_jax.data.labels import ColorTable, label_map, open_classes
from deeplab_jax.errors import DataError, shorten


@dataclass(frozen=True, eq=False)
class FolderSource:
    """Samples in files."""

    image_paths: tuple[str, ...]
    label_paths: tuple[str, ...]  # in the same order
    color_table: ColorTable | None = None  # where the masks hold colours

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the image and the raw mask; see `SampleSource`."""
        return read_image(self.image_paths[index]), self.read_mask(index)

    def read_mask(self, index: int) -> np.ndarray:
        """Returns the raw mask."""
        path = self.label_paths[index]
        if self.color_table is None:
            return read_label(path)
        return self.color_table(path, read_color_label(path))

    def stamp(self, index: int) -> str:
        """Returns size and time of change of the mask's file."""
        info = os.stat(self.label_paths[index])
        return f"{info.st_size} {info.st_mtime_ns}"

    def names(self, index: int) -> tuple[str, str]:
        """Returns both paths."""
        return self.image_paths[index], self.label_paths[index]


def open_folder(data_config: DataConfig, num_classes: int, split: str) -> Dataset:
    """Returns a split that lies in files; raises as `open_dataset`."""
    classes = open_classes(data_config, num_classes)
    files = find_files(data_config, split)
    if data_config.dataset == "cityscapes" and not data_config.mask_suffix and not files.masks:
        data_config = dataclasses.replace(data_config, mask_suffix=TRAIN_IDS)
        files = find_files(data_config, split)
    _check_complete(data_config.root, split, files)
    ids = tuple(stem + files.id_suffix for stem in files.stems)
    images, masks = (tuple(map(d.__getitem__, files.stems)) for d in (files.images, files.masks))
    table = ColorTable(classes) if data_config.mask_format == "color" else None
    values, source = label_map(data_config, num_classes), FolderSource(images, masks, table)
    names, palette = classes.names, classes.palette
    return Dataset(data_config.dataset, split, ids, names, palette, values, source)


def _check_complete(root: str, split: str, files: Files) -> None:
    if not files.stems:
        raise DataError(root, f"split {split!r} has no images", "check the folder or list of ids")
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
