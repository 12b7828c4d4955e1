"""Class indices in masks of several channels, and what transparency means in a mask.

An index may be stored in colour: in equal channels, or in one channel with values below 64 while
the others are zero. Fully transparent pixels are ignored, whatever colour lies beneath; a pixel
that is half transparent has no class.
"""

import numpy as np

from deeplab_jax.errors import DataError

TRANSPARENT = -1  # index of a fully transparent pixel
CHANNELS = {"LA": 2, "PA": 2, "RGB": 3, "RGBX": 3, "RGBA": 4}  # Pillow modes, the last alpha
_MAX_ONE_CHANNEL = 63  # VOC's colours are 64 and more in every channel they use
_HALF = "export masks without soft edges: each pixel opaque, or fully transparent to be ignored"


def to_index(name: str, pixels: np.ndarray) -> np.ndarray | None:
    """Returns the indices of uint8 (H, W, channels) as `CHANNELS` names them; None for colours.

    They are uint8 (H, W), or int32 with `TRANSPARENT` where pixels are transparent.

    Raises:
      DataError: pixels are half transparent; the text starts with `name`.
    """
    has_alpha = pixels.shape[2] in (2, 4)
    values, alpha = (pixels[..., :-1], pixels[..., -1]) if has_alpha else (pixels, None)
    if alpha is not None and (alpha == 0).any():
        values = values * (alpha > 0)[..., None].astype(np.uint8)  # what lies beneath is no class
    channel = _index_channel(values)
    if channel is None:
        return None
    label = np.ascontiguousarray(values[..., channel])
    if alpha is None or not _is_transparent(name, alpha):
        return label
    return np.where(alpha == 0, TRANSPARENT, label.astype(np.int32))


def _index_channel(values: np.ndarray) -> int | None:
    first = values[..., 0]
    if all(np.array_equal(first, values[..., c]) for c in range(1, values.shape[2])):
        return 0
    highest = values.max((0, 1))
    used = np.flatnonzero(highest)
    return int(used[0]) if len(used) == 1 and highest[used[0]] <= _MAX_ONE_CHANNEL else None


def without_alpha(name: str, pixels: np.ndarray) -> np.ndarray:
    """Returns RGB of RGBA, uint8 (H, W, 4), where every pixel is opaque; else RGBA as it is.

    Raises:
      DataError: pixels are half transparent; the text starts with `name`.
    """
    if _is_transparent(name, pixels[..., 3]):
        return pixels
    return np.ascontiguousarray(pixels[..., :3])


def _is_transparent(name: str, alpha: np.ndarray) -> bool:
    """Tells whether pixels are fully transparent; refuses what lies between."""
    half = alpha[(alpha > 0) & (alpha < 255)]
    if half.size:
        what = f"is half transparent in {half.size} pixels (such as alpha {half[0]} of 255)"
        raise DataError(name, what, _HALF)
    return bool((alpha == 0).any())


def fault_of_mode(mode: str, pixels: np.ndarray | None) -> tuple[str, str]:
    """Returns what a mask of a Pillow mode without indices is, and what to do instead.

    `pixels` are those of mode F, 32-bit floats.
    """
    end = "not one class index per pixel"
    fix = "save masks as 8-bit grey or palette PNG of class indices"
    if pixels is not None:
        is_whole = bool(np.isfinite(pixels).all() and (pixels == np.rint(pixels)).all())
        if is_whole:
            fix += ", as gdal_translate -ot Byte IN.tif OUT.png does"
        kind = "whole numbers" if is_whole else "fractions"
        return f"holds {kind} as 32-bit floats, {end}", fix
    if mode in CHANNELS:
        more = ", or list the colours in classes.json and set config.data.mask_format=color"
        return f"holds colours (mode {mode}), {end}", fix + more
    return f"holds colours for print or video (mode {mode}), {end}", fix
