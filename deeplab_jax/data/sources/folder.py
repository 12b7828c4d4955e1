"""Samples in the files of a folder."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deeplab_jax.config import TRAIN_IDS, DataConfig
from deeplab_jax.data.dataset import Dataset
from deeplab_jax.data.files import LOSSY_SUFFIXES, Files, find_files, looked_for
from deeplab_jax.data.images import read_color_label, read_image, read_label
from deeplab_jax.data.labels import ColorTable, label_map, open_classes
from deeplab_jax.data.lists import is_outside
from deeplab_jax.data.outside import outside_fix
from deeplab_jax.errors import DataError, shorten


@dataclass(frozen=True, eq=False)
class FolderSource:
    """Samples in files."""

    image_paths: tuple[str, ...]
    label_paths: tuple[str, ...]  # in the same order
    color_table: ColorTable | None = None  # where the masks hold colours
    value_range: tuple[int, ...] = ()  # of 16-bit images

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the image and the raw mask; see `SampleSource`."""
        return read_image(self.image_paths[index], self.value_range), self.read_mask(index)

    def read_mask(self, index: int) -> np.ndarray:
        """Returns the raw mask."""
        path = self.label_paths[index]
        if self.color_table is None:
            return read_label(path)
        return self.color_table(path, read_color_label(path))

    def stamp(self, index: int) -> str:
        """Returns path, size and time of change of the mask's file, and the ignored colours."""
        info = Path(self.label_paths[index]).stat()
        table = self.color_table
        ignored = "" if table is None else table.classes.ignored_colors.tobytes().hex()
        return f"{self.label_paths[index]} {info.st_size} {info.st_mtime_ns} {ignored}"

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
    _check_complete(data_config, split, files)
    ids = tuple(stem + files.id_suffix for stem in files.stems)
    images, masks = (tuple(map(d.__getitem__, files.stems)) for d in (files.images, files.masks))
    table = ColorTable(classes) if data_config.mask_format == "color" else None
    values = label_map(data_config, num_classes)
    source = FolderSource(images, masks, table, data_config.value_range)
    names, palette = classes.names, classes.palette
    return Dataset(data_config.dataset, split, ids, names, palette, values, source, files.notes)


def _check_complete(data_config: DataConfig, split: str, files: Files) -> None:
    root = data_config.root
    if not files.stems:
        raise DataError(root, f"split {split!r} has no images", "check the folder or list of ids")
    outside = [s for s in files.stems if s not in files.images and is_outside(s)]
    if outside:
        what = f"split {split!r} lists what lies outside ({shorten(outside)}); none was opened"
        raise DataError(root, what, outside_fix(data_config, split, files.stems))
    missing, places = [], []
    for kind, found in (("images", files.images), ("masks", files.masks)):
        names = sorted(stem for stem in files.stems if stem not in found)
        if names:
            missing.append(f"{len(names)} {kind} missing ({shorten(names)})")
            places.append(looked_for(data_config, split, names[0], files, kind))
    if missing:
        what = f"split {split!r} of {len(files.stems)} samples: {'; '.join(missing)}"
        what += f"; the first was looked for as {' and '.join(places)}"
        lines = f"correct these lines of {files.list_file}"
        fix = f"add them, or {lines if files.list_file else 'remove these samples'}"
        raise DataError(root, what, fix)
    lossy = [files.masks[s] for s in files.stems if files.masks[s].lower().endswith(LOSSY_SUFFIXES)]
    if lossy:
        what = f"is a JPEG or WebP, which changes class indices ({len(lossy)} such masks)"
        raise DataError(lossy[0], what, "store masks as PNG")
