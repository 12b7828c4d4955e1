"""Where images and masks lie, and what their pixel values mean.

VOC, ADE20k and Cityscapes in their official layouts (sssegmentation's table), and a plain folder
of one's own. To the rest of the package all are one random-access `Dataset`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from deeplab_jax.config import IGNORE_INDEX
from deeplab_jax.data.classes import CLASS_NAMES, PALETTES, colormap
from deeplab_jax.data.images import read_image, read_label
from deeplab_jax.errors import ConfigError, DataError, shorten

_INVALID = -1
# Cityscapes' labelIds of the classes 0, 1, ..., 18; all other ids up to 33 are ignored.
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a data set; picklable, and reads nothing until asked.

    Attributes:
      name: "voc", "ade20k", "cityscapes" or "folder".
      split: such as "train" or "val".
      ids: names of the samples, in the order of `image_paths` and `label_paths`.
      class_names: of classes 0, ..., C - 1.
      palette: uint8 (C, 3), RGB.
      label_map: int16 (256,), from a mask's value to a class, 255 (ignored) or -1 (invalid).
    """

    name: str
    split: str
    ids: tuple[str, ...]
    image_paths: tuple[str, ...]
    label_paths: tuple[str, ...]
    class_names: tuple[str, ...]
    palette: np.ndarray
    label_map: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the image, uint8 (H, W, 3) RGB, and its classes, uint8 (H, W), 255 = ignored.

        Raises:
          DataError: a file cannot be read, the sizes differ, or the mask has a value that means
            nothing.
        """
        image_path, label_path = self.image_paths[index], self.label_paths[index]
        image, raw = read_image(image_path), read_label(label_path)
        if image.shape[:2] != raw.shape:
            raise DataError(
                label_path,
                f"is {raw.shape[0]} x {raw.shape[1]} pixels (height x width), but its image "
                f"{image_path} is {image.shape[0]} x {image.shape[1]}",
                "give both one size",
            )
        is_present = cv2.calcHist([raw], [0], None, [256], [0, 256]).ravel() > 0
        bad = np.flatnonzero(is_present & (self.label_map == _INVALID))
        if bad.size:
            raise DataError(
                label_path,
                f"has values {_ranges(bad)}; accepted are "
                f"{_ranges(np.flatnonzero(self.label_map != _INVALID))}",
                "correct the mask, or config.model.num_classes and config.data.dataset",
            )
        return image, cv2.LUT(raw, self.label_map.astype(np.uint8))


def open_dataset(data_config: Any, num_classes: int, split: str) -> Dataset:
    """Returns a split of the data set that the configuration names, all its files found.

    Args:
      data_config: `config.data`; its `dataset`, `root` and `class_names` are used.
      num_classes: `config.model.num_classes`.
      split: `config.data.train_split` or `config.data.val_split`.

    Raises:
      DataError: a folder, list, image or mask is missing, or there are none.
      ConfigError: the data set has another number of classes.
    """
    name, root = data_config.dataset, Path(data_config.root)
    layout = _layout(name, split)
    class_names, palette = _classes(data_config, num_classes)
    images = _find(root / layout.images, layout.pattern, layout.image_suffixes)
    labels = _find(root / layout.labels, layout.pattern, (layout.label_suffix,))
    stems = _stems(root, layout, images, labels)
    _check_complete(root, split, stems, images, labels)
    return Dataset(
        name=name,
        split=split,
        ids=tuple(stem + layout.id_suffix for stem in stems),
        image_paths=tuple(images[stem] for stem in stems),
        label_paths=tuple(labels[stem] for stem in stems),
        class_names=class_names,
        palette=palette,
        label_map=label_map(name, num_classes),
    )


def label_map(name: str, num_classes: int) -> np.ndarray:
    """Returns int16 (256,): the class of each mask value, 255 for ignored, -1 for invalid."""
    classes = np.full(256, _INVALID, np.int16)
    if name == "ade20k":
        classes[0] = IGNORE_INDEX
        classes[1 : num_classes + 1] = np.arange(num_classes)
    elif name == "cityscapes":
        classes[: _CITYSCAPES_IDS[-1]] = IGNORE_INDEX
        classes[list(_CITYSCAPES_IDS)] = np.arange(num_classes)
    else:
        classes[:num_classes] = np.arange(num_classes)
        classes[IGNORE_INDEX] = IGNORE_INDEX
    return classes


class _Layout(NamedTuple):
    """Where a split lies under the root; a sample's files share a stem, and its id begins so."""

    images: str
    labels: str
    list_file: str = ""  # one id a line
    is_list_needed: bool = False  # else every file found is a sample
    pattern: str = "*"  # "*/*": one folder between
    image_suffixes: tuple[str, ...] = (".jpg",)
    label_suffix: str = ".png"
    id_suffix: str = ""


