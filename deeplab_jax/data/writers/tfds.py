"""The TFDS builder of every data set here; TensorFlow is neither needed nor loaded."""

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
from deeplab_jax.data.writers.archives import require_space, staged
from deeplab_jax.errors import DataError

_SHARD_BYTES = 512 << 20


class Segmentation(  # type: ignore[call-arg]
    tfds.core.GeneratorBasedBuilder, skip_registration=True
):
    """Images and masks as their files are, in the data set's order."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, datasets: list[Dataset], metadata: dict, size: int, data_dir: Path):
        """Takes the splits to write, read from folders, and what to keep beside them.

        Args:
          datasets: the splits; their name becomes the builder's.
          metadata: anything that JSON can hold.
          size: of all files, bytes.
          data_dir: the set appears in `data_dir / name / version`.
        """
        self.name = datasets[0].name
        self._datasets = datasets
        self._metadata = metadata
        self._size = size
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "mask": tfds.features.Image(shape=(None, None, 1)),
            "id": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.name}: encoded images and masks of class values.",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(self._metadata),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict:
        return {dataset.split: self._generate_examples(dataset) for dataset in self._datasets}

    def _generate_examples(self, dataset: Dataset) -> Iterator[tuple[int, dict]]:
        for index, name in enumerate(dataset.ids):
            image, mask = map(_read, dataset.source.names(index))
            yield index, {"image": io.BytesIO(image), "mask": io.BytesIO(mask), "id": name}

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        # Not TFDS' own writer: beyond 1000 MiB it spills into temporary files through TensorFlow.
        count = sum(map(len, self._datasets))
        per_shard = max(1, _SHARD_BYTES * count // self._size)
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

    One that is there already is compared with the files, and left alone.

    Args:
      data_config: `config.data`, checked; its source is the folder.
      num_classes: `config.model.num_classes`.

    Returns:
      The folder it is in, under `config.data.root / "tfds"`.

    Raises:
      DataError: a file cannot be read, or the set that is there was written from other files.
      ResourceError: the disk is too small.
    """
    import tensorflow_datasets as tfds

    splits = dict.fromkeys((data_config.train_split, data_config.val_split))
    datasets = [open_dataset(data_config, num_classes, split) for split in splits]
    kept = {dataset.split: _describe(dataset) for dataset in datasets}
    data_dir, part = (
        Path(data_config.root) / "tfds",
        f"{data_config.dataset}/{Segmentation.VERSION}",
    )
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


def _describe(dataset: Dataset) -> dict:
    names = [dataset.source.names(index) for index in range(len(dataset))]
    return {
        "ids": list(dataset.ids),
        "bytes": sum(Path(path).stat().st_size for pair in names for path in pair),
        "mask_suffix": TRAIN_IDS if f"{TRAIN_IDS}." in names[0][1] else "",
    }
