"""On the device: bytes to what the network takes."""

import jax
import jax.numpy as jnp

from deeplab_jax.data.transforms import MEAN, STD


def normalize(image: jax.Array) -> jax.Array:
    """Returns (image - mean) * (1 / std) per channel, float32, of RGB values 0..255."""
    return (image.astype(jnp.float32) - MEAN) * (1 / STD)


def prepare(image: jax.Array, label: jax.Array, box: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Turns a batch of bytes into images and labels.

    Args:
      image: uint8 (B, H, W, 3) RGB.
      label: uint8 (B, H, W); 255 is ignored.
      box: int32 (B, 4): top, left, bottom, right of the picture; outside is padding.

    Returns:
      float32 images, normalised, 0 in the padding (the mean colour, which no byte is), and int32
      labels.
    """
    top, left, bottom, right = (box[:, k, None] for k in range(4))  # (B, 1) each
    row, column = jnp.arange(image.shape[1])[None], jnp.arange(image.shape[2])[None]
    is_row_inside = (row >= top) & (row < bottom)
    is_column_inside = (column >= left) & (column < right)
    inside = is_row_inside[:, :, None, None] & is_column_inside[:, None, :, None]
    return jnp.where(inside, normalize(image), 0), label.astype(jnp.int32)
