"""Writes a folder data set in TFDS' ArrayRecord form, without TensorFlow."""

import io
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from deeplab_jax.config import TRAIN_IDS, DataConfig
from deeplab_jax.data.dataset import Dataset
from deeplab_jax.data.open import open_dataset
from deeplab_jax.data.sources.tfds import METADATA_KEY, kept_metadata
from deeplab_jax.data.writers.staging import require_space, staged
from deeplab_jax.errors import DataError

SHARD_BYTES = 512 << 20
_Example = tuple[int, dict[str, object]]


class Segmentation(  # type: ignore[call-arg]
    tfds.core.GeneratorBasedBuilder, skip_registration=True
):
    """Images and masks in the bytes of their files, in the data set's order.

    `datasets` are the splits, read from folders; the builder takes their name. `metadata` are JSON
    values kept beside the samples, `size` counts the bytes of all files.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self, datasets: list[Dataset], metadata: dict[str, Any], size: int, data_dir: Path
    ):
        self.name = datasets[0].name
        self._datasets, self._metadata, self._size = datasets, metadata, size
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "mask": tfds.features.Image(shape=(None, None, 1)), "id": tfds.features.Text(),
        }  # fmt: skip
        return tfds.core.DatasetInfo(
            builder=self, description=f"{self.name}: encoded images and masks of class values.",
            features=tfds.features.FeaturesDict(features), disable_shuffling=True,
            metadata=tfds.core.MetadataDict(self._metadata),
        )  # fmt: skip

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[_Example]]:
        return {dataset.split: self._generate_examples(dataset) for dataset in self._datasets}

    def _generate_examples(self, dataset: Dataset) -> Iterator[_Example]:
        for index, name in enumerate(dataset.ids):
            image, mask = map(_read, dataset.source.names(index))
            yield index, {"image": io.BytesIO(image), "mask": io.BytesIO(mask), "id": name}

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        # Not TFDS' own writer: beyond 1000 MiB it spills into temporary files through TensorFlow.
        count = sum(map(len, self._datasets))
        per_shard = max(1, SHARD_BYTES * count // self._size)
        info = self._info()  # of the folder that is renamed when all is written
        writer = tfds.core.SequentialWriter(info, per_shard, file_format="array_record")
        generators = self._split_generators(dl_manager)
        writer.initialize_splits(list(generators))
        for split, examples in generators.items():
            writer.add_examples({split: (example for _, example in examples)})
        writer.close_all()
        self.info.set_splits(info.splits)


def _read(path: str) -> bytes:
    data = Path(path).read_bytes()
    if not data:
        raise DataError(path, "is an empty file", "replace the file")
    return data


def write_tfds(data_config: DataConfig, num_classes: int) -> Path:
    """Writes a folder data set's training and validation split as one TFDS data set.

    An existing set is compared with the files, and left alone.

    Returns:
      The folder of the set, under `config.data.root / "tfds"`.

    Raises:
      DataError: a file cannot be read, or the existing set was written from other files.
      ResourceError: the disk is too small.
    """
    splits = dict.fromkeys((data_config.train_split, data_config.val_split))
    datasets = [open_dataset(data_config, num_classes, split) for split in splits]
    kept = {dataset.split: _describe(dataset) for dataset in datasets}
    data_dir = Path(data_config.root) / "tfds"
    part = f"{data_config.dataset}/{Segmentation.VERSION}"
    folder = data_dir / part
    if folder.exists():
        if kept_metadata(tfds.builder_from_directory(folder).info) != kept:
            raise DataError(str(folder), "was written from other files", "remove it")
        return folder
    data_dir.mkdir(parents=True, exist_ok=True)
    size = sum(split["bytes"] for split in kept.values())
    require_space(data_dir, size)
    # Public data sets may share the name, and TFDS would prefer them.
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    with staged(data_dir, part) as partial, redirect_stdout(io.StringIO()):
        builder = Segmentation(datasets, {METADATA_KEY: kept}, size, partial)
        builder.download_and_prepare(download_config=config)
    return folder


def _describe(dataset: Dataset) -> dict[str, Any]:
    names = [dataset.source.names(index) for index in range(len(dataset))]
    return {
        "ids": list(dataset.ids),
        "bytes": sum(Path(path).stat().st_size for pair in names for path in pair),
        "mask_suffix": TRAIN_IDS if f"{TRAIN_IDS}." in names[0][1] else "",
    }
