"""Operations whose plain lax form is slow, in their fast form.

`tests/models/test_ops.py` compares each with the plain form, gradients included. Other rows and
columns are read through `shift` alone, so that a partitioner that splits the image height moves
only the rows at the seams.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Arrays = tuple[jax.Array, jax.Array]
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


def conv1x1(
    x: jax.Array,
    kernel: jax.Array,
    stride: int = 1,
    precision: lax.Precision = lax.Precision.HIGHEST,
    dtype: jnp.dtype | None = None,
) -> jax.Array:
    """Convolves 1x1 as a matrix product over channels.

    Args:
      x: (B, H, W, I).
      kernel: (1, 1, I, O).
      stride: keeps every `stride`-th row and column.
      precision: precision of the products.
      dtype: type of the result; that of `x` by default.

    Returns:
      (B, ceil(H / stride), ceil(W / stride), O).
    """
    x = x[:, ::stride, ::stride] if stride > 1 else x
    axes = (((3,), (0,)), ((), ()))
    return lax.dot_general(x, kernel[0, 0], axes, precision, preferred_element_type=dtype)


def conv(
    x: jax.Array,
    kernel: jax.Array,
    stride: int = 1,
    dilation: int = 1,
    precision: lax.Precision = lax.Precision.HIGHEST,
) -> jax.Array:
    """Convolves with an odd kernel and symmetric zero padding of dilation * (size // 2).

    Args:
      x: (B, H, W, I).
      kernel: (K, K, I, O).
      stride: between outputs, in pixels.
      dilation: between taps, in pixels.
      precision: precision of the products.

    Returns:
      (B, ceil(H / stride), ceil(W / stride), O).
    """
    padding = (kernel.shape[0] // 2) * dilation
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv3x3_by_products(
    x: jax.Array, kernel: jax.Array, dilation: int, precision: lax.Precision
) -> jax.Array:
    """Convolves 3x3 at stride 1 like `conv`; the kernel's gradient is nine matrix products.

    XLA hands cuDNN a dilated convolution and its gradient towards `x`, but not that towards the
    kernel, which becomes a convolution with a window as large as the picture.
    """
    return conv(x, kernel, 1, dilation, precision)


def _products_forward(
    x: jax.Array, kernel: jax.Array, dilation: int, precision: lax.Precision
) -> tuple[jax.Array, Arrays]:
    return conv3x3_by_products(x, kernel, dilation, precision), (x, kernel)


def _products_backward(
    dilation: int, precision: lax.Precision, residuals: Arrays, g: jax.Array
) -> Arrays:
    x, kernel = residuals
    dx = conv(g, kernel[::-1, ::-1].swapaxes(2, 3), 1, dilation, precision)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    axes = (((0, 1, 2), (0, 1, 2)), ((), ()))
    taps = [
        lax.dot_general(tap, g, axes, precision, preferred_element_type=wide)
        for tap in _taps(x, dilation)
    ]
    return dx, jnp.stack(taps).reshape(kernel.shape).astype(kernel.dtype)


conv3x3_by_products.defvjp(_products_forward, _products_backward)


def _taps(x: jax.Array, dilation: int) -> Iterator[jax.Array]:
    """Yields the input of each of the nine taps of a 3x3 convolution, row by row."""
    height, width = x.shape[1:3]
    for i in range(3):
        down = (1 - i) * dilation
        # Rows first: where they are split over devices, the rows that move are not yet padded.
        row = shift(x, rows=down) if abs(down) < height else jnp.zeros_like(x)
        padded = jnp.pad(row, ((0, 0), (0, 0), (dilation, dilation), (0, 0)))
        for j in range(3):
            yield padded[:, :, j * dilation : j * dilation + width]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_conv3x3(x: jax.Array, kernel: jax.Array, dilation: int, platform: str) -> jax.Array:
    """Convolves each channel with its own 3x3 kernel, stride 1, zero padding = dilation.

    Args:
      x: (B, H, W, C).
      kernel: (3, 3, 1, C).
      dilation: distance between taps, in pixels.
      platform: as in `ComputePolicy`; picks the form of the kernel's gradient.

    Returns:
      (B, H, W, C).
    """
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


def _depthwise_forward(
    x: jax.Array, kernel: jax.Array, dilation: int, platform: str
) -> tuple[jax.Array, Arrays]:
    return depthwise_conv3x3(x, kernel, dilation, platform), (x, kernel)


def _depthwise_backward(dilation: int, platform: str, residuals: Arrays, g: jax.Array) -> Arrays:
    x, kernel = residuals
    dx = depthwise_conv3x3(g, kernel[::-1, ::-1], dilation, platform)
    gradient = _depthwise_kernel_by_rows if platform == "cpu" else _depthwise_kernel_by_taps
    return dx, gradient(x, g, dilation).astype(kernel.dtype)


depthwise_conv3x3.defvjp(_depthwise_forward, _depthwise_backward)


def _depthwise_kernel_by_taps(x: jax.Array, g: jax.Array, dilation: int) -> jax.Array:
    """Nine reductions, which accelerators fuse."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    taps = [jnp.sum((tap * g).astype(dtype), axis=(0, 1, 2)) for tap in _taps(x, dilation)]
    return jnp.stack(taps).reshape(3, 3, 1, -1)


def _depthwise_kernel_by_rows(x: jax.Array, g: jax.Array, dilation: int) -> jax.Array:
    """One pass over the rows, which fits a processor's cache; on a mesh it gathers all rows."""
    batch, height, width, channels = x.shape
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    d = dilation
    padded = jnp.pad(x, ((0, 0), (d, d), (d, d), (0, 0)))
    padded = padded.reshape(batch * (height + 2 * d), width + 2 * d, channels)
    rows = g.reshape(batch * height, width, channels)

    def add_row(total: jax.Array, k: jax.Array) -> tuple[jax.Array, None]:
        top = k // height * (height + 2 * d) + k % height
        g_row = lax.dynamic_index_in_dim(rows, k, keepdims=False)
        taps = []
        for i in range(3):
            x_row = lax.dynamic_index_in_dim(padded, top + i * d, keepdims=False)
            taps += [(x_row[j * d : j * d + width] * g_row).sum(0) for j in range(3)]
        return total + jnp.stack(taps).astype(dtype), None

    total, _ = lax.scan(add_row, jnp.zeros((9, channels), dtype), jnp.arange(batch * height))
    return total.reshape(3, 3, 1, channels)


@jax.custom_vjp
def max_pool3x3(x: jax.Array) -> jax.Array:
    """Returns the maxima over 3x3 pixels at stride 2, padding 1, (B, ceil(H / 2), ceil(W / 2), C).

    The gradient goes to the first of equal maxima in reading order, as PyTorch's does.
    """
    window, strides = (1, 3, 3, 1), (1, 2, 2, 1)
    return lax.reduce_window(
        x, -jnp.inf, lax.max, window, strides, [(0, 0), (1, 1), (1, 1), (0, 0)]
    )


def _max_pool_forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, tuple[int, ...]]]:
    # The winning tap is kept, not found again by comparing with the maximum: a compiler may compute
    # a value twice with different rounding, and no tap would equal it.
    height, width = x.shape[1:3]
    edges = [(0, 0, 0), (0, height % 2, 0), (0, width % 2, 0), (0, 0, 0)]
    even = lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), edges)
    taps = [
        tap
        for row in (shift(even[:, 1::2], 1, 0, -jnp.inf), even[:, 0::2], even[:, 1::2])
        for tap in (shift(row[:, :, 1::2], 0, 1, -jnp.inf), row[:, :, 0::2], row[:, :, 1::2])
    ]
    best, winner = taps[0], jnp.zeros(taps[0].shape, jnp.uint8)
    for number, tap in enumerate(taps[1:], 1):
        winner = jnp.where(tap > best, jnp.uint8(number), winner)
        best = jnp.maximum(best, tap)
    return best, (winner, x.shape)


