"""The image that an exported folder is proven by."""

from pathlib import Path

import numpy as np

from deeplab_jax.config import Config
from deeplab_jax.data import open_dataset
from deeplab_jax.data.transforms import resize_image
from deeplab_jax.errors import DeepLabError
from deeplab_jax.inference.buckets import Size

_LARGEST = 512  # pixels a side
_DRAWN = (241, 321)  # odd, so that every rounding of sizes counts


def choose(config: Config, size: Size | None) -> tuple[np.ndarray, str]:
    """Returns an image, uint8 (H, W, 3), and what it is.

    It is the first of the validation split where the recipe's data are at hand, cut about its
    centre to at most 512 pixels a side, else a drawn one. `size` is its (height, width) if given.
    """
    image, text = _first(config) or (_draw(), "an image that was drawn: the data were not at hand")
    if size:
        image = image if image.shape[:2] == size else resize_image(image, size)
        return image, text
    top, left = (max(side - _LARGEST, 0) // 2 for side in image.shape[:2])
    return np.ascontiguousarray(image[top : top + _LARGEST, left : left + _LARGEST]), text


def _first(config: Config) -> tuple[np.ndarray, str] | None:
    data = config.data
    if not Path(data.root).is_dir():
        return None
    try:
        dataset = open_dataset(data, config.model.num_classes, data.val_split)
        image, _ = dataset.read(0)
    except DeepLabError:
        return None
    name = f"{dataset.name}/{dataset.split}"
    return image, f"image {dataset.ids[0]} of {name}, the recipe's validation data"


def _draw() -> np.ndarray:
    """Returns soft coloured blobs with an edge, the same at every call."""
    height, width = _DRAWN
    y, x = np.mgrid[:height, :width].astype(np.float64)
    waves = [np.sin(x / (17 + 9 * k)) * np.cos(y / (13 + 5 * k)) for k in range(3)]
    waves = [wave + (x * (k + 1) > y * 2) for k, wave in enumerate(waves)]
    return np.clip(np.stack(waves, -1) * 80 + 90, 0, 255).astype(np.uint8)
