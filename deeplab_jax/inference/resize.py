"""The resizing of evaluation: bilinear along each axis, as tables of neighbours and weights.

Logits are resized to the image's own size by these tables, which the engine applies piece by piece;
images are scaled by them for several scales (spec section 7). Before that an image is fitted into
`eval.resize_base`, as OpenCV does it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from deeplab_jax.data.pictures.windows import WindowedImage
from deeplab_jax.data.transforms import fit_size, resize_image
from deeplab_jax.inference.buckets import Size


class Axis(NamedTuple):
    """A table of the elements of the network's output in N rows (or columns) of the result.

    Attributes:
      index: int32 (2, N), two neighbours in the output for each row.
      weight: float (2, N), weights of the neighbours; they sum to 1.
      scale: float (N,), factor of the weighted sum; 0 where the output does not reach.
    """

    index: np.ndarray  # type: ignore[assignment]  # over tuple.index
    weight: np.ndarray
    scale: np.ndarray


def fitted_size(size: Size, base: Sequence[int]) -> Size:
    """Returns the size of the network's input for an image's size, both (height, width).

    `base` is `eval.resize_base`: two sides, or nothing where an image keeps its size.
    """
    return fit_size(*size, (base[0], base[1])) if base else size


def fitted(image: np.ndarray | WindowedImage, base: Sequence[int]) -> np.ndarray | WindowedImage:
    """Returns an image (H, W, 3) at its `fitted_size`; one that has it is returned as it is."""
    own = image.shape[0], image.shape[1]
    size = fitted_size(own, base)
    # A picture that is read by windows keeps its size.
    return image if size == own else resize_image(image[:], size)


def sampling(size: int, length: int, factor: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the table of linear resizing along one axis: half-pixel centres, clamped edges.

    `models.ops` has tables of its own, with the rounding of training.

    Args:
      size: elements of the result.
      length: elements of the source.
      factor: scale from source to result; size / length by default.

    Returns:
      Indices int32 (2, size) and weights float64 (2, size) of both neighbours. Without `factor`
      weights are rounded once.
    """
    output = np.arange(size, dtype=np.int64)
    if factor is not None:
        source = np.maximum((output + 0.5) / factor - 0.5, 0)
        low = np.minimum(source.astype(np.int64), length - 1)
        weight = source - low
    else:
        position = np.maximum((2 * output + 1) * length - size, 0)  # exact, in integers
        low = np.minimum(position // (2 * size), length - 1)
        weight = (position - 2 * size * low) / (2 * size)
    weight = np.where(low == length - 1, 0, weight)
    index = np.stack([low, np.minimum(low + 1, length - 1)]).astype(np.int32)
    return index, np.stack([1 - weight, weight])


def scaled_size(size: Sequence[int], scale: float) -> Size:
    """Returns a size (height, width) times `scale`, rounded down, at least 1."""
    height, width = (max(math.floor(side * scale), 1) for side in size)
    return height, width


def rescale(image: np.ndarray, scale: float) -> np.ndarray:
    """Returns the normalised image scaled; positions follow `scale`, not the ratio of sizes."""
    x, dtype = image, image.dtype
    for axis, size in enumerate(scaled_size(image.shape[:2], scale)):
        (low, high), weight = sampling(size, image.shape[axis], scale)
        weight = np.expand_dims(weight, (2 - axis, 3)[:: 1 if axis else -1]).astype(dtype)
        x = np.take(x, low, axis) * weight[0] + np.take(x, high, axis) * weight[1]
    return x
