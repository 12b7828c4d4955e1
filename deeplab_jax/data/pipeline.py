"""Batches for training and examples for evaluation.

The samples of a step and their augmentation are a function of (seed, step) alone (`SampleOrder`);
workers, processes and devices only share the work. Resuming therefore means starting at a step, and
every host asks for the rows that it needs.
"""

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from deeplab_jax.data import transforms, workers
from deeplab_jax.data.dataset import Dataset

_MAX_THREADS = 8


class TrainBatch(NamedTuple):
    """Rows of one training step; the device normalises, and sets pixels outside the box to 0."""

    index: np.ndarray  # type: ignore[assignment]  # over tuple.index; int64 (b,), in the data set
    image: np.ndarray  # uint8 (b, h, w, 3), RGB
    label: np.ndarray  # uint8 (b, h, w), classes and 255 = ignored
    box: np.ndarray  # int32 (b, 4), (top, left, bottom, right) of the pixels that are not padding


class EvalExample(NamedTuple):
    """One whole image for evaluation."""

    index: int  # type: ignore[assignment]  # over tuple.index; position in the data set
    image: np.ndarray  # uint8 (h, w, 3) RGB, resized for the network
    label: np.ndarray  # uint8 (H, W) at the mask's own size


@dataclass(frozen=True)
class SampleOrder:
    """Order of the samples, and their augmentation, as a function of step and row.

    Every epoch is a fresh permutation, read cyclically where steps_per_epoch * batch_size exceeds
    the data set (Cityscapes: 2976 of 2975) and cut where it falls short.
    """

    num_samples: int
    seed: int
    batch_size: int
    steps_per_epoch: int

    def locate(self, step: int, row: int) -> tuple[int, np.random.Generator]:
        """Returns the position in the data set, and the random generator of the augmentation."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        position = step_in_epoch * self.batch_size + row
        permutation = _permutation(self.seed, epoch, self.num_samples)
        # 1 + position: seeds are padded with zeros, so [seed, epoch, 0] is the permutation's own.
        rng = np.random.default_rng([self.seed, epoch, 1 + position])
        return int(permutation[position % self.num_samples]), rng


@functools.lru_cache(maxsize=2)  # threads read ahead into the next epoch
def _permutation(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_samples)


def train_batches(
    dataset: Dataset, *, seed: int, batch_size: int, steps_per_epoch: int, start: int, stop: int,
    rows: Sequence[int], crop_size: tuple[int, int], resize_base: tuple[int, int],
    scale_range: tuple[float, float], num_workers: int, transform: Callable | None = None,
) -> Iterator[TrainBatch]:  # fmt: skip
    """Yields the given rows of the batches of steps start, ..., stop - 1, in order.

    `batch_size` counts the rows of a step over all hosts, `crop_size` is (height, width),
    `resize_base` the (long, short) side that scale 1 fits an image into, `scale_range` (smallest,
    largest). With `num_workers` 0 threads of this process read. Batches do not depend on it.
    `transform`, (image, label, rng) -> (image, label), comes last.

    Raises:
      DataError: a sample cannot be used.
      ReaderError: a reading process died, or reading a sample does not end.
    """
    order = SampleOrder(len(dataset), seed, batch_size, steps_per_epoch)
    load = BatchLoader(dataset, order, tuple(rows), crop_size, resize_base, scale_range, transform)
    steps, name_of = range(start, stop), dataset.source.names
    if num_workers:
        yield from workers.in_processes(load, steps, num_workers, name_of)
    else:
        yield from workers.in_threads(load, steps, num_threads(), name_of)


@dataclass(frozen=True)
class BatchLoader:
    """Reads the rows of a step; picklable, for worker processes."""

    dataset: Dataset
    order: SampleOrder
    rows: tuple[int, ...]
    crop_size: tuple[int, int]
    resize_base: tuple[int, int]
    scale_range: tuple[float, float]
    transform: Callable | None = None

    def __call__(self, step: int) -> TrainBatch:
        """Returns the rows of a step."""
        shape = (len(self.rows), *self.crop_size)
        index, box = np.empty(shape[0], np.int64), np.empty((shape[0], 4), np.int32)
        batch = TrainBatch(index, np.empty((*shape, 3), np.uint8), np.empty(shape, np.uint8), box)
        for i, row in enumerate(self.rows):
            index[i], rng = self.order.locate(int(step), row)
            with workers.reading(index[i]):
                *_, box[i] = transforms.train_transform(
                    *self.dataset.read(int(index[i])), rng, crop_size=self.crop_size,
                    resize_base=self.resize_base, scale_range=self.scale_range,
                    out=(batch.image[i], batch.label[i]))  # fmt: skip
                if self.transform is not None:
                    sample = self.transform(batch.image[i].copy(), batch.label[i].copy(), rng)
                    batch.image[i], batch.label[i] = sample
        return batch


def num_threads() -> int:
    """Returns the number of threads that read files: the cores, at most 8."""
    return min(_MAX_THREADS, os.cpu_count() or 1)


def eval_examples(
    dataset: Dataset, indices: Iterable[int], resize_base: tuple[int, ...]
) -> Iterator[EvalExample]:
    """Yields the images at `indices`, in order, read ahead by a few threads.

    `resize_base` is the (long, short) side to fit images into; empty keeps their own size.

    Raises:
      DataError: a sample cannot be used.
      ReaderError: reading a sample does not end.
    """
    read = functools.partial(_eval_example, dataset, resize_base)
    return workers.in_threads(read, indices, num_threads(), dataset.source.names)


def _eval_example(dataset: Dataset, resize_base: tuple[int, ...], index: int) -> EvalExample:
    with workers.reading(index):
        image, label = dataset.read(int(index))
    if resize_base:
        size = transforms.fit_size(label.shape[0], label.shape[1], (resize_base[0], resize_base[1]))
        image = transforms.resize_image(image, size)
    return EvalExample(int(index), image, label)
