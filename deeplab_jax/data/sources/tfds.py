"""Data sets in TFDS' ArrayRecord form, written by `writers/tfds.py` or by anyone.

`tensorflow_datasets` is imported on opening, TensorFlow never. A set of `writers/tfds.py` gives the
same bytes in the same order as the folder it was written from.
"""

import dataclasses
import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deeplab_jax.config import DataConfig
from deeplab_jax.data.dataset import Dataset
from deeplab_jax.data.images import decode_color_label, decode_image, decode_label
from deeplab_jax.data.labels import ColorTable, label_map, open_classes
from deeplab_jax.errors import ConfigError, DataError, shorten

_NAME = re.compile(r"(\w+(?:/[\w.-]+)?)(?::(\d+\.\d+\.\d+))?")
METADATA_KEY = "deeplab_jax"


@dataclass(frozen=True, eq=False)
class TfdsSource:
    """Samples in ArrayRecord files."""

    folder: str  # folder of one version of a data set
    split: str  # name of the split in TFDS
    ids: tuple[str, ...]  # names of the samples
    image_key: str  # feature with the image
    mask_key: str  # feature with the mask
    has_ids: bool = False  # feature "id" holds the names
    color_table: ColorTable | None = None  # where the masks hold colours
    value_range: tuple[int, ...] = ()  # of 16-bit images

    @functools.cached_property
    def _reader(self) -> tuple[Any, Any]:
        """The records, and a function from a record to its features."""
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(self.folder)
        records = builder.as_data_source(
            self.split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        keys = (self.image_key, self.mask_key, *(["id"] if self.has_ids else []))
        features = tfds.features.FeaturesDict({key: builder.info.features[key] for key in keys})
        decoders = {key: tfds.decode.SkipDecoding() for key in keys[:2]}
        return records, functools.partial(features.deserialize_example_np, decoders=decoders)

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in vars(self).items() if key != "_reader"}

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the image and the raw mask; see `SampleSource`."""
        image, mask = self._read_bytes(index)
        pixels = decode_image(self.names(index)[0], image, self.value_range)
        return pixels, self._decode_mask(index, mask)

    def read_mask(self, index: int) -> np.ndarray:
        """Returns the raw mask."""
        return self._decode_mask(index, self._read_bytes(index)[1])

    def stamp(self, index: int) -> str:
        """Returns size and time of change of the set's description, which lists its shards."""
        info = (Path(self.folder) / "dataset_info.json").stat()
        return f"{info.st_size} {info.st_mtime_ns}"

    def _read_bytes(self, index: int) -> tuple[bytes, bytes]:
        try:
            records, extract = self._reader
            example = extract(records[index])
            image, mask = bytes(example[self.image_key]), bytes(example[self.mask_key])
            # A file cut short may give empty records, not an error.
            if not image or (self.has_ids and example["id"].decode() != self.ids[index]):
                raise ValueError("another record is there")
        except Exception as error:  # array_record and protobuf raise anything on damage
            what = f"cannot be read ({' '.join(str(error).split())[:200]})"
            where = self.names(index)[0]
            raise DataError(where, what, "write or copy the data set again") from error
        return image, mask

    def _decode_mask(self, index: int, data: bytes) -> np.ndarray:
        name = self.names(index)[1]
        if self.color_table is None:
            return decode_label(name, data)
        return self.color_table(name, decode_color_label(name, data))

    def names(self, index: int) -> tuple[str, str]:
        """Returns the names of the image and the mask in messages."""
        place = f"{self.folder} {self.split} {self.ids[index]}"
        return f"{place} ({self.image_key})", f"{place} ({self.mask_key})"


