"""Decoded samples in one uncompressed file per split, read through a memory map.

For data sets that are bound by decoding, as Cityscapes' PNGs are. A cache is a folder with
`classes.json` and, for each split, `SPLIT.json` (the index) and `SPLIT.bin`: for every sample its
image, uint8 (H, W, 3), then its classes, uint8 (H, W), 255 = ignored.
"""

import functools
import hashlib
import json
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deeplab_jax.config import IGNORE_INDEX
from deeplab_jax.data.archives import require_space, staged
from deeplab_jax.data.datasets import Dataset, open_dataset
from deeplab_jax.data.images import read_size
from deeplab_jax.data.labels import INVALID, open_classes
from deeplab_jax.data.pipeline import eval_examples
from deeplab_jax.errors import ConfigError, DataError

_FORMAT = 1
# What the stored classes were made with.
_LABEL_KEYS = ("dataset", "mask_format", "class_values", "ignore_values", "reduce_zero_label")


@dataclass(frozen=True, eq=False)
class CacheSource:
    """Samples in one file.

    Attributes:
      path: of the file.
      ids: of the samples.
      table: int64 (n, 3): height, width and checksum of each; they lie one after another.
    """

    path: str
    ids: tuple[str, ...]
    table: np.ndarray

    @functools.cached_property
    def ends(self) -> np.ndarray:
        """Where each sample ends in the file, int64 (n,)."""
        return np.cumsum(4 * self.table[:, 0] * self.table[:, 1])

    @functools.cached_property
    def _bytes(self) -> np.ndarray:
        return np.asarray(np.memmap(self.path, np.uint8, "r"))

    def __getstate__(self) -> dict:
        return {key: value for key, value in vars(self).items() if key != "_bytes"}

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns read-only views of the image and its classes."""
        height, width, _ = self.table[index].tolist()
        end = int(self.ends[index])
        middle = end - height * width
        image = self._bytes[end - 4 * height * width : middle].reshape(height, width, 3)
        return image, self._bytes[middle:end].reshape(height, width)

    def names(self, index: int) -> tuple[str, str]:
        """Returns what messages call the image and the mask."""
        return f"{self.path} (image {self.ids[index]})", f"{self.path} (mask {self.ids[index]})"

    def verify(self) -> None:
        """Compares all checksums.

        Raises:
          DataError: a sample's bytes have changed.
        """
        for index, row in enumerate(self.table):
            if _checksum(*self.read(index)) != row[2]:
                what = f"{self.ids[index]} has changed since it was written"
                raise DataError(self.path, what, "remove the cache and write it again")


def _checksum(image: np.ndarray, label: np.ndarray) -> int:
    return zlib.crc32(label.data, zlib.crc32(image.data))


def open_cache(data_config: Any, num_classes: int, split: str) -> Dataset:
    """Returns a split of the cache at `config.data.root`.

    Args:
      data_config: `config.data`, checked.
      num_classes: `config.model.num_classes`.
      split: `config.data.train_split` or `config.data.val_split`.

    Raises:
      DataError: there is no such split, a file's size differs, or samples or classes are no
        longer those of the folder that was cached, if that is still there.
      ConfigError: the cache is of another data set, other classes or another label map.
    """
    root = Path(data_config.root)
    index, source = _open_split(root, split)
    _check_labels(data_config, index["labels"], root)
    classes = open_classes(data_config, num_classes)
    _check_same(root, index, classes=classes.names)
    _check_folder(data_config, num_classes, index)
    label_map = np.full(65536, INVALID, np.int16)
    label_map[:num_classes] = np.arange(num_classes)
    label_map[IGNORE_INDEX] = IGNORE_INDEX
    return Dataset(
        data_config.dataset, split, source.ids, classes.names, classes.palette, label_map, source
    )


def _path(root: Path, split: str, suffix: str) -> Path:
    return root / f"{split.replace('/', '.')}{suffix}"  # a name, wherever the split leads


def _open_split(root: Path, split: str) -> tuple[dict, CacheSource]:
    path = _path(root, split, ".json")
    if not path.is_file():
        splits = ", ".join(sorted(p.stem for p in root.glob("*.json") if p.stem != "classes"))
        what = f"has no cached split {split!r} ({f'there are {splits}' if splits else 'no cache'})"
        raise DataError(str(root), what, "write it: scripts/prepare_datasets.py cache --help")
    fix = "remove the cache and write it again"
    try:
        index = json.loads(path.read_text("utf-8"))
        table = np.array(index["table"], np.int64).reshape(-1, 3)
        source = CacheSource(str(_path(root, split, ".bin")), tuple(index["ids"]), table)
        is_known = index["format"] == _FORMAT and len(source.ids) == len(table)
        is_known = is_known and index.keys() >= {"split", "labels", "classes", "source"}
        size = int(source.ends[-1])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(str(path), f"is no index of a cache ({error!r})", fix) from error
    if not is_known:
        raise DataError(str(path), "is of another version, or damaged", fix)
    found = os.stat(source.path).st_size if os.path.isfile(source.path) else 0
    if found != size:
        raise DataError(source.path, f"has {found} bytes, not {size}", fix)
    return index, source


def _check_labels(data_config: Any, labels: dict, root: Path) -> None:
    for key, value in _labels(data_config).items():
        if labels.get(key) != value:
            raise ConfigError(
                f"config.data.{key}",
                f"is {value}, but the cache at {root} was written with {labels.get(key)}",
                "use that, or write the cache again elsewhere",
            )


def _labels(data_config: Any) -> dict:
    """Returns what decides a mask's classes, as JSON would give it back."""
    return json.loads(json.dumps({key: data_config[key] for key in _LABEL_KEYS}))


