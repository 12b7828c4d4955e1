"""Label counts of a split, known to all hosts before a run or an evaluation computes anything.

They are kept in the work directory, or in that of the checkpoint, and counted again when a mask or
its meaning has changed.
"""

from contextlib import suppress
from pathlib import Path

from deeplab_jax.config import DataConfig
from deeplab_jax.data import Dataset
from deeplab_jax.data.label_counts import (
    LabelCounts,
    count_labels,
    fingerprint,
    oddities,
    read_kept,
    to_keep,
)
from deeplab_jax.distributed import hosts
from deeplab_jax.utils.atomic import atomic_write
from deeplab_jax.utils.progress import counting

FILE = "label_counts.json"


def find_oddities(
    dataset: Dataset, data: DataConfig, folder: Path, is_train: bool, keeps: bool = True
) -> list[str]:
    """Returns `label_counts.oddities` of a split; the hosts share the masks that are to be read.

    Args:
      dataset: the split.
      data: its configuration.
      folder: where counts are kept, in `label_counts.json`.
      is_train: whether it is trained on, not evaluated.
      keeps: write new counts there, if that is possible.

    Raises:
      DataError: a mask cannot be read, or has a value that means nothing; on all hosts.
      ReaderError: reading one does not end; on all hosts.
    """
    path, masks, kept = folder / FILE, "", None
    with hosts.sync_errors():
        if hosts.is_primary():  # alone: files may look otherwise elsewhere
            masks = fingerprint(dataset)
            kept = read_kept(path, dataset.split, masks)
    kept = hosts.all_gather(kept)[0]
    if kept is not None:
        return oddities(LabelCounts(*kept), dataset, data, is_train)
    with hosts.sync_errors():
        own = hosts.own_share(range(len(dataset)))
        where = " on this host" if hosts.are_multiple() else ""
        with counting(len(own), f"masks of split {dataset.split} read{where}") as count:
            counted = count_labels(dataset, own, count)
    pixels, ignored = zip(*hosts.all_gather(counted), strict=True)
    counts = LabelCounts(tuple(map(sum, zip(*pixels, strict=True))), sum(ignored))
    if keeps and hosts.is_primary():
        with suppress(OSError), atomic_write(path) as file:
            file.write(to_keep(path, dataset.split, masks, counts).encode())
    return oddities(counts, dataset, data, is_train)
