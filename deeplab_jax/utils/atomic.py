"""Atomic writing: a file appears under its name when it is complete, or never."""

import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from deeplab_jax.utils.locks import try_lock
from deeplab_jax.utils.places import is_address

_PARTIAL = re.compile(r"\..+\.(json|jsonl|txt|csv|png|jpg|npz|html)\.(\d+)\.tmp")


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Sets the `filename` of an OSError in the block: a write that fails does not say where."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file that replaces `path` if the block ends without error.

    A missing folder of `path` is made. A process that is killed leaves the temporary file, for
    `remove_stale`. What goes to a bucket is kept in memory until then.

    Raises:
      OSError: the file cannot be written; `filename` is set.
      ResourceError: the bucket does not answer, or refuses.
    """
    if is_address(path):
        content = io.BytesIO()
        yield content
        path.write_bytes(content.getvalue())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with named(path):
            with open(partial, "wb") as file:
                try_lock(file.fileno())  # shows that this process lives, also to other hosts
                yield file
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_stale(folder: Path) -> None:
    """Removes temporary files of `atomic_write` in a folder whose writer has died, if it may.

    Only a file of this user is removed that has a name of ours, that nobody has locked, and whose
    process does not run here.
    """
    with suppress(OSError):  # no folder, or not readable
        for name in os.listdir(folder):
            if found := _PARTIAL.fullmatch(name):
                _remove_if_stale(folder / name, int(found[2]))


def _remove_if_stale(path: Path, pid: int) -> None:
    with suppress(OSError):
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK  # NFS locks what is writable
        descriptor = os.open(path, flags)
        try:
            info = os.fstat(descriptor)
            is_own = stat.S_ISREG(info.st_mode) and info.st_uid == os.getuid()
            if is_own and try_lock(descriptor) and not _is_running(pid):
                path.unlink()
        finally:
            os.close(descriptor)


def _is_running(pid: int) -> bool:
    """Tells whether another process has this number."""
    if pid == os.getpid():  # of an earlier process, as in containers, where numbers repeat
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