def open_tfds(data_config: DataConfig, num_classes: int, split: str) -> Dataset:
    """Returns a split of a prepared TFDS data set in `config.data.root`, or in `tfds` below it.

    Without `config.data.tfds_name` the set is the one that `deeplab prepare NAME --format tfds`
    writes for `config.data.dataset`.

    Raises:
      DataError: there is no such set, version, split or feature, or it is not ArrayRecord.
      ConfigError: the name is malformed, or the data set has another number of classes.
    """
    import tensorflow_datasets as tfds

    folder = _find(data_config)
    try:
        info = tfds.builder_from_directory(folder).info
    except Exception as error:  # whatever is in its JSON files
        what = f"cannot be opened ({' '.join(str(error).split())[:200]})"
        raise DataError(str(folder), what, "prepare the data set again") from error
    if info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        what = f"is {info.file_format and info.file_format.value}, which has no random access"
        raise DataError(str(folder), what, "prepare it with file_format='array_record'")
    if split not in info.splits:
        what = f"has no split {split!r}; it has {shorten(info.splits)}"
        raise DataError(str(folder), what, "set config.data.train_split and val_split")
    features = info.features
    images = [k for k, feature in features.items() if isinstance(feature, tfds.features.Image)]
    for key in ("image_key", "mask_key"):
        name = getattr(data_config, key)
        if name not in images:
            kind = f"is {type(features[name]).__name__}" if name in features else "does not exist"
            what = f"feature {name!r} {kind}; image features are {shorten(images) or 'none'}"
            raise DataError(str(folder), what, f"set config.data.{key}")
    count = info.splits[split].num_examples
    kept = kept_metadata(info).get(split, {})
    ids = kept.get("ids", [f"{split}_{i:06d}" for i in range(count)])
    if len(ids) != count:
        what = f"has {count} samples in {split!r} and {len(ids)} ids"
        raise DataError(str(folder), what, "prepare the data set again")
    if data_config.dataset == "cityscapes" and "mask_suffix" in kept:
        data_config = dataclasses.replace(data_config, mask_suffix=kept["mask_suffix"])
    classes = open_classes(data_config, num_classes)
    table = ColorTable(classes) if data_config.mask_format == "color" else None
    keys = data_config.image_key, data_config.mask_key
    source = TfdsSource(
        str(folder), split, tuple(ids), *keys, "ids" in kept, table, data_config.value_range
    )
    names, palette, values = classes.names, classes.palette, label_map(data_config, num_classes)
    return Dataset(data_config.dataset, split, source.ids, names, palette, values, source)


def _find(data_config: DataConfig) -> Path:
    """Returns the folder of the version asked for, or of the newest."""
    root, name = Path(data_config.root), data_config.tfds_name or data_config.dataset
    data_dir = root / "tfds" if (root / "tfds").is_dir() else root
    match = _NAME.fullmatch(name)
    if match is None:
        raise ConfigError("config.data.tfds_name", f"{name!r} is no name", "such as my_set:1.0.0")
    # Sets whose builder has configurations lie one folder deeper.
    infos = (*data_dir.glob("*/*/dataset_info.json"), *data_dir.glob("*/*/*/dataset_info.json"))
    found = {path.parent.relative_to(data_dir).as_posix(): path.parent for path in infos}
    versions = {key.rpartition("/")[2]: key for key in found if key.rpartition("/")[0] == match[1]}

    def order(version: str) -> list[int]:
        return [int(part) if part.isdigit() else -1 for part in version.split(".")]

    version = match[2] or max(versions, key=order, default="")
    if version not in versions:
        names = shorten(":".join(key.rsplit("/", 1)) for key in found)
        what = f"has no TFDS data set {name!r}; there {f'are {names}' if found else 'is none'}"
        fix = "set config.data.root and config.data.tfds_name, or prepare it"
        raise DataError(str(data_dir), what, fix)
    return found[versions[version]]


def kept_metadata(info: Any) -> dict[str, Any]:
    """Returns {split: facts} that `write_tfds` kept; empty for sets of others."""
    kept = info.metadata.get(METADATA_KEY) if isinstance(info.metadata, dict) else None
    return kept if isinstance(kept, dict) else {}
