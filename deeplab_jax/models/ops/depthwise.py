"""Depthwise 3x3 convolution as shifted sums: grouped ones are slow on processors and GPUs.

For TPUs see `grouped`.
"""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from deeplab_jax.models.ops.gradients import Arrays, keeping_inputs
from deeplab_jax.models.ops.pictures import shift, taps

_Slices = tuple[slice, ...]
_Rectangle = tuple[int, int, _Slices, _Slices]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_conv3x3(x: jax.Array, kernel: jax.Array, dilation: int, platform: str) -> jax.Array:
    """Convolves each channel with its own 3x3 kernel, stride 1, zero padding = dilation.

    Args:
      x: (B, H, W, C).
      kernel: (3, 3, 1, C).
      dilation: distance between taps, in pixels.
      platform: as in `ComputePolicy`; picks the forms of the sums and of the kernel's gradient.

    Returns:
      (B, H, W, C).
    """
    form = _by_rectangles if platform == "cpu" else _by_shifts
    return form(x, kernel, dilation)


def _depthwise_backward(dilation: int, platform: str, residuals: Arrays, g: jax.Array) -> Arrays:
    x, kernel = residuals
    dx = depthwise_conv3x3(g, kernel[::-1, ::-1], dilation, platform)
    gradient = _depthwise_kernel_by_rows if platform == "cpu" else _depthwise_kernel_by_taps
    return dx, gradient(x, g, dilation).astype(kernel.dtype)


depthwise_conv3x3.defvjp(keeping_inputs(depthwise_conv3x3), _depthwise_backward)


def _by_shifts(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """Whole pictures shifted, of which a mesh moves only the rows at its seams."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (0, 0), (dilation, dilation), (0, 0)))
    total = jnp.zeros_like(x)
    for i in range(3):
        down = (1 - i) * dilation
        if abs(down) >= height:
            continue  # this row of taps sees only padding
        # One shift for the sum of three columns, not one for each.
        row = x * kernel[i, 1].reshape(1, 1, 1, -1)
        for j in (0, 2) if dilation < width else ():
            column = padded[:, :, j * dilation : j * dilation + width]
            row = row + column * kernel[i, j].reshape(1, 1, 1, -1)
        total = total + (shift(row, rows=down) if down else row)
    return total


def _by_rectangles(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """Each tap on the pixels that it sees: fewest passes on a processor; a mesh gathers rows."""
    total = x * kernel[1, 1].reshape(1, 1, 1, -1)
    for i, j, source, target in _rectangles(x.shape, dilation):
        if (i, j) != (1, 1):
            part = x[source] * kernel[i, j].reshape(1, 1, 1, -1)
            edges = [(t.start, n - t.stop) for t, n in zip(target, x.shape, strict=False)]
            total = total + jnp.pad(part, [*edges, (0, 0)])
    return total


def _rectangles(shape: tuple[int, ...], dilation: int) -> Iterator[_Rectangle]:
    """Yields row and column of each tap that sees pixels, its source in `x`, and its target."""
    batch, height, width, _ = shape
    for i in range(3):
        for j in range(3):
            down, right = (1 - i) * dilation, (1 - j) * dilation
            if abs(down) < height and abs(right) < width:
                moves = ((0, batch), (down, height), (right, width))
                source = tuple(slice(max(-d, 0), n - max(d, 0)) for d, n in moves)
                target = tuple(slice(max(d, 0), n - max(-d, 0)) for d, n in moves)
                yield i, j, source, target


def _depthwise_kernel_by_taps(x: jax.Array, g: jax.Array, dilation: int) -> jax.Array:
    """Nine reductions, which accelerators fuse."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    sums = [jnp.sum((tap * g).astype(dtype), axis=(0, 1, 2)) for tap in taps(x, dilation)]
    return jnp.stack(sums).reshape(3, 3, 1, -1)


def _depthwise_kernel_by_rows(x: jax.Array, g: jax.Array, dilation: int) -> jax.Array:
    """One pass over the rows with nine running sums of whole rows, which stay in the cache.

    Sums over the columns come last: a reduction in each row is two to three times slower. On a mesh
    the loop gathers all rows.
    """
    batch, height, width, channels = x.shape
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    d = dilation
    padded = jnp.pad(x, ((0, 0), (d, d), (d, d), (0, 0)))
    padded = padded.reshape(batch * (height + 2 * d), width + 2 * d, channels)
    rows = g.reshape(batch * height, width, channels)

    def add_row(totals: list[jax.Array], k: jax.Array) -> tuple[list[jax.Array], None]:
        top = k // height * (height + 2 * d) + k % height
        g_row = lax.dynamic_index_in_dim(rows, k, keepdims=False)
        new = []
        for i in range(3):
            x_row = lax.dynamic_index_in_dim(padded, top + i * d, keepdims=False)
            for j in range(3):
                product = x_row[j * d : j * d + width] * g_row
                new.append(totals[3 * i + j] + product.astype(dtype))
        return new, None

    zeros = [jnp.zeros((width, channels), dtype)] * 9
    totals, _ = lax.scan(add_row, zeros, jnp.arange(batch * height))
    return jnp.stack([total.sum(0) for total in totals]).reshape(3, 3, 1, channels)
