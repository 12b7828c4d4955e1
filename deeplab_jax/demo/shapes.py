"""A small segmentation data set, drawn: textured shapes before textured backgrounds.

The layout is that of a folder of one's own: `images/{train,val}/*.jpg`,
`labels/{train,val}/*.png` (8-bit class indices, 255 = void) and `classes.json`. Each class has
its shape, its colour and its texture; outlines are void. One seed always gives the same bytes.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

VOID = 255
TRAIN, VAL = 160, 32  # images
SIZES = ((128, 160), (160, 128))  # (height, width)
RADIUS = (18, 36)  # pixels
VOID_HALF_WIDTH = 0.7  # pixels to either side of an outline
JPEG_QUALITY = 92
_BACKGROUND = np.full(3, 112)  # in classes.json: light enough for overlays


_Field = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of two coordinates


class Shape(NamedTuple):
    """How one class looks.

    Attributes:
      name: of the class.
      hue: degrees; each object turns it by up to 10.
      distance: (x, y) in units of the radius to the distance from the outline, negative inside.
      texture: (x, y) in periods to a pattern in [-1, 1].
    """

    name: str
    hue: float
    distance: _Field
    texture: _Field


def _star(points: int, inner: float) -> _Field:
    """Returns the distance of a star with tips at radius 1 and notches at radius `inner`."""
    sector = np.pi / points
    notch = inner * np.array([np.cos(sector), np.sin(sector)])
    edge = notch - (1.0, 0.0)
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        angle = np.abs((np.arctan2(y, x) + sector) % (2 * sector) - sector)  # one edge for all
        radius = np.hypot(x, y)
        return (radius * np.cos(angle) - 1) * normal[0] + radius * np.sin(angle) * normal[1]

    return distance


def _stripes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sin(2 * np.pi * x)


def _dots(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _stripes(x, y) * _stripes(y, x)


def _checks(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sign(_dots(x, y))


def _circles(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _stripes(np.hypot(x, y), y)


def _plain(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.zeros_like(x)


SHAPES = (
    Shape("disc", 10, lambda x, y: np.hypot(x, y) - 1, _dots),
    Shape("square", 220, _star(4, np.cos(np.pi / 4)), _stripes),
    Shape("triangle", 130, _star(3, 0.5), _checks),
    Shape("ring", 50, lambda x, y: np.abs(np.hypot(x, y) - 0.72) - 0.28, _plain),
    Shape("star", 290, _star(5, 0.48), _circles),
)
CLASSES = ("background", *(shape.name for shape in SHAPES))


def draw_sample(rng: np.random.Generator, front: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws one image of two to five objects.

    Args:
      rng: decides everything but `front`.
      front: index into SHAPES of the object that nothing hides.

    Returns:
      uint8 image (H, W, 3), RGB, and uint8 label (H, W): 0 background, 1 + index into SHAPES, 255.
    """
    height, width = SIZES[rng.integers(len(SIZES))]
    image = _background(rng, height, width)
    label = np.zeros((height, width), np.uint8)
    hidden = rng.integers(len(SHAPES), size=rng.integers(1, 5))
    for index in (*hidden, front):
        _draw_object(rng, image, label, int(index))
    image += rng.normal(0, 0.015, image.shape)
    return (image.clip(0, 1) * 255).round().astype(np.uint8), label


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Returns float (H, W, 3) in [0, 1]: clouds between two dull colours."""
    clouds = np.zeros((height, width))
    for cells, weight in ((3, 0.5), (8, 0.3), (24, 0.25), (64, 0.2)):
        noise = rng.uniform(-1, 1, (cells, cells))
        clouds += weight * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    dark = _rgb(rng.uniform(0, 360), rng.uniform(0, 0.3), rng.uniform(0.15, 0.45))
    light = _rgb(rng.uniform(0, 360), rng.uniform(0, 0.3), rng.uniform(0.5, 0.9))
    return dark + (light - dark) * (0.5 + clouds[..., None]).clip(0, 1)


def _draw_object(
    rng: np.random.Generator, image: np.ndarray, label: np.ndarray, index: int
) -> None:
    """Draws over `image` and `label` in place."""
    height, width = label.shape
    shape, radius, turn = SHAPES[index], rng.uniform(*RADIUS), rng.uniform(0, 2 * np.pi)
    centre = rng.uniform(0.15, 0.85, 2) * (height, width)
    row, column = np.mgrid[:height, :width] - centre[:, None, None]
    x = column * np.cos(turn) + row * np.sin(turn)
    y = row * np.cos(turn) - column * np.sin(turn)
    distance = shape.distance(x / radius, y / radius) * radius  # pixels

    period = rng.uniform(6, 10)
    pattern = shape.texture(x / period, y / period)
    shade = row / radius * rng.uniform(-0.1, 0.1) + column / radius * rng.uniform(-0.1, 0.1)
    colour = _rgb(shape.hue + rng.uniform(-10, 10), rng.uniform(0.55, 0.9), rng.uniform(0.6, 0.9))
    surface = colour * (1 + 0.3 * pattern + shade)[..., None]
    cover = (0.5 - distance).clip(0, 1)[..., None]  # soft edge, one pixel wide
    image += (surface - image) * cover
    label[distance < 0] = index + 1
    label[np.abs(distance) < VOID_HALF_WIDTH] = VOID


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """Returns float (3,) in [0, 1]; `hue` in degrees."""
    k = (np.array([5, 3, 1]) + hue / 60) % 6
    return value - value * saturation * np.minimum(k, 4 - k).clip(0, 1)


def files(train: int = TRAIN, val: int = VAL) -> set[str]:
    """Returns the paths of all that `draw` writes, in its folder."""
    names = [f"{split}/{i:04d}" for split, n in (("train", train), ("val", val)) for i in range(n)]
    pairs = {path for name in names for path in (f"images/{name}.jpg", f"labels/{name}.png")}
    return {"classes.json"} | pairs


def draw(output: Path, seed: int = 0, train: int = TRAIN, val: int = VAL) -> None:
    """Draws a data set.

    Args:
      output: the folder to draw into, made if missing.
      seed: 0 or more; gives other pictures, and each its own, whatever the counts.
      train: images to train on, at least one for each shape.
      val: images to evaluate on, likewise.
    """
    output.mkdir(parents=True, exist_ok=True)
    (output / "classes.json").write_text(json.dumps(_classes(), indent=2) + "\n")
    for split, (name, count) in enumerate({"train": train, "val": val}.items()):
        images, labels = output / "images" / name, output / "labels" / name
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for i in range(count):
            rng = np.random.default_rng([seed, split, i])
            image, label = draw_sample(rng, front=i % len(SHAPES))
            Image.fromarray(image).save(images / f"{i:04d}.jpg", quality=JPEG_QUALITY)
            Image.fromarray(label).save(labels / f"{i:04d}.png")


def _classes() -> list[dict]:
    """Returns the contents of classes.json: names, and colours like the shapes' own."""
    colours = [_rgb(shape.hue, 0.8, 0.9) * 255 for shape in SHAPES]
    return [
        {"name": name, "color": [round(float(channel)) for channel in colour]}
        for name, colour in zip(CLASSES, [_BACKGROUND, *colours], strict=True)
    ]