def _max_pool_backward(
    residuals: tuple[jax.Array, tuple[int, ...]], g: jax.Array
) -> tuple[jax.Array]:
    winner, (_, height, width, _) = residuals
    rows = []
    for i in range(3):
        left, middle, right = (jnp.where(winner == 3 * i + j, g, 0) for j in range(3))
        rows.append(_interleave(middle, right + shift(left, columns=-1), 2))
    above, same, below = rows
    dx = _interleave(same, below + shift(above, rows=-1), 1)
    return (dx[:, :height, :width],)


max_pool3x3.defvjp(_max_pool_forward, _max_pool_backward)


def _interleave(even: jax.Array, odd: jax.Array, axis: int) -> jax.Array:
    """Returns elements of `even` and `odd` in turn along an axis."""
    shape = (*even.shape[:axis], 2 * even.shape[axis], *even.shape[axis + 1 :])
    return jnp.stack([even, odd], axis + 1).reshape(shape)


def resize_bilinear(x: jax.Array, size: Sequence[int]) -> jax.Array:
    """Resizes with half-pixel centres, clamped edges and no antialiasing.

    This is PyTorch's `interpolate(mode="bilinear", align_corners=False)`, also when it shrinks.

    Args:
      x: (B, H, W, C), floating point.
      size: (height, width) of the result, in pixels.

    Returns:
      (B, *size, C) in the dtype of `x`.
    """
    for axis in (2, 1):  # columns first: the row pass then writes whole rows
        length = x.shape[axis]
        if size[axis - 1] == length:
            continue
        factor, remainder = divmod(size[axis - 1], length)
        x = _interpolate(x, size[axis - 1], axis) if remainder else _upsample(x, factor, axis)
    return x


