"""Decoded samples in one uncompressed file per split, read through a memory map.

A cache serves data sets bound by decoding, such as Cityscapes' PNGs. It is a folder with
`classes.json` and, for each split, `SPLIT.json` (the index) and `SPLIT.bin`: for every sample its
image, uint8 (H, W, 3), then its classes, uint8 (H, W), 255 = ignored.
"""

import dataclasses
import functools
import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deeplab_jax.config import IGNORE_INDEX, DataConfig
from deeplab_jax.data.dataset import Dataset
from deeplab_jax.data.labels import INVALID, open_classes
from deeplab_jax.data.sources.folder import open_folder
from deeplab_jax.errors import ConfigError, DataError

FORMAT = 1
# Fields that decide the stored samples. Caches from before `value_range` have none: empty.
_SAMPLE_KEYS = ("dataset", "mask_format", "class_values", "ignore_values", "reduce_zero_label",
                "value_range")  # fmt: skip


@dataclass(frozen=True, eq=False)
class CacheSource:
    """Samples in one file."""

    path: str
    ids: tuple[str, ...]
    table: np.ndarray  # int64 (n, 3): height, width and checksum of each, in the order of the file

    @functools.cached_property
    def ends(self) -> np.ndarray:
        """End of each sample in the file, bytes, int64 (n,)."""
        return np.cumsum(4 * self.table[:, 0] * self.table[:, 1])

    @functools.cached_property
    def _bytes(self) -> np.ndarray:
        return np.asarray(np.memmap(self.path, np.uint8, "r"))

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in vars(self).items() if key != "_bytes"}

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns read-only views of the image and its classes."""
        height, width, _ = self.table[index].tolist()
        end = int(self.ends[index])
        image = self._bytes[end - 4 * height * width : end - height * width]
        return image.reshape(height, width, 3), self.read_mask(index)

    def read_mask(self, index: int) -> np.ndarray:
        """Returns a read-only view of the classes."""
        height, width, _ = self.table[index].tolist()
        end = int(self.ends[index])
        return self._bytes[end - height * width : end].reshape(height, width)

    def stamp(self, index: int) -> str:
        """Returns the sample's checksum."""
        return str(self.table[index, 2])

    def names(self, index: int) -> tuple[str, str]:
        """Returns the names of the image and the mask in messages."""
        return f"{self.path} (image {self.ids[index]})", f"{self.path} (mask {self.ids[index]})"

    def verify(self) -> None:
        """Compares all checksums; a sample whose bytes have changed raises `DataError`."""
        for index, row in enumerate(self.table):
            if checksum(*self.read(index)) != row[2]:
                what = f"{self.ids[index]} has changed since it was written"
                raise DataError(self.path, what, "remove the cache and write it again")


def checksum(image: np.ndarray, label: np.ndarray) -> int:
    """Returns the CRC-32 of a sample's bytes, image first."""
    return zlib.crc32(label.data, zlib.crc32(image.data))


def open_cache(data_config: DataConfig, num_classes: int, split: str) -> Dataset:
    """Returns a split of the cache at `config.data.root`.

    Raises:
      DataError: there is no such split, a file's size differs, or samples or classes differ from
        those of the folder that was cached, if it still exists.
      ConfigError: the cache is of another data set, other classes or another label map.
    """
    root = Path(data_config.root)
    index, source = open_split(root, split)
    for key, value in sample_settings(data_config).items():
        written = index["labels"].get(key)
        if written != value:
            what = f"is {value}, but the cache at {root} was written with {written}"
            fix = "use that, or write the cache again elsewhere"
            raise ConfigError(f"config.data.{key}", what, fix)
    classes = open_classes(data_config, num_classes)
    _check_same(root, index, classes=classes.names)
    _check_folder(data_config, num_classes, index)
    label_map = np.full(65536, INVALID, np.int16)
    label_map[:num_classes] = np.arange(num_classes)
    label_map[IGNORE_INDEX] = IGNORE_INDEX
    names, palette = classes.names, classes.palette
    return Dataset(data_config.dataset, split, source.ids, names, palette, label_map, source)


def split_path(root: Path, split: str, suffix: str) -> Path:
    """Returns the file of a split: its index (".json") or its samples (".bin")."""
    return root / f"{split.replace('/', '.')}{suffix}"


def open_split(root: Path, split: str) -> tuple[dict[str, Any], CacheSource]:
    """Returns the index of a cached split and the source of its samples.

    Raises:
      DataError: the cache has no such split, or it is damaged.
    """
    path = split_path(root, split, ".json")
    if not path.is_file():
        splits = ", ".join(sorted(p.stem for p in root.glob("*.json") if p.stem != "classes"))
        what = f"has no cached split {split!r} ({f'there are {splits}' if splits else 'no cache'})"
        raise DataError(
            str(root), what, "write it with deeplab prepare cache --config RECIPE --output DIR"
        )
    fix = "remove the cache and write it again"
    try:
        index = json.loads(path.read_text("utf-8"))
        table = np.array(index["table"], np.int64).reshape(-1, 3)
        source = CacheSource(str(split_path(root, split, ".bin")), tuple(index["ids"]), table)
        is_known = index["format"] == FORMAT and len(source.ids) == len(table)
        is_known = is_known and index.keys() >= {"split", "labels", "classes", "source"}
        if is_known:
            index["labels"] = {"value_range": []} | index["labels"]
        size = int(source.ends[-1])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(str(path), f"is no index of a cache ({error!r})", fix) from error
    if not is_known:
        raise DataError(str(path), "is of another version, or damaged", fix)
    found = os.stat(source.path).st_size if os.path.isfile(source.path) else 0
    if found != size:
        raise DataError(source.path, f"has {found} bytes, not {size}", fix)
    return index, source


def sample_settings(data_config: DataConfig) -> dict[str, Any]:
    """Returns the fields that decide the stored samples, as JSON gives them back."""
    return json.loads(json.dumps({key: getattr(data_config, key) for key in _SAMPLE_KEYS}))


def _check_folder(data_config: DataConfig, num_classes: int, index: dict[str, Any]) -> None:
    """Compares with the folder that was cached, if it can still be opened."""
    config = dataclasses.replace(data_config, **index["source"]["config"])
    try:
        dataset = open_folder(config, num_classes, index["split"])
    except DataError:
        return
    _check_same(Path(config.root), index, classes=dataset.class_names, ids=dataset.ids)


def _check_same(root: Path, index: dict[str, Any], **values: tuple[str, ...]) -> None:
    for key, value in values.items():
        if list(value) != index[key]:
            what = f"the {key} of split {index['split']!r} have changed since the cache was written"
            raise DataError(str(root), what, "remove the cache and write it again")
