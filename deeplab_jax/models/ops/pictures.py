"""Moving a picture by whole pixels, and pictures that are padded below and on the right.

Other rows and columns are read through `shift` alone, so that a partitioner that splits the image
height moves only the rows at the seams.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

# int32 (B, 2), true (height, width) of pictures padded below and on the right; None: no padding
ValidSize = jax.Array | None


def shift(x: jax.Array, rows: int = 0, columns: int = 0, fill: float = 0) -> jax.Array:
    """Moves a picture by whole pixels.

    Args:
      x: (B, H, W, C).
      rows: pixels down; negative moves up.
      columns: pixels to the right; negative moves left.
      fill: value of pixels from outside.

    Returns:
      Same shape; element (b, i, j, c) is x[b, i - rows, j - columns, c].
    """
    # One same-size pad: padding first and slicing afterwards makes shards of unequal height.
    edges = [(0, 0, 0), (rows, -rows, 0), (columns, -columns, 0), (0, 0, 0)]
    return lax.pad(x, jnp.asarray(fill, x.dtype), edges)


def strided_size(valid_size: ValidSize, stride: int) -> ValidSize:
    """Returns the sizes after layers whose strides multiply to `stride`, rounded up."""
    return None if valid_size is None else (valid_size + stride - 1) // stride


def mask_padding(x: jax.Array, valid_size: ValidSize) -> jax.Array:
    """Returns `x` (B, H, W, C), zero outside each picture's top left `valid_size`."""
    if valid_size is None:
        return x
    row = lax.broadcasted_iota(jnp.int32, (1, x.shape[1], 1, 1), 1)
    column = lax.broadcasted_iota(jnp.int32, (1, 1, x.shape[2], 1), 2)
    height, width = (valid_size[:, axis].reshape(-1, 1, 1, 1) for axis in (0, 1))
    return jnp.where((row < height) & (column < width), x, 0)


def taps(x: jax.Array, dilation: int) -> Iterator[jax.Array]:
    """Yields the input of each of the nine taps of a 3x3 convolution, row by row."""
    height, width = x.shape[1:3]
    for i in range(3):
        down = (1 - i) * dilation
        # Rows first: where they are split over devices, the rows that move are not yet padded.
        row = shift(x, rows=down) if abs(down) < height else jnp.zeros_like(x)
        padded = jnp.pad(row, ((0, 0), (0, 0), (dilation, dilation), (0, 0)))
        for j in range(3):
            yield padded[:, :, j * dilation : j * dilation + width]
