"""On the device: bytes to what the network takes."""

import jax
import jax.numpy as jnp

from deeplab_jax.data.transforms import MEAN, STD


def normalize(image: jax.Array) -> jax.Array:
    """Returns (image - mean) * (1 / std) per channel, float32, of RGB values 0..255."""
    shape = (1,) * (image.ndim - 1) + (3,)
    return (image.astype(jnp.float32) - MEAN.reshape(shape)) * (1 / STD).reshape(shape)


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
    top, left, bottom, right = (box[:, k].reshape(-1, 1, 1, 1) for k in range(4))
    row = jnp.arange(image.shape[1]).reshape(1, -1, 1, 1)
    column = jnp.arange(image.shape[2]).reshape(1, 1, -1, 1)
    inside = (row >= top) & (row < bottom) & (column >= left) & (column < right)
    return jnp.where(inside, normalize(image), 0), label.astype(jnp.int32)
