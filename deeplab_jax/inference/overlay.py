"""An image under its classes' colours, and a legend of the classes below it."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deeplab_jax.data.pictures.windows import WindowedImage
from deeplab_jax.errors import clip

_MIN_WIDTH = 240  # pixels of a legend, also below narrower images
_STRIP = 256  # rows that are blended at a time
_MIN_FONT = 12  # pixels; larger images get larger letters
_MAX_NAME = 24  # characters
_INK, _QUIET, _PAPER = (28, 36, 48), (86, 96, 112), (255, 255, 255)


class Entry(NamedTuple):
    """A class in a legend.

    Attributes:
      name: name of the class.
      share: its share of the image's area.
      color: its red, green and blue, 0 to 255.
    """

    name: str
    share: float
    color: tuple[int, ...]


def blend(
    image: np.ndarray | WindowedImage, labels: np.ndarray, palette: np.ndarray, alpha: float = 0.5
) -> Image.Image:
    """Returns (1 - alpha) times an image plus alpha times its classes' colours, in RGB.

    `image` is uint8 (H, W, 3) RGB, `labels` uint8 (H, W) in [0, C), `palette` uint8 (C, 3) RGB.
    """
    height, width = labels.shape
    picture = Image.new("RGB", (width, height))
    for top in range(0, height, _STRIP):
        rows = slice(top, top + _STRIP)
        mixed = palette[labels[rows]]
        cv2.addWeighted(image[rows], 1 - alpha, mixed, alpha, 0, dst=mixed)
        picture.paste(Image.fromarray(mixed), (0, top))
    return picture


def add_legend(picture: Image.Image, entries: Sequence[Entry]) -> Image.Image:
    """Returns a picture over a white strip with colour, name and share of each entry.

    Entries stand in rows of equal columns, as many as fit. Letters are at least 12 pixels high and
    grow with the picture; below a picture narrower than 240 pixels the strip is wider than it.
    """
    width = max(picture.width, _MIN_WIDTH)
    size = max(_MIN_FONT, min(max(picture.size) // 60, width // 20))
    font = ImageFont.load_default(size)
    names = [short_name(entry.name) for entry in entries]
    shares = [percent(entry.share) for entry in entries]
    widths = [font.getlength(f"{n} {s}") for n, s in zip(names, shares, strict=True)]
    row = round(1.6 * size)
    column = min(round(max([*widths, 1]) + 2.5 * size), width)
    number = max(1, (width - size // 2) // column)
    height = row * -(-len(entries) // number) + size
    canvas = Image.new("RGB", (width, picture.height + height), _PAPER)
    canvas.paste(picture, ((width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    for place, (name, share, entry) in enumerate(zip(names, shares, entries, strict=True)):
        x = size // 2 + place % number * ((width - size // 2) // number)
        middle = picture.height + size // 2 + place // number * row + row // 2
        box = (x, middle - size // 2, x + size, middle - size // 2 + size)
        draw.rectangle(box, fill=entry.color, outline=_QUIET)
        x += round(1.5 * size)
        draw.text((x, middle), name, _INK, font, anchor="lm")
        draw.text((x + font.getlength(f"{name} "), middle), share, _QUIET, font, anchor="lm")
    return canvas


def short_name(name: str) -> str:
    """Returns a class name of at most 24 printable characters."""
    name = clip(name)
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 3].rstrip(' ,')}..."


def percent(share: float) -> str:
    """Returns a share above 0 in whole percent, "<1 %" if it is less."""
    return f"{100 * share:.0f} %" if share >= 0.01 else "<1 %"