def resize_valid(
    x: jax.Array, size: Sequence[int], valid_size: jax.Array, new_size: jax.Array
) -> jax.Array:
    """Returns `resize_bilinear` of the top left `valid_size` of each picture to its `new_size`.

    Args:
      x: (B, H, W, C), padded.
      size: (height, width) of the result, padding included.
      valid_size: int32 (B, 2), true sizes in `x`.
      new_size: int32 (B, 2), true sizes in the result; values outside are meaningless.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    for axis in (2, 1):
        output = jnp.arange(size[axis - 1], dtype=jnp.int32)[None]
        length, new = valid_size[:, axis - 1, None], new_size[:, axis - 1, None]
        # In integers: source + 1/2 = (2 i + 1) length / (2 new), rounded once, in the weight.
        source = jnp.maximum((2 * output + 1) * length - new, 0)
        low = jnp.minimum(source // (2 * new), length - 1)
        weight = (source - 2 * new * low).astype(wide) / (2 * new).astype(wide)
        weight = weight.astype(x.dtype)
        weight = jnp.expand_dims(weight, [k for k in (1, 2, 3) if k != axis])
        take = jax.vmap(partial(jnp.take, axis=axis - 1, mode="clip"))
        x = take(x, low) * (1 - weight) + take(x, jnp.minimum(low + 1, length - 1)) * weight
    return x


def _upsample(x: jax.Array, factor: int, axis: int) -> jax.Array:
    """Resizes by an integer factor: each of its phases mixes an element with one neighbour."""
    length = x.shape[axis]
    index = lax.broadcasted_iota(jnp.int32, x.shape, axis)
    name = "rows" if axis == 1 else "columns"
    before = jnp.where(index == 0, x, shift(x, **{name: 1}))
    after = jnp.where(index == length - 1, x, shift(x, **{name: -1}))
    phases = []
    for k in range(factor):
        offset = (k + 0.5) / factor - 0.5
        neighbour = before if offset < 0 else after
        phases.append(x * (1 - abs(offset)) + neighbour * abs(offset))
    shape = (*x.shape[:axis], length * factor, *x.shape[axis + 1 :])
    return jnp.stack(phases, axis + 1).reshape(shape)


def _sampling(size: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns low index, high index and weight of the high one, for each output element."""
    source = np.maximum((np.arange(size) + 0.5) * (length / size) - 0.5, 0)
    low = np.minimum(source.astype(np.int32), length - 1)
    return low, np.minimum(low + 1, length - 1), source - low


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _interpolate(x: jax.Array, size: int, axis: int) -> jax.Array:
    """Resizes by any factor: gathers the two neighbours along one axis and mixes them."""
    low, high, weight = _sampling(size, x.shape[axis])
    shape = [size if k == axis else 1 for k in range(x.ndim)]
    share = jnp.asarray(weight.reshape(shape), x.dtype)
    return jnp.take(x, low, axis) * (1 - share) + jnp.take(x, high, axis) * share


def _interpolate_forward(x: jax.Array, size: int, axis: int) -> tuple[jax.Array, int]:
    return _interpolate(x, size, axis), x.shape[axis]


def _interpolate_backward(size: int, axis: int, length: int, g: jax.Array) -> tuple[jax.Array]:
    # As a matrix product: the gradient of a gather is a scatter, which is slow everywhere.
    low, high, weight = _sampling(size, length)
    matrix = np.zeros((length, size))
    np.add.at(matrix, (low, np.arange(size)), 1 - weight)
    np.add.at(matrix, (high, np.arange(size)), weight)
    flat = g.reshape(*g.shape[:axis], size, -1)
    dx = jnp.matmul(jnp.asarray(matrix, g.dtype), flat, precision=lax.Precision.HIGHEST)
    return (dx.reshape(*g.shape[:axis], length, *g.shape[axis + 1 :]),)


_interpolate.defvjp(_interpolate_forward, _interpolate_backward)
