"""Dense convolutions with the kernel gradients that compilers do not find."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from deeplab_jax.models.ops.pictures import taps

Arrays = tuple[jax.Array, jax.Array]


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
    products = [
        lax.dot_general(tap, g, axes, precision, preferred_element_type=wide)
        for tap in taps(x, dilation)
    ]
    return dx, jnp.stack(products).reshape(kernel.shape).astype(kernel.dtype)


conv3x3_by_products.defvjp(_products_forward, _products_backward)
