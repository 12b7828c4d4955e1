"""3x3 convolutions of many channels as 16 matrix products for 36: Winograd's form F(2x2, 3x3).

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, section 4.1,
whose names are used. A tile d of 4x4 inputs and the kernel g give 2x2 outputs
Y = A^T [(G g G^T) * (B^T d B)] A. The product * is by element, and for all channels and tiles one
matrix product an element. All coefficients are 0, 1, -1 and 1/2, so that roundings stay those of a
few more additions. Gradients have the same form.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from deeplab_jax.models.ops.gradients import Arrays, keeping_inputs

_ORDER, _REVERSED = (0, 1, 2, 3), (3, 1, 2, 0)  # of elements; the latter of a reversed kernel's


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv3x3_winograd(
    x: jax.Array, kernel: jax.Array, dilation: int, precision: lax.Precision
) -> jax.Array:
    """Convolves 3x3 at stride 1 like `conv`.

    Args:
      x: (B, H, W, I), float32 or wider.
      kernel: (3, 3, I, O).
      dilation: between taps, in pixels; beyond half the map most products are with zeros.
      precision: precision of the products.

    Returns:
      (B, H, W, O).
    """
    return _convolve(x, kernel, dilation, precision, _ORDER)


def _backward(dilation: int, precision: lax.Precision, residuals: Arrays, g: jax.Array) -> Arrays:
    # Else the compiler keeps the forward pass's elements, four times the map, until here.
    x, kernel, g = lax.optimization_barrier((*residuals, g))
    dx = _convolve(g, kernel, dilation, precision, _REVERSED)
    inputs = _input_elements(_apart(x, dilation), _ORDER)
    outputs = _output_gradient_elements(_apart(g, dilation))
    return dx, _kernel_gradient(_products(inputs, outputs, 1, 1, precision))


conv3x3_winograd.defvjp(keeping_inputs(conv3x3_winograd), _backward)


def _convolve(
    x: jax.Array,
    kernel: jax.Array,
    dilation: int,
    precision: lax.Precision,
    order: tuple[int, ...],
) -> jax.Array:
    """Convolves; with `_REVERSED` by the reversed kernel from its outputs to its inputs.

    A reversed kernel's elements are the kernel's in another order, in which those of `x` are taken.
    """
    elements = _input_elements(_apart(x, dilation), order)
    contracted = 1 if order is _ORDER else 2
    found = _products(elements, _kernel_elements(kernel), 2, contracted, precision)
    found = found.reshape(4, 4, *elements.shape[1:4], -1)
    return _together(_outputs(found, order), dilation, x.shape[:3])


def _apart(x: jax.Array, dilation: int) -> jax.Array:
    """Returns (d d B, h, w, C): pixels `dilation` apart as pictures of even size, zero outside."""
    batch, height, width, channels = x.shape
    rows, columns = (-(-size // (2 * dilation)) * 2 for size in (height, width))
    missing = ((0, rows * dilation - height), (0, columns * dilation - width))
    x = jnp.pad(x, ((0, 0), *missing, (0, 0)))
    if dilation == 1:
        return x
    x = x.reshape(batch, rows, dilation, columns, dilation, channels)
    return x.transpose(2, 4, 0, 1, 3, 5).reshape(-1, rows, columns, channels)


def _together(x: jax.Array, dilation: int, shape: tuple[int, ...]) -> jax.Array:
    """Undoes `_apart`; `shape` is (B, H, W)."""
    batch, height, width = shape
    if dilation > 1:
        _, rows, columns, channels = x.shape
        x = x.reshape(dilation, dilation, batch, rows, columns, channels)
        x = x.transpose(2, 3, 0, 4, 1, 5)
        x = x.reshape(batch, rows * dilation, columns * dilation, channels)
    return x[:, :height, :width]


def _products(
    a: jax.Array, b: jax.Array, a_axis: int, b_axis: int, precision: lax.Precision
) -> jax.Array:
    """Multiplies element by element over tiles or channels; 16 elements lead."""
    a, b = (array.reshape(16, -1, array.shape[-1]) for array in (a, b))
    return lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((0,), (0,))), precision)


def _input_elements(x: jax.Array, order: tuple[int, ...]) -> jax.Array:
    """Returns B^T d B of all tiles, (16, B, h / 2, w / 2, C), in an order of rows and columns."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def transform(x: jax.Array, axis: int) -> tuple[jax.Array, ...]:
        end = x.shape[axis] - 3
        a, b, c, d = (lax.slice_in_dim(x, k, end + k, 2, axis) for k in range(4))
        found = a - c, b + c, c - b, b - d
        return tuple(found[k] for k in order)

    return _by_elements(transform, padded)


def _kernel_elements(kernel: jax.Array) -> jax.Array:
    """Returns G g G^T, (16, I, O)."""

    def transform(kernel: jax.Array, axis: int) -> tuple[jax.Array, ...]:
        a, b, c = (lax.index_in_dim(kernel, k, axis, keepdims=False) for k in range(3))
        return a, (a + b + c) / 2, (a - b + c) / 2, c

    rows = jnp.stack(transform(kernel, 0))  # (4, 3, I, O)
    return jnp.stack(transform(rows, 1), 1).reshape(16, *kernel.shape[2:])


def _outputs(found: jax.Array, order: tuple[int, ...]) -> jax.Array:
    """Returns A^T m A of all tiles m, (4, 4, B, h / 2, w / 2, O), as (B, h, w, O)."""
    first, last = order[0], order[3]

    def transform(m: jax.Array) -> tuple[jax.Array, jax.Array]:
        return m[first] + m[1] + m[2], m[1] - m[2] - m[last]

    y = jnp.stack([jnp.stack(transform(row), 3) for row in transform(found)], 2)
    batch, rows, _, columns, _, outputs = y.shape
    return y.reshape(batch, 2 * rows, 2 * columns, outputs)


def _output_gradient_elements(g: jax.Array) -> jax.Array:
    """Returns A g A^T of all tiles of 2x2, (16, B, h / 2, w / 2, O)."""

    def transform(g: jax.Array, axis: int) -> tuple[jax.Array, ...]:
        a, b = (lax.slice_in_dim(g, k, None, 2, axis) for k in range(2))
        return a, a + b, a - b, -b

    return _by_elements(transform, g)


def _by_elements(
    transform: Callable[[jax.Array, int], tuple[jax.Array, ...]], x: jax.Array
) -> jax.Array:
    """Transforms rows, then columns, each written once: few operations to compile.

    Returns (16, B, h / 2, w / 2, C) of `x` (B, H, W, C).
    """
    rows = jnp.stack(transform(x, 1))
    found = jnp.stack(transform(rows, 3), 1)
    return found.reshape(16, *found.shape[2:])


def _kernel_gradient(found: jax.Array) -> jax.Array:
    """Returns G^T m G, (3, 3, I, O), of m (16, I, O)."""

    def transform(m: jax.Array) -> tuple[jax.Array, ...]:
        return m[0] + (m[1] + m[2]) / 2, (m[1] - m[2]) / 2, (m[1] + m[2]) / 2 + m[3]

    rows = jnp.stack(transform(found.reshape(4, 4, *found.shape[1:])), 1)  # (4, 3, I, O)
    return jnp.stack(transform(rows), 1)
