"""Pictures and curves as text: half blocks in 24-bit colour where there is colour, else letters."""

import os
import string
import sys
from collections.abc import Sequence

import cv2
import numpy as np

_SHADES = " .:-=+*#%@"
_BARS = "▁▂▃▄▅▆▇█"
_LETTERS = string.ascii_letters + string.digits
_IGNORED = 255
_GREY = (128, 128, 128)  # of pixels that do not count


def has_colour() -> bool:
    """Tells whether standard output is a terminal that shows 24-bit colour and wants it."""
    wants = "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    return sys.stdout.isatty() and wants and _can_show("▀")


def _can_show(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def curve(values: Sequence[float]) -> str:
    """Returns a curve of one line: bars from 0 to the largest value, else digits."""
    steps = _BARS if _can_show(_BARS) else "123456789"
    top = max(values)
    return "".join(steps[min(len(steps) - 1, int(len(steps) * value / top))] for value in values)


def sample(
    image: np.ndarray,
    label: np.ndarray,
    palette: np.ndarray,
    class_names: Sequence[str],
    width: int,
    colour: bool,
) -> list[str]:
    """Returns the lines that show a sample: the image beside its labels, and the classes' names.

    Args:
      image: uint8 (H, W, 3) RGB.
      label: uint8 (H, W), class ids; 255 is ignored.
      palette: uint8 (C, 3).
      class_names: of the C classes.
      width: of each of the two pictures, in characters.
      colour: half blocks in 24-bit colour, else letters.
    """
    rows = max(2, round(width * image.shape[0] / image.shape[1] / 2) * 2)
    small = cv2.resize(image, (width, rows), interpolation=cv2.INTER_AREA)
    ids = cv2.resize(label, (width, rows), interpolation=cv2.INTER_NEAREST_EXACT)
    names = _legend(label, palette, class_names, colour)
    if colour:
        painted = np.concatenate([small, np.zeros_like(small[:, :1]), _paint(ids, palette)], 1)
        return [*_half_blocks(painted), names]
    shades = (small.mean(-1) / 256 * len(_SHADES)).astype(int)
    lines = [
        "".join(_SHADES[shade] for shade in shades[row]) + " | " + "".join(map(_letter, ids[row]))
        for row in range(0, rows, 2)  # a character is twice as high as wide
    ]
    return [*lines, names]


def _legend(
    label: np.ndarray, palette: np.ndarray, class_names: Sequence[str], colour: bool
) -> str:
    counts = np.bincount(label.ravel(), minlength=256)
    shown = [int(k) for k in np.argsort(-counts, kind="stable")[:6] if counts[k]]
    names = []
    for k in shown:
        name = "ignored" if k == _IGNORED else class_names[k]
        mark = _colour_mark(_GREY if k == _IGNORED else palette[k]) if colour else _letter(k)
        names.append(f"{mark} {name} {100 * counts[k] / label.size:.0f} %")
    return ", ".join(names)


def _letter(class_id: int) -> str:
    return "." if class_id == _IGNORED else _LETTERS[class_id % len(_LETTERS)]


def _paint(ids: np.ndarray, palette: np.ndarray) -> np.ndarray:
    table = np.full((256, 3), _GREY, np.uint8)
    table[: len(palette)] = palette
    table[_IGNORED] = _GREY
    return table[ids]


def _half_blocks(picture: np.ndarray) -> list[str]:
    lines = []
    for top, bottom in zip(picture[::2], picture[1::2], strict=True):
        cells = (
            f"\x1b[38;2;{a[0]};{a[1]};{a[2]};48;2;{b[0]};{b[1]};{b[2]}m▀"
            for a, b in zip(top, bottom, strict=True)
        )
        lines.append("".join(cells) + "\x1b[0m")
    return lines


def _colour_mark(rgb: Sequence[int]) -> str:
    return f"\x1b[38;2;{rgb[0]};{rgb[1]};{rgb[2]}m█\x1b[0m"
