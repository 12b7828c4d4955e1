"""What pictures hold, by opening a few: photographs, indices, colours, shades or deep values."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from deeplab_jax.data.files import LOSSY_SUFFIXES
from deeplab_jax.data.images import read_size
from deeplab_jax.errors import DataError

PHOTO, INDEX, COLORS, SHADES, DEEP, UNKNOWN = (
    "photographs", "index masks", "masks in colours", "shades of grey", "16-bit pictures",
    "pictures",
)  # fmt: skip
_LOOKS = 3  # pictures opened of one folder
_SIDE = 256  # a grid of at most so many rows and columns is looked at
_MAX_LEVELS, _MAX_COLORS = 64, 64  # of a mask
AS_MASKS = (INDEX, COLORS, UNKNOWN, DEEP, SHADES, PHOTO)  # the likeliest first
AS_IMAGES = (PHOTO, SHADES, DEEP, UNKNOWN, COLORS, INDEX)


def look(root: Path, names: Sequence[str]) -> str:
    """Returns what most of a few of the pictures hold; `names` are paths below `root`."""
    step = max(1, len(names) // _LOOKS)
    found = Counter(_look(root / name) for name in names[::step][:_LOOKS])
    return found.most_common(1)[0][0] if found else UNKNOWN


def _look(path: Path) -> str:
    if path.name.lower().endswith(LOSSY_SUFFIXES):
        return PHOTO
    try:
        read_size(path)  # refuses pipes, which would wait, and what is no picture
        with Image.open(path) as picture:
            if picture.format in ("JPEG", "WEBP", "MPO"):
                return PHOTO
            if picture.mode in ("1", "P"):
                return INDEX
            if picture.mode.startswith(("I", "F")):
                return DEEP
            pixels = np.asarray(picture)
    except (DataError, OSError, ValueError):
        return UNKNOWN
    if pixels.ndim == 2 and pixels.dtype == np.uint16:
        return DEEP
    if pixels.dtype != np.uint8:
        return UNKNOWN
    rows, columns = (max(1, side // _SIDE) for side in pixels.shape[:2])
    pixels = pixels[::rows, ::columns]
    if pixels.ndim == 3 and (pixels.shape[2] < 3 or _is_grey(pixels)):
        pixels = pixels[..., 0]
    if pixels.ndim == 2:
        return INDEX if len(np.unique(pixels)) <= _MAX_LEVELS else SHADES
    codes = pixels[..., 0].astype(np.int32) << 16 | pixels[..., 1].astype(np.int32) << 8
    return COLORS if len(np.unique(codes | pixels[..., 2])) <= _MAX_COLORS else PHOTO


def foreground(path: Path) -> np.ndarray | None:
    """Returns where a mask is not 0, bool (h, w), on a grid; None if it has more than two values.

    Lossy pictures and what cannot be opened are None, too.
    """
    if path.name.lower().endswith(LOSSY_SUFFIXES):
        return None
    try:
        read_size(path)
        with Image.open(path) as picture:
            pixels = np.asarray(picture)
    except (DataError, OSError, ValueError):
        return None
    rows, columns = (max(1, side // _SIDE) for side in pixels.shape[:2])
    pixels = pixels[::rows, ::columns].reshape(*pixels[::rows, ::columns].shape[:2], -1)
    if pixels.shape[2] in (2, 4):  # alpha
        pixels = pixels[..., :-1]
    drawn = np.asarray((pixels != 0).any(axis=-1))
    return drawn if not drawn.any() or (pixels[drawn] == pixels[drawn][0]).all() else None


def _is_grey(pixels: np.ndarray) -> bool:
    return bool((pixels[..., :1] == pixels[..., 1:3]).all())
