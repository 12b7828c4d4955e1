"""Search for training samples that cannot be read, on request and before the first step.

They are listed in `<workdir>/bad_samples.txt` and left out. A continued run reads the list, so that
the order of samples stays a function of the seed and of the ids that remain.
"""

from collections.abc import Container
from functools import partial
from pathlib import Path

from deeplab_jax.data import Dataset
from deeplab_jax.data.pictures.depth import NoRangeError
from deeplab_jax.data.pipeline import num_threads
from deeplab_jax.data.workers import in_threads, reading
from deeplab_jax.distributed import hosts
from deeplab_jax.errors import DataError, shorten
from deeplab_jax.utils.atomic import atomic_write
from deeplab_jax.utils.progress import counting

_FILE = "bad_samples.txt"  # a line each: id, tab, reason


def leave_out(dataset: Dataset, limit: int, workdir: Path, is_continued: bool) -> Dataset:
    """Returns the data set without its bad samples, which are listed in `workdir`.

    Args:
      dataset: the training split.
      limit: `config.data.max_bad_samples`; 0 reads nothing.
      workdir: created if missing.
      is_continued: use the list of the run in `workdir` instead of reading samples.

    Raises:
      DataError: more samples are bad than `limit`, or one has 16 bits and the recipe no range.
      ReaderError: reading one does not end.
    """
    if not limit:
        return dataset
    path, listed = workdir / _FILE, None
    with hosts.sync_errors():
        if hosts.is_primary():  # alone: others may see an older list for a while
            if not (is_continued and path.is_file()):
                found = _find(dataset)
                with atomic_write(path) as file:
                    file.writelines(f"{name}\t{why}\n".encode() for name, why in found.items())
            listed = _read(path)
    bad: dict[str, str] = hosts.all_gather(listed)[0]
    if len(bad) > limit:
        raise DataError(
            str(path),
            f"lists {len(bad)} bad samples of {len(dataset)}, and config.data.max_bad_samples="
            f"{limit} ({shorten(bad, 5)}; the first: {next(iter(bad.values()))})",
            f"mend them, or set config.data.max_bad_samples={len(bad)}",
        )
    if bad:
        print(f"{len(bad)} bad samples are left out: {path}", flush=True)
    return _without(dataset, bad)


def without_listed(dataset: Dataset, workdir: Path) -> Dataset:
    """Returns the data set without the samples that a run in `workdir` has left out, if any.

    Raises:
      DataError: the list cannot be read.
    """
    path = workdir / _FILE
    return _without(dataset, _read(path)) if path.is_file() else dataset


def _without(dataset: Dataset, bad: Container[str]) -> Dataset:
    return dataset.select([i for i, name in enumerate(dataset.ids) if name not in bad])


def _read(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, ValueError) as error:
        fix = "remove it: all training samples are then read again"
        raise DataError(str(path), f"cannot be read ({error})", fix) from error
    return {name: why for name, _, why in (line.partition("\t") for line in lines) if name}


def _find(dataset: Dataset) -> dict[str, str]:
    """Returns {id: reason} of the bad samples, after reading every sample once."""
    total, names = len(dataset), dataset.source.names
    print(f"reading {total} training samples, to leave out bad ones", flush=True)
    read = partial(_fault, dataset)
    bad: dict[str, str] = {}
    with counting(total, "training samples read") as count:
        for index, reason in enumerate(in_threads(read, range(total), num_threads(), names)):
            if reason:
                bad[dataset.ids[index]] = reason
            count()
    return bad


def _fault(dataset: Dataset, index: int) -> str:
    try:
        with reading(index):
            dataset.read(index)
    except NoRangeError:  # the recipe lacks a field, and the samples are good
        raise
    except DataError as error:
        return " ".join(str(error).split())
    return ""
