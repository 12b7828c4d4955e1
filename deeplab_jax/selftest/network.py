"""The narrow network of the self-test, its weights and its batch: functions of names, NumPy alone.

Every form of an operation that a full network uses is here: ASPP's dilations 6, 12 and 18 and the
last layer's 2 and 4 stay inside maps of 20 x 21 pixels, the last layer has 128 channels, rows are
resized by whole factors and columns by others, one picture is padded, and the loss has groups whose
valid pixels differ. Dropout is off.

Norms shift by one to two of what they scale by a half, so that few values lie near zero, where
rounding decides whether ReLU lets the gradient through: otherwise a float32 gradient is off by a
percent in PyTorch too.

Draws use the raw 64-bit words of PCG64, which no version of NumPy may change.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from deeplab_jax.config import Config, freeze, get_config
from deeplab_jax.models import build_model, init_variables
from deeplab_jax.utils.trees import by_path

DEPTH, BATCH, STEPS, TOTAL = 18, 8, 3, 10
HEIGHT, WIDTH, CLASSES = 160, 164, 7
_BLOCK = 16  # pixels a side, of one colour or class
_PROJECTIONS = 8


def config() -> Config:
    """Returns the configuration, in float32."""
    c = get_config("folder", DEPTH, output_stride=8)
    c.model.num_classes, c.model.dropout_rate = CLASSES, 0.0
    c.model.width, c.model.head_channels = 16, 32
    c.model.low_level_channels, c.model.aux_channels = 12, 24
    c.data.crop_size = (HEIGHT, WIDTH)
    c.train.batch_size, c.train.loss_groups, c.train.steps = BATCH, 4, TOTAL
    return freeze(c)


def weights() -> dict[str, Any]:
    """Returns {"params", "batch_stats"} in float64."""
    model = build_model(config().model, "cpu")
    shapes = jax.eval_shape(lambda: init_variables(model, 0))
    drawn = {path: draw(path, leaf.shape) for path, leaf in by_path(shapes).items()}
    return dict(jax.tree.unflatten(jax.tree.structure(shapes), list(drawn.values())))


def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the float64 array of a path such as "params/backbone/stem/conv1/conv/kernel"."""
    unit = _uniform(path, shape)
    if path.endswith("kernel"):
        scale = 0.25 if "classifier" in path else 1.0
        # Without a sum, so that the common shift of all channels does not reach the next mean.
        return scale * np.sqrt(6 / np.prod(shape[:3])) * 2 * (unit - unit.mean((0, 1, 2)))
    if path.endswith("norm/scale"):
        return 0.3 + 0.4 * unit
    if path.endswith("norm/bias"):  # values near the kink of ReLU are few: see the docstring
        return 1 + unit
    return 0.5 + unit if path.endswith("var") else 0.2 * (2 * unit - 1)


def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns uint8 images (B, H, W, 3), uint8 labels (B, H, W) and int32 boxes (B, 4)."""
    blocks = (BATCH, -(-HEIGHT // _BLOCK), -(-WIDTH // _BLOCK))
    labels = _grown((CLASSES * _uniform("labels", blocks) ** 2).astype(np.uint8))
    # A class has its colour: the gradients of pixels would otherwise cancel, but for rounding.
    colours = _uniform("colours", (CLASSES, 3))[labels]
    coarse = _grown(_uniform("image/coarse", (*blocks, 3)))
    fine = _uniform("image/fine", (BATCH, HEIGHT, WIDTH, 3))
    # Pictures differ in brightness, so that the norm after the mean of each divides by no rounding.
    light = np.linspace(0.25, 1, BATCH).reshape(-1, 1, 1, 1)
    images = (light * (155 * colours + 60 * coarse + 40 * fine)).astype(np.uint8)
    labels[_uniform("ignored", labels.shape) < 0.1] = 255
    boxes = np.tile(np.array([[0, 0, HEIGHT, WIDTH]], np.int32), (BATCH, 1))
    boxes[1] = 16, 10, HEIGHT - 24, WIDTH - 30
    top, left, bottom, right = boxes[1]
    outside = np.ones((HEIGHT, WIDTH), bool)
    outside[top:bottom, left:right] = False
    labels[1][outside] = 255
    labels[2, :90] = 255
    return images, labels, boxes


def checksum() -> int:
    """Returns the CRC-32 of all that is drawn."""
    arrays = [*batch(), *by_path(weights()).values()]
    crc = 0
    for array in arrays:
        crc = zlib.crc32(np.ascontiguousarray(array).tobytes(), crc)
    return crc


def sketch(name: str, array: Any) -> list[float]:
    """Returns the norm of an array and its products with eight vectors of random signs.

    The mean square of such products of a difference is, on average, its squared norm: every element
    counts, wherever it lies.
    """
    flat = np.asarray(array).astype(np.float64).ravel()
    raw = _words(f"sketch/{name}", flat.size)
    signs = (raw[None] >> np.arange(8, 8 + _PROJECTIONS, dtype=np.uint64)[:, None]) & np.uint64(1)
    return [float(np.linalg.norm(flat)), *(float(v) for v in (2.0 * signs - 1) @ flat)]


def sketches(tree: Mapping[str, Any]) -> dict[str, list[float]]:
    """Returns the sketch of every leaf by its path."""
    return {path: sketch(path, leaf) for path, leaf in by_path(tree).items()}


def _words(name: str, count: int) -> np.ndarray:
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(count)
    return np.asarray(raw, np.uint64)


def _uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns float64 in [0, 1), multiples of 2^-24, which float32 holds too."""
    words = _words(name, int(np.prod(shape, dtype=int))) >> np.uint64(40)
    return (words.astype(np.float64) / 2**24).reshape(shape)


def _grown(blocks: np.ndarray) -> np.ndarray:
    return blocks.repeat(_BLOCK, 1).repeat(_BLOCK, 2)[:, :HEIGHT, :WIDTH]
