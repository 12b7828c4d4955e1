"""Photographs too large to be decoded at once: rows are decoded when they are asked for."""

import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from deeplab_jax.data import images
from deeplab_jax.data.pictures import depth, tiff
from deeplab_jax.errors import DataError

MAX_PIXELS = 1_000_000_000  # of a picture that is read by windows
_BYTES = 15  # a pixel, of labels, confidence, the overlay, and the labels of the picture before
_BYTES_WHOLE = 9  # a pixel, of a picture that is decoded at once: 16 bits, then 8 of them
_BYTES_ROWS = _BYTES_WHOLE + 3  # a pixel, of rows that are decoded while those before are kept
_ROWS = 256  # of a window, at least: an overlay is blended by so many


class WindowedImage:
    """A photograph, uint8 (H, W, 3) RGB, that is decoded where it is indexed by slices.

    Pixels equal those of `images.read_image`. Strips or tiles of a TIFF are decoded as they are
    needed, and those of the latest rows kept; other files, and TIFFs whose parts cannot be decoded
    alone, are decoded at the first use and kept. Several threads may read.

    Attributes:
      name: of the picture in messages.
      shape: (H, W, 3).
      memory: bytes that the picture and its results take, at most.
    """

    dtype = np.dtype(np.uint8)
    ndim = 3

    def __init__(
        self,
        name: str,
        source: str | Path | bytes,
        value_range: Sequence[int] = (),
        rows: int = _ROWS,
    ):
        """Reads the header alone; `source` is a path or the bytes of a file.

        `rows` is the height of the windows that will be asked for, for `memory`.

        Raises:
          DataError: as `images.read_size`, with MAX_PIXELS of this module.
        """
        self.name, self._source, self._value_range = name, source, tuple(value_range)
        self._directory: tiff.Directory | None = None
        with self._opened(MAX_PIXELS) as file:
            header = images.open_header(name, file, MAX_PIXELS)
            self.shape = (*images.upright_size(header), 3)
            found = images.directory_of(header)
            is_cut = bool(found.tags) and tiff.is_cuttable(found, images.MAX_PIXELS)
            self._directory = found if is_cut else None
        height, width, _ = self.shape
        self.memory = height * width * (_BYTES + (0 if self._directory else _BYTES_WHOLE))
        if self._directory:  # whole strips or tiles, at both ends of a window
            decoded = max(rows, _ROWS) + 2 * tiff.part_rows(self._directory)
            self.memory += min(decoded, height) * width * _BYTES_ROWS
        self._lock = threading.Lock()
        self._first, self._rows = 0, np.empty((0, *self.shape[1:]), np.uint8)

    def __getitem__(self, window: slice | tuple[slice, ...]) -> np.ndarray:
        """Returns the pixels of a slice of rows, or of slices of rows and columns.

        Raises:
          DataError: the file is damaged, or has 16 bits and there is no range.
        """
        rows, *rest = window if isinstance(window, tuple) else (window,)
        top, bottom, _ = rows.indices(self.shape[0])
        with self._lock:
            if top < self._first or bottom > self._first + len(self._rows):
                self._first, self._rows = self._decoded(top, bottom)
            kept = self._rows[top - self._first : bottom - self._first]
        return kept[:, *rest]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Returns all pixels as an array."""
        return np.array(self[:], dtype)

    def _decoded(self, top: int, bottom: int) -> tuple[int, np.ndarray]:
        """Returns a row at or above `top`, and the pixels from it to `bottom` or below."""
        with self._opened(MAX_PIXELS if self._directory else None) as file:
            if self._directory is None:
                data, first = file.read(), 0
            else:
                try:
                    data, first = tiff.cut(file, self._directory, top, bottom)
                except ValueError as error:
                    raise images.damaged(self.name, f" ({error})") from error
        pixels = images.decode_pixels(self.name, data, MAX_PIXELS)
        if self._directory and pixels.dtype != np.uint8 and not self._value_range:
            # The largest value of these rows would say little of the others'.
            fix = "set --config.data.value_range=LOW,HIGH to the range of your pictures, or"
            fix += " 0,65535 for the upper 8 bits"
            raise depth.NoRangeError(self.name, "has 16 bits a channel", fix)
        return first, depth.to_8_bits(self.name, pixels, self._value_range)

    @contextmanager
    def _opened(self, max_pixels: int | None) -> Iterator[BinaryIO]:
        if isinstance(self._source, bytes):
            yield io.BytesIO(self._source)
            return
        with images.opened(str(self._source), max_pixels) as file:
            yield file


def read_by_windows(
    name: str, source: str | Path | bytes, value_range: Sequence[int], free: int | None,
    rows: int = _ROWS,
) -> WindowedImage:  # fmt: skip
    """Returns a picture to be read by windows, if `free` bytes of memory hold it and its results.

    `rows` is the height of the windows.

    Raises:
      DataError: as `WindowedImage`, or there is too little memory; None, where unknown, is enough.
    """
    picture = WindowedImage(name, source, value_range, rows)
    if free is not None and picture.memory > free:
        height, width, _ = picture.shape
        what = (
            f"of {height} x {width} pixels needs {picture.memory / 2**30:.1f} GiB of memory with "
        )
        what += f"its results, and {free / 2**30:.1f} GiB are free"
        raise DataError(name, what, "cut it into tiles")
    return picture
