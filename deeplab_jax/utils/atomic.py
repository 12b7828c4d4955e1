"""Files that appear under their name when they are complete, or never."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from deeplab_jax.errors import ResourceError


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file that replaces `path` if the block ends without error.

    A missing folder of `path` is made.

    Raises:
      OSError: the file cannot be written; `filename` is set.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(partial, "wb") as file:
            yield file
        os.replace(partial, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a write that fails does not say where
        raise
    finally:
        partial.unlink(missing_ok=True)


def check_writable(path: Path, flag: str) -> None:
    """Refuses a place where a file could not be written, before the work that makes it.

    Args:
      path: the file.
      flag: the command's flag that names it, for the message.

    Raises:
      ResourceError: the folder is missing, or one of both is not writable.
    """
    fix = f"choose another {flag}, or create its folder"
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise ResourceError(str(path), what, fix)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ResourceError(str(path), "is not writable", f"choose another {flag}, or its mode")
