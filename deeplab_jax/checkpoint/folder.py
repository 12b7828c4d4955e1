"""Changes to the folder of steps, each of which leaves it whole when it is cut off.

Nothing is removed that is not a step of ours, and no link is followed. In a bucket nothing can be
renamed: the file that says that a step is complete is the first to be removed.
"""

import os
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from deeplab_jax.errors import ConfigError
from deeplab_jax.utils import steps
from deeplab_jax.utils.places import is_address, is_taken

# Names that are no steps: saves and removals that a kill cut off.
_UNFINISHED = re.compile(r"[0-9]+\.orbax-checkpoint-tmp(-[0-9]+)?")
_REMOVED = re.compile(r"[0-9]+\.removed(\.[0-9]+)?")
_DAMAGED = re.compile(r"[0-9]+\.damaged(\.[0-9]+)?")
_SET_ASIDE = re.compile(r"[0-9]+\.(damaged|replaced)(\.[0-9]+)?")
# What a step may hold.
_NAMES = {"params", "batch_stats", "opt_state", "ema", "orbax.checkpoint"}
_NAMES |= {steps.DESCRIPTION, steps.COMPLETE}


def check_link(path: str | os.PathLike) -> None:
    """Refuses a folder of steps that is a symbolic link: others' files would be removed through it.

    Raises:
      ConfigError: it is one.
    """
    root = steps.folder_of(path)
    if root.is_symlink():
        what = f"is a symbolic link to {os.readlink(root)}"
        fix = f"move that folder here, and link the whole of {path} instead"
        raise ConfigError(str(root), what, fix)


def set_aside(path: str | os.PathLike, step: int, label: str) -> Path:
    """Renames a step to a name that is no step, such as `9.damaged`; returns the new place."""
    where = steps.step_path(path, step)
    names = [f"{step}.{label}", *(f"{step}.{label}.{k}" for k in range(2, 1000))]
    free = next(name for name in names if not is_taken(where.with_name(name)))
    if is_address(where):
        cast(Any, where).copy_tree(where.with_name(free))
        _remove_from_bucket(where)
        return where.with_name(free)
    where.rename(where.with_name(free))
    sync(where.parent)
    return where.with_name(free)


def set_aside_before(path: str | os.PathLike) -> list[str]:
    """Returns the names of damaged steps that were set aside."""
    root = steps.folder_of(path)
    names = [entry.name for entry in root.iterdir()] if root.is_dir() else []
    return sorted(name for name in names if _DAMAGED.fullmatch(name))


def clean(path: str | os.PathLike) -> None:
    """Removes what killed saves and removals have left."""
    if is_address(steps.folder_of(path)):
        _clean_bucket(path)
        return
    for entry in list(steps.folder_of(path).iterdir()):
        if entry.is_symlink() or not entry.is_dir():
            continue
        if _UNFINISHED.fullmatch(entry.name):
            shutil.rmtree(entry)
        elif _REMOVED.fullmatch(entry.name) and _is_rest(entry):
            _remove(entry)


def remove(path: str | os.PathLike, step: int) -> None:
    """Removes a step whose description is good; others stay."""
    if not steps.is_good(path, step):
        return
    where = steps.step_path(path, step)
    if is_address(where):
        _remove_from_bucket(where)
        return
    gone = where.with_name(f"{step}.removed")
    if not os.path.lexists(gone):  # otherwise not ours, see `clean`
        where.rename(gone)
        _remove(gone)


def role_of(entry: Path) -> str:
    """Returns what an entry is that is no finished step, by its name: see `listing.Entry`."""
    if entry.is_symlink() or not entry.is_dir():
        return "foreign"
    if _SET_ASIDE.fullmatch(entry.name):
        return "set aside"
    is_left = any(names.fullmatch(entry.name) for names in (_UNFINISHED, _REMOVED))
    if is_address(entry):
        is_left = entry.name.isdecimal() and is_ours(entry)
    return "unfinished" if is_left else "foreign"


def is_ours(entry: Path) -> bool:
    """Tells whether an entry is a folder that holds nothing but what a step holds."""
    if entry.is_symlink() or not entry.is_dir():
        return False
    names = {inner.name.partition(".orbax-checkpoint-tmp")[0] for inner in entry.iterdir()}
    return names <= _NAMES and (bool(names) or not entry.name.isdecimal())


def discard(path: str | os.PathLike, name: str) -> None:
    """Removes an entry for which `is_ours` holds; a step that is cut off here is no step."""
    where = steps.folder_of(path).absolute() / name
    if is_address(where):
        _remove_from_bucket(where)
        return
    if name.isdecimal():
        where = set_aside(path, int(name), "removed")
    _remove(where)


def check_writable(folder: Path) -> None:
    """Raises OSError or ResourceError if nothing can be written in a folder; leaves nothing."""
    if is_address(folder):
        (folder / ".writable").write_bytes(b"")
        (folder / ".writable").unlink(missing_ok=True)
    else:
        tempfile.TemporaryFile(dir=folder).close()


def sync(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_step(path: str | os.PathLike, step: int) -> None:
    """Returns once every file and folder of a step, and its name, are on the disk."""
    where = steps.step_path(path, step)
    if is_address(where):  # where a file that was written is safe
        return
    for root, _, files in os.walk(where):
        for name in files:
            with open(Path(root, name), "rb") as file:
                os.fsync(file.fileno())
        sync(Path(root))
    sync(where.parent)
    sync(where.parent.parent)


def free_bytes(path: Path) -> int | None:
    """Returns the free bytes of a disk; None where unknown, as in buckets, mounted or not."""
    if is_address(path):
        return None
    usage = shutil.disk_usage(path)
    return usage.free if usage.total else None


def _clean_bucket(path: str | os.PathLike) -> None:
    root, complete = steps.folder_of(path), set(steps.finished(path))
    with suppress(FileNotFoundError):
        for entry in root.iterdir():
            if not entry.name.isdecimal() or int(entry.name) in complete:
                continue
            if {inner.name for inner in entry.iterdir()} <= _NAMES:
                _remove_from_bucket(entry)


def _remove_from_bucket(where: Path) -> None:
    """Removes a step, of which a kill leaves an unfinished one."""
    (where / steps.COMPLETE).unlink(missing_ok=True)
    cast(Any, where).rmtree()


def _is_rest(folder: Path) -> bool:
    """Tells whether a folder is what a removal has left: nothing, or at least the description."""
    names = os.listdir(folder)
    return not names or steps.DESCRIPTION in names


def _remove(folder: Path) -> None:
    """Removes a folder, its description last, so that what is left tells whose it is."""
    for entry in folder.iterdir():
        if entry.name == steps.DESCRIPTION:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    (folder / steps.DESCRIPTION).unlink(missing_ok=True)
    folder.rmdir()
