"""Draws a small segmentation data set: textured shapes before textured backgrounds.

    python scripts/draw_shapes.py data/shapes

The layout is that of a folder of one's own: `images/{train,val}/*.jpg`,
`labels/{train,val}/*.png` (8-bit class indices, 255 = void) and `classes.json`. Each class has
its shape, its colour and its texture; outlines are void. One seed always gives the same bytes.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from deeplab_jax.errors import ConfigError, DeepLabError

VOID = 255
SIZES = ((128, 160), (160, 128), (144, 144))  # (height, width)
RADIUS = (18, 36)  # pixels
VOID_HALF_WIDTH = 0.7  # pixels to either side of an outline
JPEG_QUALITY = 92


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
    distance: Callable[[np.ndarray, np.ndarray], np.ndarray]
    texture: Callable[[np.ndarray, np.ndarray], np.ndarray]


def _star(points: int, inner: float):
    """Returns the distance of a star with tips at radius 1 and notches at radius `inner`."""
    sector = np.pi / points
    notch = inner * np.array([np.cos(sector), np.sin(sector)])
    edge = notch - (1.0, 0.0)
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)

    def distance(x, y):
        angle = np.abs((np.arctan2(y, x) + sector) % (2 * sector) - sector)  # one edge for all
        radius = np.hypot(x, y)
        return (radius * np.cos(angle) - 1) * normal[0] + radius * np.sin(angle) * normal[1]

    return distance


def _stripes(x, y):
    return np.sin(2 * np.pi * x)


def _dots(x, y):
    return _stripes(x, y) * _stripes(y, x)


def _checks(x, y):
    return np.sign(_dots(x, y))


def _circles(x, y):
    return _stripes(np.hypot(x, y), 0)


def _plain(x, y):
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


def _draw_object(rng: np.random.Generator, image: np.ndarray, label: np.ndarray, index: int):
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


def draw(output: Path, seed: int = 0, train: int = 160, val: int = 32) -> None:
    """Draws a data set; repeats itself over a set drawn with the same arguments.

    Args:
      output: a folder that is missing, empty or holds this very set.
      seed: 0 or more; gives other pictures, and each its own, whatever the counts.
      train: images to train on, at least one for each shape.
      val: images to evaluate on, likewise.

    Raises:
      ConfigError: an argument is out of range, or `output` holds something else.
    """
    for flag, value, least in (("--seed", seed, 0), ("--train", train, 5), ("--val", val, 5)):
        if value < least:
            raise ConfigError(flag, f"must be {least} or more, got {value}", "change it")
    _claim(output, json.dumps({"seed": seed, "train": train, "val": val}) + "\n")
    (output / "classes.json").write_text(json.dumps(_classes(), indent=2) + "\n")
    for split, (name, count) in enumerate({"train": train, "val": val}.items()):
        images, labels = output / "images" / name, output / "labels" / name
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            rng = np.random.default_rng([seed, split, i])
            image, label = draw_sample(rng, front=i % len(SHAPES))
            Image.fromarray(image).save(images / f"{i:04d}.jpg", quality=JPEG_QUALITY)
            Image.fromarray(label).save(labels / f"{i:04d}.png")


def _claim(output: Path, what: str):
    """Makes the folder and leaves `what` in it, or raises if it holds anything else."""
    stamp = output / "shapes.json"
    is_same = stamp.is_file() and stamp.read_text() == what
    if not is_same and output.exists() and (not output.is_dir() or any(output.iterdir())):
        found = "is neither an empty folder nor this very set"
        raise ConfigError(output, found, "name another OUTPUT or remove this one")
    output.mkdir(parents=True, exist_ok=True)
    stamp.write_text(what)  # before the images, so that an interrupted drawing can be repeated


def _classes() -> list[dict]:
    """Returns the contents of classes.json: names, and colours like the shapes' own."""
    colours = [_rgb(shape.hue, 0.8, 0.9) * 255 for shape in SHAPES]
    return [
        {"name": name, "color": [round(float(channel)) for channel in colour]}
        for name, colour in zip(CLASSES, [np.zeros(3), *colours], strict=True)
    ]


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the folder to draw into")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--train", type=int, default=160, help="training images (default: 160)")
    parser.add_argument("--val", type=int, default=32, help="validation images (default: 32)")
    args = parser.parse_args(argv)
    try:
        draw(args.output, args.seed, args.train, args.val)
    except DeepLabError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"Drew {args.train} training and {args.val} validation images in {args.output}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
