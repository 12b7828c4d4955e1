"""Draws a data set with a rare class, and a recipe that trains on it in two minutes on two cores.

    python scripts/draw_rare.py rare
    deeplab train --config rare/rare.py --workdir rare/plain
    deeplab train --config rare/rare.py --workdir rare/lovasz --config.loss.lovasz=1

Leaves lie before clouds; 0.5 % of the pixels are spots on leaves, small and reddish. Three times as
many specks look nearly alike and are part of the leaf, so that plain cross entropy, which counts
each pixel alike, tends to take spots for leaf. One seed always gives the same files.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

SIDE, TRAIN, VAL = 96, 96, 64
CLASSES = ("ground", "leaf", "spot")
RECIPE = '''"""Three classes, of which "spot" has 0.5 % of the pixels."""

from pathlib import Path

from deeplab_jax import config


def get_config():
    """Returns a narrow network for crops of the whole image."""
    c = config.get_config("folder", depth=18, output_stride=8)
    c.data.root = str(Path(__file__).resolve().parent)
    c.data.class_names = ("ground", "leaf", "spot")
    c.model.num_classes = 3
    c.model.atrous_rates = (1, 2, 4)
    c.model.width, c.model.head_channels = 16, 32
    c.model.low_level_channels, c.model.aux_channels = 16, 16
    c.data.resize_base = c.data.crop_size = (96, 96)
    c.data.scale_range = (1.0, 1.0)
    c.train.batch_size, c.train.epochs, c.train.lr = 8, 40, 0.05
    c.eval.every_epochs, c.init.backbone = 40, "none"
    return c
'''


def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns an image uint8 (96, 96, 3), RGB, and its label uint8 (96, 96)."""
    cells = rng.uniform(0.25, 0.6, (8, 8, 3)) * (0.9, 1.0, 0.8)
    image = cv2.resize(cells, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    label = np.zeros((SIDE, SIDE), np.uint8)
    for _ in range(rng.integers(2, 4)):
        middle, axes = rng.integers(16, SIDE - 16, 2), rng.integers(12, 26, 2)
        cv2.ellipse(label, middle.tolist(), axes.tolist(), int(rng.integers(180)), 0, 360, 1, -1)
    tint = np.array([0.15, 0.5, 0.15]) + rng.uniform(-0.08, 0.08, 3)
    image[label == 1] = 0.4 * image[label == 1] + 0.6 * tint
    rows, columns = (label == 1).nonzero()
    for number in range(14):
        is_spot = number % 4 == 0
        place, radius = rng.integers(len(rows)), rng.uniform(1, 2.8)
        y, x = np.mgrid[:SIDE, :SIDE]
        disc = (y - rows[place]) ** 2 + (x - columns[place]) ** 2 <= radius**2
        disc &= label > 0
        red = rng.normal(0.33 if is_spot else 0.17, 0.07)
        image[disc] += np.array([red, -red / 2, 0.0])
        label[disc] = 2 if is_spot else 1
    image += rng.normal(0, 0.03, image.shape)
    return (image.clip(0, 1) * 255).round().astype(np.uint8), label


def main(folder: Path) -> None:
    """Draws both splits, writes the recipe, and tells each class's share of the pixels."""
    rng, counts = np.random.default_rng(0), np.zeros(len(CLASSES), np.int64)
    for split, number in (("train", TRAIN), ("val", VAL)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for index in range(number):
            image, label = draw(rng)
            counts += np.bincount(label.ravel(), minlength=len(CLASSES))
            Image.fromarray(image).save(folder / f"images/{split}/{index:03d}.png")
            Image.fromarray(label).save(folder / f"labels/{split}/{index:03d}.png")
    (folder / "rare.py").write_text(RECIPE)
    shares = (
        f"{name} {100 * n / counts.sum():.2f} %" for name, n in zip(CLASSES, counts, strict=True)
    )
    print(f"{folder}: {', '.join(shares)} of the pixels")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "rare"))
