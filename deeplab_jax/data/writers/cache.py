"""Writes decoded samples as one file per split; `sources/cache.py` reads them."""

import hashlib
import json
import math
import os
from pathlib import Path

import numpy as np

from deeplab_jax.config import DataConfig
from deeplab_jax.data.dataset import Dataset
from deeplab_jax.data.images import read_size
from deeplab_jax.data.open import open_dataset
from deeplab_jax.data.pipeline import eval_examples
from deeplab_jax.data.sources.cache import FORMAT, checksum, open_split, sample_settings, split_path
from deeplab_jax.data.writers.staging import require_space, staged
from deeplab_jax.errors import ConfigError, DataError


def write_cache(data_config: DataConfig, num_classes: int, output: Path, is_verified: bool) -> None:
    """Writes the cache of a folder data set's training and validation split, or checks it.

    The folder `output` appears when all is written. Checksums of a new cache are always compared,
    those of an existing one if `is_verified`.

    Raises:
      ConfigError: the source is no folder.
      DataError: a sample cannot be used, or `output` is another cache or a damaged one.
      ResourceError: the cache does not fit on the disk.
    """
    if data_config.source != "folder":
        what = f"is {data_config.source}; a cache is made from files"
        raise ConfigError("config.data.source", what, "drop it")
    splits = dict.fromkeys((data_config.train_split, data_config.val_split))
    datasets = [open_dataset(data_config, num_classes, split) for split in splits]
    if output.exists():
        for dataset in datasets:
            expected = _index(dataset, data_config, [])
            index, source = open_split(output, dataset.split)
            differing = [
                key for key in expected if key != "table" and index.get(key) != expected[key]
            ]
            if differing:
                what = (
                    f"split {dataset.split!r} differs from the files in {' and '.join(differing)}"
                )
                raise DataError(str(output), what, "remove it, or choose another --output")
            if is_verified:
                source.verify()
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    paths = [d.source.names(index)[0] for d in datasets for index in range(len(d))]
    require_space(output.parent, sum(4 * math.prod(read_size(path)) for path in paths))
    with staged(output.parent, output.name) as partial:
        folder = partial / output.name
        folder.mkdir()
        if data_config.dataset == "folder":
            pairs = zip(datasets[0].class_names, datasets[0].palette.tolist(), strict=True)
            entries = [{"name": name, "color": color} for name, color in pairs]
            (folder / "classes.json").write_text(json.dumps(entries), "utf-8")
        for dataset in datasets:
            table = _write_samples(split_path(folder, dataset.split, ".bin"), dataset)
            text = json.dumps(_index(dataset, data_config, table))
            split_path(folder, dataset.split, ".json").write_text(text, "utf-8")
            open_split(folder, dataset.split)[1].verify()


def _index(dataset: Dataset, data_config: DataConfig, table: list[list[int]]) -> dict[str, object]:
    """Returns the contents of `SPLIT.json`."""
    keys = ("images", "masks", "mask_suffix", "split_file", "source")
    paths = (path for index in range(len(dataset)) for path in dataset.source.names(index))
    stats = [(stat.st_size, stat.st_mtime_ns) for stat in map(os.stat, paths)]
    fingerprint = hashlib.sha256(repr(stats).encode())
    config = {"root": str(Path(data_config.root).resolve())}
    config |= {key: getattr(data_config, key) for key in keys}
    return {
        "format": FORMAT, "split": dataset.split, "labels": sample_settings(data_config),
        "classes": list(dataset.class_names),
        "source": {"config": config, "files": fingerprint.hexdigest()},
        "ids": list(dataset.ids), "table": table,
    }  # fmt: skip


def _write_samples(path: Path, dataset: Dataset) -> list[list[int]]:
    """Writes all samples; returns height, width and checksum of each."""
    table = []
    with path.open("wb") as file:
        for example in eval_examples(dataset, range(len(dataset)), ()):
            image, label = map(np.ascontiguousarray, example[1:3])
            table.append([*label.shape, checksum(image, label)])
            file.write(image.data)
            file.write(label.data)
        file.flush()
        os.fsync(file.fileno())
    return table
