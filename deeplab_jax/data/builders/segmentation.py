"""The TFDS builder of every data set here; TensorFlow is neither needed nor loaded."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from deeplab_jax.data.datasets import Dataset
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