def _check_folder(data_config: Any, num_classes: int, index: dict) -> None:
    """Compares with the folder that was cached, where that can still be opened."""
    config = data_config.copy_and_resolve_references()
    config.update(index["source"]["config"])
    try:
        dataset = open_dataset(config, num_classes, index["split"])
    except DataError:
        return
    _check_same(Path(config.root), index, classes=dataset.class_names, ids=dataset.ids)


def _check_same(root: Path, index: dict, **values: tuple[str, ...]) -> None:
    for key, value in values.items():
        if list(value) != index[key]:
            what = f"the {key} of split {index['split']!r} have changed since the cache was written"
            raise DataError(str(root), what, "remove the cache and write it again")


def write_cache(data_config: Any, num_classes: int, output: Path, is_verified: bool) -> None:
    """Writes the cache of a folder data set's training and validation split, or checks it.

    Args:
      data_config: `config.data`, checked; its source is the folder.
      num_classes: `config.model.num_classes`.
      output: the folder to appear when all is written.
      is_verified: compare the checksums of a cache that is there; a new one's always are.

    Raises:
      DataError: a sample cannot be used, or `output` is another cache or a damaged one.
      ResourceError: it does not fit on the disk.
    """
    if data_config.source != "folder":
        what = f"is {data_config.source}; a cache is made from files"
        raise ConfigError("config.data.source", what, "drop it")
    splits = dict.fromkeys((data_config.train_split, data_config.val_split))
    datasets = [open_dataset(data_config, num_classes, split) for split in splits]
    if output.exists():
        for dataset in datasets:
            _check_written(dataset, _index(dataset, data_config, []), output, is_verified)
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    require_space(output.parent, sum(map(_decoded_size, datasets)))
    with staged(output.parent, output.name) as partial:
        folder = partial / output.name
        folder.mkdir()
        if data_config.dataset == "folder":
            _write_classes(folder / "classes.json", datasets[0])
        for dataset in datasets:
            table = _write_samples(_path(folder, dataset.split, ".bin"), dataset)
            text = json.dumps(_index(dataset, data_config, table))
            _path(folder, dataset.split, ".json").write_text(text, "utf-8")
            _open_split(folder, dataset.split)[1].verify()


def _check_written(dataset: Dataset, expected: dict, output: Path, is_verified: bool) -> None:
    index, source = _open_split(output, dataset.split)
    differing = [key for key in expected if key != "table" and index.get(key) != expected[key]]
    if differing:
        what = f"split {dataset.split!r} differs from the files in {' and '.join(differing)}"
        raise DataError(str(output), what, "remove it, or choose another --output")
    if is_verified:
        source.verify()


def _index(dataset: Dataset, data_config: Any, table: list) -> dict:
    """Returns what `SPLIT.json` says."""
    keys = ("images", "masks", "mask_suffix", "split_file", "source")
    config = {"root": str(Path(data_config.root).resolve())} | {k: data_config[k] for k in keys}
    return {
        "format": _FORMAT,
        "split": dataset.split,
        "labels": _labels(data_config),
        "classes": list(dataset.class_names),
        "source": {"config": config, "files": _fingerprint(dataset)},
        "ids": list(dataset.ids),
        "table": table,
    }


def _fingerprint(dataset: Dataset) -> str:
    """Returns a hash of the sizes and times of all files."""
    stats = [os.stat(path) for path in _paths(dataset)]
    return hashlib.sha256(repr([(s.st_size, s.st_mtime_ns) for s in stats]).encode()).hexdigest()


def _paths(dataset: Dataset) -> Iterable[str]:
    return (path for index in range(len(dataset)) for path in dataset.source.names(index))


def _decoded_size(dataset: Dataset) -> int:
    heights_widths = (read_size(dataset.source.names(i)[0]) for i in range(len(dataset)))
    return sum(4 * height * width for height, width in heights_widths)


def _write_classes(path: Path, dataset: Dataset) -> None:
    """Writes the classes where `open_classes` finds them."""
    entries = [
        {"name": name, "color": color}
        for name, color in zip(dataset.class_names, dataset.palette.tolist(), strict=True)
    ]
    path.write_text(json.dumps(entries), "utf-8")


def _write_samples(path: Path, dataset: Dataset) -> list[list[int]]:
    """Writes all samples, and returns where each lies."""
    table = []
    with path.open("wb") as file:
        for example in eval_examples(dataset, range(len(dataset)), ()):
            image, label = map(np.ascontiguousarray, example[1:3])
            table.append([*label.shape, _checksum(image, label)])
            file.write(image.data)
            file.write(label.data)
        file.flush()
        os.fsync(file.fileno())
    return table
