"""The first samples of a run, before and after augmentation."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from deeplab_jax.config import Config
from deeplab_jax.data import Dataset, SampleOrder, open_dataset
from deeplab_jax.data.augment.chain import Chain, check_transforms
from deeplab_jax.data.pipeline import BatchLoader
from deeplab_jax.errors import DataError
from deeplab_jax.training.plan import steps_per_epoch
from deeplab_jax.utils.progress import counting

NUMBER = 24


class Pair(NamedTuple):
    """A sample before and after augmentation.

    Attributes:
      name: the sample's id.
      step: the step of a run that sees it, from 1.
      before: image, uint8 (H, W, 3) RGB, and label, uint8 (H, W), 255 is ignored.
      after: image (h, w, 3) and label (h, w) of the crop size.
      box: (top, left, bottom, right) of the pixels of `after` that are not padding.
    """

    name: str
    step: int
    before: tuple[np.ndarray, np.ndarray]
    after: tuple[np.ndarray, np.ndarray]
    box: np.ndarray


class Preview(NamedTuple):
    """What the page shows.

    Attributes:
      faults: the error of each sample that cannot be shown, by its id.
    """

    config: Config
    dataset: Dataset
    pairs: list[Pair]
    faults: dict[str, str]


def gather(config: Config) -> Preview:
    """Returns the first 24 samples that a run of the configuration sees; prints those at fault.

    Where `config.data.max_bad_samples` lets a run leave samples out, its order is another.

    Raises:
      ConfigError: a transform cannot be used.
      DataError: the data set cannot be opened, or none of the samples can be shown.
    """
    data = config.data
    dataset = open_dataset(data, config.model.num_classes, data.train_split)
    check_transforms(dataset, replace(data, max_bad_samples=len(dataset)))
    sizes = data.crop_size, data.resize_base, data.scale_range
    chain = Chain(dataset, data.transforms, None, *sizes) if data.transforms else None
    batch, per_epoch = config.train.batch_size, max(1, steps_per_epoch(config, len(dataset)))
    order = SampleOrder(len(dataset), config.seed, batch, per_epoch)
    loader = BatchLoader(dataset, order, (), *sizes, chain)
    pairs, faults, first = list[Pair](), dict[str, str](), None
    with counting(NUMBER, "samples drawn") as count:
        for step, row in (divmod(k, batch) for k in range(NUMBER)):
            index, rng = order.locate(step, row)
            try:
                before = dataset.read(index)
                image, label, box = loader.augment(before, rng, index)
                pairs.append(Pair(dataset.ids[index], step + 1, before, (image, label), box))
            except DataError as error:
                first = first or error
                faults[dataset.ids[index]] = str(error)
            count()
    if first is not None and not pairs:
        raise first
    for fault in faults.values():
        print(f"warning: {fault}", flush=True)
    return Preview(config, dataset, pairs, faults)
