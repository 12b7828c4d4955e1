"""Dense convolutions, and the forms of the 3x3 one that compilers do not find by themselves."""

from functools import partial, reduce
from operator import add

import jax
import jax.numpy as jnp
from jax import lax

from deeplab_jax.models.ops.gradients import Arrays, keeping_inputs
from deeplab_jax.models.ops.pictures import ValidSize, taps
from deeplab_jax.models.ops.winograd import conv3x3_winograd


def conv1x1(
    x: jax.Array,
    kernel: jax.Array,
    stride: int,
    precision: lax.Precision,
    platform: str,
    dtype: jnp.dtype | None = None,
) -> jax.Array:
    """Convolves 1x1 as a matrix product over channels.

    Args:
      x: (B, H, W, I).
      kernel: (1, 1, I, O).
      stride: keeps every `stride`-th row and column.
      precision: precision of the products.
      platform: as in `ComputePolicy`.
      dtype: type of the result; that of `x` by default.

    Returns:
      (B, ceil(H / stride), ceil(W / stride), O).
    """
    x = x[:, ::stride, ::stride] if stride > 1 else x
    if platform == "cpu" and dtype in (None, x.dtype):
        return _over_channels(x, kernel[0, 0], precision)
    axes = (((3,), (0,)), ((), ()))
    return lax.dot_general(x, kernel[0, 0], axes, precision, preferred_element_type=dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _over_channels(x: jax.Array, kernel: jax.Array, precision: lax.Precision) -> jax.Array:
    return _product(x, kernel, (3,), (0,), precision).astype(x.dtype)


def _over_channels_backward(precision: lax.Precision, residuals: Arrays, g: jax.Array) -> Arrays:
    # For a product over pixels XLA writes its first operand anew, pixels last, which is slow on a
    # processor. JAX always takes `g` as the first.
    x, kernel = residuals
    dx = _product(g, kernel, (3,), (1,), precision).astype(x.dtype)
    if g.size + kernel.size < x.size:
        dk = _product(g, x, _PIXELS, _PIXELS, precision).T
    else:
        dk = _product(x, g, _PIXELS, _PIXELS, precision)
    return dx, dk.astype(kernel.dtype)


_over_channels.defvjp(keeping_inputs(_over_channels), _over_channels_backward)


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


def conv3x3(
    x: jax.Array,
    kernel: jax.Array,
    stride: int,
    dilation: int,
    precision: lax.Precision,
    platform: str,
) -> jax.Array:
    """Convolves 3x3 like `conv`, in the form that is fastest on the platform.

    Args:
      x: (B, H, W, I).
      kernel: (3, 3, I, O).
      stride: between outputs, in pixels.
      dilation: between taps, in pixels.
      precision: precision of the products.
      platform: as in `ComputePolicy`.
    """
    inputs = x.shape[-1]
    if stride == 1 and platform == "gpu" and dilation > 1:
        return conv3x3_by_products(x, kernel, dilation, precision)
    if stride == 1 and platform == "cpu":
        has_digits = x.dtype in (jnp.float32, jnp.float64)  # sums of bfloat16 would lose some
        if inputs >= _WIDE and 2 * dilation <= min(x.shape[1:3]) and has_digits:
            return conv3x3_winograd(x, kernel, dilation, precision)
        if inputs < _NARROW:
            return conv3x3_by_strips(x, kernel, dilation, precision)
    return conv(x, kernel, stride, dilation, precision)


# On a processor, by measurement: docs/performance.md.
_WIDE = 128  # channels from which on transforms cost less than the products that they save
_NARROW, _STRIP = 64, 4096  # channels below which taps are gathered, pixels of one gathering
_PIXELS = (0, 1, 2)  # axes of a picture's batch, rows and columns


def conv3x3_with_constant(
    x: jax.Array,
    constant: jax.Array,
    kernel: jax.Array,
    valid_size: ValidSize,
    precision: lax.Precision,
    platform: str,
) -> jax.Array:
    """Convolves `x` and, behind its channels, maps of one value each, at stride 1.

    A constant map costs nine products of one pixel, added where the taps lie in the picture.

    Args:
      x: (B, H, W, I).
      constant: (B, 1, 1, K), the values.
      kernel: (3, 3, I + K, O).
      valid_size: the constant maps are zero outside of it; `x` must be.
      precision: precision of the products.
      platform: as in `ComputePolicy`.

    Returns:
      (B, H, W, O).
    """
    channels = x.shape[-1]
    y = conv3x3(x, kernel[:, :, :channels], 1, 1, precision, platform)
    values, rest = constant[:, 0, 0], kernel[:, :, channels:]
    # Wide, as the gradient of what is spread over the map is a sum over it.
    seen = _product(values, rest, (1,), (2,), precision)  # (B, 3, 3, O)
    rows, columns = (
        _reached(x.shape[1 + axis], None if valid_size is None else valid_size[:, axis], seen.dtype)
        for axis in (0, 1)
    )
    seen = reduce(add, (rows[:, :, i, None, None] * seen[:, None, i] for i in range(3)))
    spread = (columns[:, None, :, j, None] * seen[:, :, None, j] for j in range(3))
    return reduce(add, spread, y.astype(seen.dtype)).astype(y.dtype)


def _reached(length: int, valid: jax.Array | None, dtype: jnp.dtype) -> jax.Array:
    """Returns (B or 1, length, 3): 1 where a tap of an output lies in the picture, else 0."""
    source = lax.broadcasted_iota(jnp.int32, (1, length, 3), 1)
    source = source + lax.broadcasted_iota(jnp.int32, (1, length, 3), 2) - 1
    end = length if valid is None else valid.reshape(-1, 1, 1)
    return ((source >= 0) & (source < end)).astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv3x3_by_products(
    x: jax.Array, kernel: jax.Array, dilation: int, precision: lax.Precision
) -> jax.Array:
    """Convolves 3x3 at stride 1 like `conv`; the kernel's gradient is nine matrix products.

    XLA hands cuDNN a dilated convolution and its gradient towards `x`, but not that towards the
    kernel, which becomes a convolution with a window as large as the picture.
    """
    return conv(x, kernel, 1, dilation, precision)


def _products_backward(
    dilation: int, precision: lax.Precision, residuals: Arrays, g: jax.Array
) -> Arrays:
    x, kernel = residuals
    dx = _input_gradient(kernel, g, dilation, precision)
    products = [_product(tap, g, _PIXELS, _PIXELS, precision) for tap in taps(x, dilation)]
    return dx, jnp.stack(products).reshape(kernel.shape).astype(kernel.dtype)


conv3x3_by_products.defvjp(keeping_inputs(conv3x3_by_products), _products_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv3x3_by_strips(
    x: jax.Array, kernel: jax.Array, dilation: int, precision: lax.Precision
) -> jax.Array:
    """Convolves 3x3 at stride 1 like `conv`; the kernel's gradient goes by strips of rows.

    For large maps of few channels: the nine taps of a strip are gathered side by side, for one
    matrix product.
    """
    return conv(x, kernel, 1, dilation, precision)


def _strips_backward(
    dilation: int, precision: lax.Precision, residuals: Arrays, g: jax.Array
) -> Arrays:
    x, kernel = residuals
    (batch, height, width, inputs), outputs = x.shape, g.shape[3]
    d = dilation
    padded = _pad(x, d)
    rows = next(k for k in range(min(height, max(1, _STRIP // width)), 0, -1) if height % k == 0)

    def add_strip(total: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
        corner = number // (height // rows), number % (height // rows) * rows, 0, 0
        part = lax.dynamic_slice(padded, corner, (1, rows + 2 * d, width + 2 * d, inputs))[0]
        gathered = [
            part[i * d : i * d + rows, j * d : j * d + width] for i in range(3) for j in range(3)
        ]
        columns = jnp.stack(gathered, 2).reshape(rows * width, 9 * inputs)
        g_part = lax.dynamic_slice(g, corner, (1, rows, width, outputs)).reshape(-1, outputs)
        return total + _product(columns, g_part, (0,), (0,), precision), None

    zeros = jnp.zeros((9 * inputs, outputs), _wide(x))
    total, _ = lax.scan(add_strip, zeros, jnp.arange(batch * (height // rows)))
    return _input_gradient(kernel, g, d, precision), total.reshape(kernel.shape).astype(
        kernel.dtype
    )


conv3x3_by_strips.defvjp(keeping_inputs(conv3x3_by_strips), _strips_backward)


def _input_gradient(
    kernel: jax.Array, g: jax.Array, dilation: int, precision: lax.Precision
) -> jax.Array:
    return conv(g, kernel[::-1, ::-1].swapaxes(2, 3), 1, dilation, precision)


def _product(
    a: jax.Array,
    b: jax.Array,
    a_axes: tuple[int, ...],
    b_axes: tuple[int, ...],
    precision: lax.Precision,
) -> jax.Array:
    """Sums over axes of both, in float32 or wider."""
    axes = ((a_axes, b_axes), ((), ()))
    return lax.dot_general(a, b, axes, precision, preferred_element_type=_wide(a))


def _wide(x: jax.Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)


def _pad(x: jax.Array, dilation: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (dilation, dilation), (dilation, dilation), (0, 0)))
