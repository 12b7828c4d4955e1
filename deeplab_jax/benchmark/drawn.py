"""Weights, pictures and batches that are drawn."""

from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np

from deeplab_jax.config import IGNORE_INDEX, Config
from deeplab_jax.data import TrainBatch
from deeplab_jax.models import build_model, init_variables

SIZES = ((375, 500), (500, 375), (333, 500))  # of VOC's pictures
_QUALITY = 88


def draw_pictures(root: Path, number: int, seed: int = 0, num_classes: int = 21) -> None:
    """Writes `number` pictures (about 66 kB each) with grey masks, as a plain folder's train split.

    Sizes are VOC's. One to three objects lie before a background that holds most pixels, as there.
    """
    rng = np.random.default_rng(seed)
    for kind in ("images", "labels"):
        (root / kind / "train").mkdir(parents=True)
    for i in range(number):
        image, label = _draw(rng, SIZES[i % len(SIZES)], num_classes)
        quality = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
        cv2.imwrite(str(root / "images" / "train" / f"{i:03}.jpg"), image, quality)
        cv2.imwrite(str(root / "labels" / "train" / f"{i:03}.png"), label)


def _draw(
    rng: np.random.Generator, size: tuple[int, int], num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    height, width = size
    image = rng.normal(128, 8, (height, width, 3)).astype(np.float32)
    for side in (4, 8, 16, 64, 128):
        coarse = rng.normal(0, 4 * side**0.6, (height // side + 2, width // side + 2, 3))
        image += cv2.resize(coarse.astype(np.float32), (width, height))
    label = np.zeros((height, width), np.uint8)
    for class_id in rng.integers(1, num_classes, rng.integers(1, 4)):
        centre = rng.integers(0, width), rng.integers(0, height)
        axes = rng.integers(30, 160), rng.integers(30, 160)
        ellipse = (tuple(map(int, centre)), tuple(map(int, axes)), float(rng.uniform(0, 180)))
        cv2.ellipse(label, *ellipse, 0, 360, int(class_id), -1)
        cv2.ellipse(label, *ellipse, 0, 360, IGNORE_INDEX, 5)
    return np.clip(image, 0, 255).astype(np.uint8), label


def draw_batch(config: Config, seed: int = 0) -> TrainBatch:
    """Returns a batch of a recipe's size: noise, with labels in blocks, some pixels ignored."""
    rng = np.random.default_rng(seed)
    batch, (height, width) = config.train.batch_size, config.data.crop_size
    rows, columns = -(-height // 16), -(-width // 16)
    blocks = rng.integers(0, config.model.num_classes, (batch, rows, columns), np.uint8)
    label = blocks.repeat(16, 1).repeat(16, 2)[:, :height, :width]
    label[:, : height // 16] = IGNORE_INDEX
    return TrainBatch(
        index=np.arange(batch),
        image=rng.integers(0, 256, (batch, height, width, 3), np.uint8),
        label=label,
        box=np.tile(np.array((0, 0, height, width), np.int32), (batch, 1)),
    )


def draw_variables(config: Config, seed: int = 0) -> Any:
    """Returns weights and statistics on the host under which activations keep their size.

    So a network that differs in one layer gives other logits; as drawn for training, without the
    statistics of a batch, activations vanish. Norms do nothing; classes are about equally likely.
    """
    model = build_model(config.model)
    shapes = jax.eval_shape(lambda: init_variables(model, 0))
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if len(leaf.shape) < 4:  # of norms, and biases
            return np.full(leaf.shape, path[-1].key in ("var", "scale"), leaf.dtype)
        kernel = rng.standard_normal(leaf.shape, np.float32)
        kernel *= np.float32(np.sqrt(2 / np.prod(leaf.shape[:-1])))
        if path[1].key == "classifier":  # or the class that likes its mean input has all pixels
            kernel -= kernel.mean(2, keepdims=True)
        return kernel.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)
