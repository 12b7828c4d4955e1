"""Atomic writing: a file appears under its name when it is complete, or never."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from deeplab_jax.utils.places import is_address


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file that replaces `path` if the block ends without error.

    A missing folder of `path` is made. What goes to a bucket is kept in memory until then.

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
        with open(partial, "wb") as file:
            yield file
        os.replace(partial, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a write that fails does not say where
        raise
    finally:
        partial.unlink(missing_ok=True)
