"""Preprocessing of images for the network: ImageNet normalisation, and zeros in the padding."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

# ImageNet statistics, RGB, in grey levels.
MEAN = np.array((123.675, 116.28, 103.53), np.float32)
STD = np.array((58.395, 57.12, 57.375), np.float32)

Array = TypeVar("Array", np.ndarray, jax.Array)


def normalize(image: Array, dtype: Any = np.float32) -> Array:
    """Returns (image - MEAN) * (1 / STD) per channel, in `dtype`, on the image's device.

    Args:
      image: (..., 3) RGB, 0 to 255; a NumPy array gives a NumPy array.
      dtype: floating type of the result.
    """
    shape = (1,) * (image.ndim - 1) + (3,)
    return (image.astype(dtype) - MEAN.reshape(shape)) * (1 / STD).reshape(shape)


def preprocess(image: jax.Array, label: jax.Array, box: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the network's images and labels of a batch of bytes.

    Args:
      image: uint8 (B, H, W, 3) RGB.
      label: uint8 (B, H, W); 255 is ignored.
      box: int32 (B, 4): top, left, bottom, right of the picture; outside is padding.

    Returns:
      float32 images, normalised, 0 in the padding (the mean colour, which no byte is), and int32
      labels.
    """
    top, left, bottom, right = (box[:, k].reshape(-1, 1, 1, 1) for k in range(4))
    row = jnp.arange(image.shape[1]).reshape(1, -1, 1, 1)
    column = jnp.arange(image.shape[2]).reshape(1, 1, -1, 1)
    inside = (row >= top) & (row < bottom) & (column >= left) & (column < right)
    return jnp.where(inside, normalize(image), 0), label.astype(jnp.int32)
