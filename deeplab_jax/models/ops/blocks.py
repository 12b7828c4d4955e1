"""Few channels as many: pictures whose 2x2 pixels lie in the channels, as a TPU's lanes want them.

A map (B, H, W, C) is held as (B, H / 2, W / 2, 4 C): channel (2 i + j) C + c of a block is channel
c of its pixel (i, j). Convolutions become denser ones over blocks, with zeros where a pixel of a
neighbouring block is out of reach; all values are those of the map.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deeplab_jax.models.ops.pictures import shift


def to_blocks(x: jax.Array, size: int) -> jax.Array:
    """Returns `x` (B, H, W, C) with blocks of size x size pixels in the channels."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(*x.shape[:3], -1)


def conv3x3_blocks(
    x: jax.Array, kernel: jax.Array, stride: int, precision: lax.Precision
) -> jax.Array:
    """Convolves 3x3 like `conv`, from blocks of 2 x stride pixels to blocks of 2.

    Args:
      x: (B, h, w, (2 stride)^2 I), as of `to_blocks`.
      kernel: (3, 3, I, O).
      stride: between outputs, in pixels.
      precision: precision of the products.

    Returns:
      (B, h, w, 4 O).
    """
    place = jnp.asarray(_places(2 * stride), kernel.dtype)
    exact = lax.Precision.HIGHEST  # each product is with 0 or 1, and one alone is not 0
    rows = jnp.einsum("apqd,deio->apqeio", place, kernel, precision=exact)
    dense = jnp.einsum("brse,apqeio->abpriqso", place, rows, precision=exact)
    reach = place.shape[0]
    return lax.conv_general_dilated(
        x,
        dense.reshape(reach, reach, x.shape[-1], -1),
        window_strides=(1, 1),
        padding=[(1, reach - 2)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


def _places(size: int) -> np.ndarray:
    """Returns (blocks, size, 2, 3): 1 where pixel p of block a is output q's tap d, else 0.

    Block 0 is the one above the output's, 1 its own, 2 the one below, which no output at stride 2
    reaches.
    """
    place = np.zeros((3 if size == 2 else 2, size, 2, 3))
    for block, pixel, output in np.ndindex(*place.shape[:3]):
        tap = size * (block - 1) + pixel - size // 2 * output + 1
        if 0 <= tap < 3:
            place[block, pixel, output, tap] = 1
    return place


@jax.custom_vjp
def max_pool3x3_blocks(x: jax.Array) -> jax.Array:
    """Returns `max_pool3x3` of the map that `x` (B, h, w, 4 C) holds, (B, h, w, C)."""
    return _max_pool_forward(x)[0]


def _max_pool_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    above, below = jnp.split(x, 2, -1)  # rows of the blocks
    taps = []
    for row in (shift(below, rows=1, fill=-jnp.inf), above, below):
        left, right = jnp.split(row, 2, -1)
        taps += [shift(right, columns=1, fill=-jnp.inf), left, right]
    best, winner = taps[0], jnp.zeros(taps[0].shape, jnp.uint8)
    for number, tap in enumerate(taps[1:], 1):
        winner = jnp.where(tap > best, jnp.uint8(number), winner)
        best = jnp.maximum(best, tap)
    return best, winner


def _max_pool_backward(winner: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    rows = []
    for i in range(3):
        left, middle, right = (jnp.where(winner == 3 * i + j, g, 0) for j in range(3))
        rows.append(jnp.concatenate([middle, right + shift(left, columns=-1)], -1))
    above, same, below = rows
    return (jnp.concatenate([same, below + shift(above, rows=-1)], -1),)


max_pool3x3_blocks.defvjp(_max_pool_forward, _max_pool_backward)
