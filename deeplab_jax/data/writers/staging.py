"""Room on the disk, and folders that appear when they are complete."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deeplab_jax.errors import ResourceError

_SPARE = 64 << 20  # bytes left free beside what is written


@contextmanager
def staged(root: Path, part: str) -> Iterator[Path]:
    """Yields an empty folder in `root`; `part` in it moves to `root / part` if the block succeeds.

    The move is atomic. `root` is made if missing; `root / part` must not exist. Remains of a killed
    run are removed first.

    Raises:
      ResourceError: another process is writing the same.
    """
    partial = root / f".{part.replace('/', '.')}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    lock = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            what = "is being written by another process"
            raise ResourceError(str(root / part), what, "wait for it to end") from error
        except OSError:
            pass  # a file system without locks
        for entry in partial.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        try:
            yield partial
            (root / part).parent.mkdir(parents=True, exist_ok=True)
            os.rename(partial / part, root / part)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    finally:
        os.close(lock)


def require_space(where: Path, needed: int) -> None:
    """Refuses a folder whose disk lacks space for `needed` bytes (ResourceError)."""
    free = shutil.disk_usage(where).free
    if needed + _SPARE > free:
        what = f"{needed} bytes are needed and {free} are free"
        raise ResourceError(str(where), what, "free some space, or choose another --output")