def _layout(name: str, split: str) -> _Layout:
    if name == "voc":
        top = "VOCdevkit/VOC2012"
        list_file = f"{top}/ImageSets/Segmentation/{split}.txt"
        return _Layout(f"{top}/JPEGImages", f"{top}/SegmentationClass", list_file, True)
    if name == "ade20k":
        top = "ADE20k/ADEChallengeData2016"
        part = {"train": "training", "val": "validation"}.get(split, split)
        return _Layout(f"{top}/images/{part}", f"{top}/annotations/{part}", f"{top}/{split}.txt")
    if name == "cityscapes":
        return _Layout(
            f"CityScapes/leftImg8bit/{split}",
            f"CityScapes/gtFine/{split}",
            f"CityScapes/{split}.txt",
            pattern="*/*",  # a folder per city
            image_suffixes=("_leftImg8bit.png",),
            label_suffix="_gtFine_labelIds.png",
            id_suffix="_leftImg8bit",
        )
    suffixes = (".jpg", ".jpeg", ".png")
    return _Layout(f"images/{split}", f"labels/{split}", image_suffixes=suffixes)


def _find(folder: Path, pattern: str, suffixes: tuple[str, ...]) -> dict[str, str]:
    """Returns {stem: path} of the files that end in one of the suffixes, in any case."""
    if not folder.is_dir():
        raise DataError(
            str(folder), "is not a folder", "check config.data.root; README shows the layouts"
        )
    found: dict[str, str] = {}
    for path in folder.glob(pattern):
        suffix = next((s for s in suffixes if path.name.lower().endswith(s.lower())), None)
        if suffix is None or path.name.startswith("."):
            continue
        stem = path.relative_to(folder).as_posix()[: -len(suffix)]
        if stem in found:
            raise DataError(str(path), f"has the same name as {found[stem]}", "remove one of them")
        found[stem] = str(path)
    return found


def _stems(root: Path, layout: _Layout, images: dict, labels: dict) -> list[str]:
    """Returns the samples: those of the list, in its order, or all that were found, sorted.

    Ids are only looked up among the files found, so "../" in a list leads nowhere.
    """
    path = root / layout.list_file
    if not path.is_file():
        if layout.is_list_needed:
            raise DataError(
                str(path), "is missing", "check config.data.root and the name of the split"
            )
        return sorted(images.keys() | labels.keys())
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(str(path), f"cannot be read ({error})", "write one id a line") from error
    return [line.strip().removesuffix(layout.id_suffix) for line in lines if line.strip()]


def _check_complete(root: Path, split: str, stems: list, images: dict, labels: dict) -> None:
    if not stems:
        raise DataError(
            str(root), f"split {split!r} has no images", "check the folder or list of ids"
        )
    missing = []
    for kind, found in (("images", images), ("masks", labels)):
        names = [stem for stem in stems if stem not in found]
        if names:
            missing.append(f"{len(names)} {kind} missing ({shorten(names)})")
    if missing:
        what = f"split {split!r} of {len(stems)} samples: {'; '.join(missing)}"
        raise DataError(str(root), what, "add them, or remove these samples")


def _classes(data_config: Any, num_classes: int) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns names and colours of the classes."""
    name = data_config.dataset
    json_path = Path(data_config.root) / "classes.json"
    if name in CLASS_NAMES:
        source, names, palette = name, CLASS_NAMES[name], PALETTES[name]
    elif json_path.is_file():
        source, (names, palette) = str(json_path), _read_classes(json_path)
        if data_config.class_names and tuple(data_config.class_names) != names:
            what = f"its names differ from those of {json_path}"
            raise ConfigError("config.data.class_names", what, "keep one of the two")
    else:
        source, palette = "config.data.class_names", colormap(num_classes)
        names = tuple(data_config.class_names) or tuple(f"class_{i}" for i in range(num_classes))
    if len(names) != num_classes:
        raise ConfigError(
            "config.model.num_classes",
            f"is {num_classes}, but {source} has {len(names)} classes",
            f"set it to {len(names)}",
        )
    return names, palette


def _read_classes(path: Path) -> tuple[tuple[str, ...], np.ndarray]:
    """Reads a list of names, or of {"name": ..., "color": [r, g, b]} (the colour may be absent)."""
    try:
        entries = json.loads(path.read_text("utf-8"))
        if not isinstance(entries, list):
            raise TypeError(f"{type(entries).__name__} at the top")
        entries = [{"name": entry} if isinstance(entry, str) else entry for entry in entries]
        names = tuple(str(entry["name"]) for entry in entries)
        palette = colormap(len(names))
        for index, entry in enumerate(entries):
            if "color" in entry:
                palette[index] = entry["color"]
    except (OSError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise DataError(
            str(path),
            f"is no list of classes ({error!r})",
            'write ["road", ...] or [{"name": "road", "color": [128, 64, 128]}, ...]',
        ) from error
    return names, palette


def _ranges(values: np.ndarray) -> str:
    """Returns sorted whole numbers as text: "0..4, 255"."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)
