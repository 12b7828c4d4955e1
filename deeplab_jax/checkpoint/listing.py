"""What lies in a folder of steps, by descriptions alone; and what every array of it says."""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

from deeplab_jax.checkpoint import description, folder, reading
from deeplab_jax.checkpoint.description import Description
from deeplab_jax.errors import CheckpointError, DamagedError
from deeplab_jax.utils import progress, steps
from deeplab_jax.utils.places import is_address, is_taken
from deeplab_jax.utils.trees import by_path

_END_OF_TIME = 1e11  # seconds since 1970: what lies beyond is no date of a step
ITEMS = ("params", "batch_stats", "opt_state")  # of steps of a version that does not list arrays


class Entry(NamedTuple):
    """An entry of a folder of steps.

    Attributes:
      name: its name there.
      role: "step", "set aside", "unfinished" or "foreign".
      bytes: of its regular files.
      saved: when it was saved, in seconds since 1970; None where that is not known.
      described: its description; None where that is not good, and of what is no step.
      reason: what is wrong with a step; "" where its description is good.
    """

    name: str
    role: str
    bytes: int = 0
    saved: float | None = None
    described: Description | None = None
    reason: str = ""


def entries(path: str | os.PathLike) -> list[Entry]:
    """Returns what lies in the folder of steps: steps in order, then the rest; reads no array.

    What a run removes or renames meanwhile is left out.
    """
    root = steps.folder_of(path)
    names = {entry.name for entry in root.iterdir()}
    numbers = steps.finished(path)
    found = [_step(path, step) for step in numbers if str(step) in names]
    for name in sorted(names - set(map(str, numbers)), key=_by_number):
        role = folder.role_of(root / name)
        found.append(Entry(name, role, 0 if role == "foreign" else _size(root / name)))
    return [entry for entry in found if is_taken(root / entry.name)]


class Verified(NamedTuple):
    """What reading every array of a step has shown.

    Attributes:
      step: its number.
      arrays: number of arrays that were read.
      has_checksums: whether there were checksums to compare them with.
      reason: what is wrong; "" for a good step.
    """

    step: int
    arrays: int
    has_checksums: bool
    reason: str


def verify(path: str | os.PathLike, wanted: list[int]) -> Iterator[Verified]:
    """Reads every array of steps; a bar shows the items that were read.

    Raises:
      ResourceError: memory or a permission is missing.
    """
    total = sum(len(items_of(path, step)) for step in wanted)
    with progress.counting(total, "items of steps read") as count:
        for step in wanted:
            number, has_checksums = 0, True
            try:
                has_checksums = description.read(path, step).arrays is not None
                for name in items_of(path, step):
                    number += len(by_path(reading.read_arrays(path, step, [name])))
                    count()
            except CheckpointError as error:
                if is_taken(steps.step_path(path, step)):  # else a run has removed it
                    yield Verified(step, number, has_checksums, error.what)
            else:
                yield Verified(step, number, has_checksums, "")


def last_good(path: str | os.PathLike, wanted: list[int]) -> int | None:
    """Returns the newest of steps whose every array is as it was saved; None if there is none."""
    for step in sorted(wanted, reverse=True):
        if [found.reason for found in verify(path, [step])] == [""]:
            return step
    return None


def items_of(path: str | os.PathLike, step: int) -> list[str]:
    """Returns the names of a step's items; of a damaged step, none."""
    try:
        arrays = description.read(path, step).arrays
    except CheckpointError:
        return []
    if arrays is None:
        return [name for name in ITEMS if (steps.step_path(path, step) / name).is_dir()]
    return sorted({name.partition("/")[0] for name in arrays})


def _step(path: str | os.PathLike, step: int) -> Entry:
    where = steps.step_path(path, step)
    try:
        described = description.read(path, step)
    except CheckpointError as error:
        what = error.what
        if isinstance(error, DamagedError):
            what = what.removeprefix("is damaged: ")
        return Entry(str(step), "step", _size(where), reason=what)
    return Entry(str(step), "step", _size(where), _saved(where / steps.DESCRIPTION), described)


def _saved(file: Path) -> float | None:
    """Returns the time that Orbax notes beside a description; copying a step does not change it."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        seconds = json.loads(file.read_bytes())["commit_timestamp_nsecs"] / 1e9
        return seconds if 0 <= seconds < _END_OF_TIME else None
    return None


def _size(where: Path) -> int:
    """Returns the bytes of the regular files below a folder; no link is followed."""
    total = 0
    with suppress(FileNotFoundError):  # a run removes it just now
        for entry in where.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                total += _size(entry)
            elif is_address(entry):
                total += cast(Any, entry.stat()).length
            elif stat.S_ISREG((status := entry.lstat()).st_mode):
                total += status.st_size
    return total


def _by_number(name: str) -> tuple[int, str]:
    number = name.partition(".")[0]
    return (int(number) if number.isdecimal() else 1 << 62, name)
