"""Evaluation protocols: the inputs of the network, and how its outputs become scores.

All follow the reference (spec section 7): whole image or sliding window, several scales, flip,
softmax before or after resizing. All resizing is linear along each axis, so that a protocol is a
set of tables: for each row or column of the result, the elements of the network's output in it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from deeplab_jax.config import EvalConfig
from deeplab_jax.data.pictures.windows import WindowedImage
from deeplab_jax.inference.buckets import Size
from deeplab_jax.inference.resize import Axis, rescale, sampling, scaled_size
from deeplab_jax.models.preprocess import normalize

_OUTPUT_STRIDE = 4  # of the network's logits

Picture = np.ndarray | WindowedImage


@dataclass(frozen=True)
class View:
    """One input of the network, a window of a picture.

    Attributes:
      picture: (H, W, 3), uint8 RGB, or floating point and normalised.
      rows: of the window in the picture, from and to.
      columns: of the window in the picture, from and to, counted from the right if `is_flipped`.
      is_flipped: whether left and right change places.
      dtype: floating type of `image`; None: the picture's own type.
      parts: pairs of tables, for rows and columns; each adds a resized output to the scores.
    """

    picture: Picture
    rows: tuple[int, int]
    columns: tuple[int, int]
    is_flipped: bool
    dtype: DTypeLike | None
    parts: tuple[tuple[Axis, Axis], ...]

    @property
    def size(self) -> Size:
        """(height, width) of the window."""
        return self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]

    @property
    def image(self) -> np.ndarray:
        """Pixels (h, w, 3), uint8 RGB, or floating point and normalised; made at each use."""
        start, end = self.columns
        if self.is_flipped:
            start, end = self.picture.shape[1] - end, self.picture.shape[1] - start
        pixels = self.picture[slice(*self.rows), slice(start, end)]
        pixels = pixels[:, ::-1] if self.is_flipped else pixels
        return pixels if self.dtype is None else _normalized(pixels, self.dtype)


@dataclass(frozen=True)
class EvalProtocol:
    """The computation of scores from an image; `str` describes it beside every number.

    Attributes:
      mode: "whole" or "slide".
      crop_size: (height, width) of sliding windows.
      stride: (down, right) between windows, in pixels.
      scales: factors of the image's size; scores are averaged over them.
      flip: average over the mirrored image, too.
      softmax_first: turn logits into probabilities before they are resized to the result.
    """

    mode: str = "whole"
    crop_size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    softmax_first: bool = False

    def __str__(self) -> str:
        """Returns the protocol in words."""
        where, scales = "whole image", "single scale"
        if self.mode == "slide":
            window, stride = ("x".join(map(str, pair)) for pair in (self.crop_size, self.stride))
            where = f"sliding window {window}, stride {stride}"
        if self.scales != (1.0,):
            scales = "scales " + " ".join(f"{scale:g}" for scale in self.scales)
        values = "probabilities" if self.softmax_first else "logits"
        flip = "flip" if self.flip else "no flip"
        return f"{where}, {scales}, {flip}, {values} resized to the original size"

    @property
    def is_plain(self) -> bool:
        """Whether every input of the network is the image itself, or mirrored."""
        return self.mode == "whole" and self.scales == (1.0,)

    @property
    def num_views(self) -> int:
        """Number of scaled and mirrored versions of an image."""
        return len(self.scales) * (1 + self.flip)

    def input_sizes(self, size: Size) -> set[Size]:
        """Returns the sizes (height, width) of the network's inputs for an image of `size`."""
        sizes = {scaled_size(size, scale) for scale in self.scales}
        if self.mode == "whole":
            return sizes
        height, width = self.crop_size
        return {(min(h, height), min(w, width)) for h, w in sizes}

    def views(self, image: Picture, size: Size, dtype: DTypeLike) -> list[View]:
        """Returns the inputs of the network.

        Args:
          image: (h, w, 3), as a view's picture; with several scales an array.
          size: (height, width) of the result.
          dtype: type of the views; those of a plain protocol keep the image's own.
        """
        own = None if self.is_plain else dtype  # views of one dtype share batches and programs
        views: list[View] = []
        for scale in self.scales:
            picture = image if scale == 1 else rescale(_normalized(image[:], dtype), scale)
            for is_flipped in (False, True)[: 1 + self.flip]:
                share = 1 / self.num_views
                if self.mode == "whole":
                    views.append(_whole(picture, size, is_flipped, own, share))
                else:
                    views += self._windows(picture, size, is_flipped, own, share)
        return views

    def _windows(
        self, image: Picture, size: Size, is_flipped: bool, dtype: DTypeLike | None, share: float
    ) -> Iterator[View]:
        """Yields windows: outputs are resized to their window, averaged, then resized."""
        axes = []
        for axis in (0, 1):
            length, crop = image.shape[axis], self.crop_size[axis]
            count = max(length - crop + self.stride[axis] - 1, 0) // self.stride[axis] + 1
            ends = [min(k * self.stride[axis] + crop, length) for k in range(count)]
            spans = [(max(end - crop, 0), end) for end in ends]
            index, weight = sampling(size[axis], length)
            if is_flipped and axis == 1:
                index = length - 1 - index
            axes.append([(span, _window_axes(span, spans, index, weight)) for span in spans])
        for height, rows in axes[0]:
            rows = [row._replace(scale=row.scale * share) for row in rows]
            for width, columns in axes[1]:
                parts = tuple((row, column) for row in rows for column in columns)
                yield View(image, height, width, is_flipped, dtype, parts)


TABLE = EvalProtocol()  # of the published numbers


def read_protocol(eval_config: EvalConfig) -> EvalProtocol:
    """Returns the protocol of a checked `config.eval`."""
    return EvalProtocol(
        eval_config.mode,
        eval_config.crop_size,
        eval_config.stride,
        tuple(map(float, eval_config.scales)),
        eval_config.flip,
        eval_config.softmax_first,
    )


def _normalized(image: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    return normalize(image, dtype) if image.dtype == np.uint8 else image.astype(dtype, copy=False)


def _whole(
    image: Picture, size: Size, is_flipped: bool, dtype: DTypeLike | None, share: float
) -> View:
    """Returns the image itself as a view: its logits are resized straight to the result."""
    axes = []
    for axis in (0, 1):
        length = -(-image.shape[axis] // _OUTPUT_STRIDE)
        index, weight = sampling(size[axis], length)
        if is_flipped and axis == 1:
            index = length - 1 - index
        axes.append(Axis(index, weight, np.full(size[axis], 1 if axis else share)))
    rows, columns = (0, image.shape[0]), (0, image.shape[1])
    return View(image, rows, columns, is_flipped, dtype, ((axes[0], axes[1]),))


def _window_axes(
    span: tuple[int, int], spans: list[tuple[int, int]], index: np.ndarray, weight: np.ndarray
) -> list[Axis]:
    """Returns a window's tables along one axis, one for each neighbour in the input."""
    start, end = span
    inner_index, inner_weight = sampling(end - start, -(-(end - start) // _OUTPUT_STRIDE))
    count = sum((index >= low) & (index < high) for low, high in spans)
    scale = weight * ((index >= start) & (index < end)) / count
    position = np.clip(index - start, 0, end - start - 1)
    tables = zip(position, scale, strict=True)
    return [Axis(inner_index[:, p], inner_weight[:, p], s) for p, s in tables if s.any()]
