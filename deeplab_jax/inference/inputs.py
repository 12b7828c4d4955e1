"""Images as users have them: files, encoded bytes, Pillow images and NumPy arrays."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image

from deeplab_jax.data import images as files
from deeplab_jax.data.pictures import depth, windows
from deeplab_jax.errors import DataError
from deeplab_jax.inference.buckets import Size
from deeplab_jax.inference.memory import host_memory
from deeplab_jax.inference.protocol import Picture

Image = str | Path | bytes | PIL.Image.Image | np.ndarray  # see `check_image`
ONLY = "image"  # name in messages of a single image without a file
_ACCEPTED = "a path, bytes of an image file, a Pillow image, or NumPy uint8 (H, W, 3) RGB or (H, W)"


class Reading(NamedTuple):
    """How images are read for a network.

    Attributes:
      value_range: (low, high) of `config.data.value_range` for 16 bits, or empty.
      is_windowed: whether files too large to be decoded at once are read by windows.
      window_rows: height of these windows.
      windows_fix: flags by which they would be; for messages.
    """

    value_range: tuple[int, ...] = ()
    is_windowed: bool = False
    window_rows: int = 0
    windows_fix: str = ""


_ADVICE = {
    "jax.Array": "; convert it with np.asarray(image)",
    "torch.Tensor": "; convert it with image.permute(1, 2, 0).cpu().numpy() if it is (3, H, W)",
    "builtins.bytearray": "; convert it with bytes(image)",
    "builtins.dict": "; give list(images.values())",
    "builtins.list": "; lists do not nest",
    "builtins.tuple": "; lists do not nest",
}


_PLAIN = Reading()


def check_image(image: object, name: str = ONLY) -> None:
    """Checks type, dtype and shape; opens no file.

    Accepted are a path, the bytes of an image file, a Pillow image of any mode, and NumPy arrays
    uint8 or uint16 (H, W, 3) RGB or (H, W) grey.

    Args:
      image: anything.
      name: what messages call it, such as "images[3]".

    Raises:
      TypeError: another type.
      ValueError: an array of another dtype or shape.
    """
    if isinstance(image, np.ndarray):
        _check_array(image, name)
    elif isinstance(image, PIL.Image.Image):
        if 0 in image.size:
            size = f"{image.width} x {image.height}"
            raise ValueError(
                f"`{name}` must have pixels, got a Pillow image of {size}; replace it."
            )
    elif not isinstance(image, str | os.PathLike | bytes):
        package = type(image).__module__.partition(".")[0]
        kind = "jax.Array" if package == "jaxlib" else f"{package}.{type(image).__name__}"
        fix = "; give one of these"
        if kind in _ADVICE:
            fix = _ADVICE[kind]
        elif hasattr(image, "read"):
            fix = "; give the bytes of its read()"
        elif isinstance(image, Iterable):
            fix = "; give several as a list or tuple"
        kind = kind.removeprefix("builtins.")
        raise TypeError(f"`{name}` must be {_ACCEPTED}, got {kind}{fix}.")


def _check_array(image: np.ndarray, name: str) -> None:
    fix, shape = "", image.shape
    if 0 in shape:
        fix = "it has no pixels"
    elif image.ndim == 4:
        fix = "give list(images) for several"
    elif image.ndim not in (2, 3):
        fix = "give one image, or a list of them"
    elif image.ndim == 3 and shape[2] == 4:
        fix = "drop alpha with image[..., :3], of OpenCV's BGRA image[..., 2::-1]"
    elif image.ndim == 3 and shape[2] == 1:
        fix = "drop the last axis with image[..., 0]"
    elif image.ndim == 3 and shape[2] != 3:
        fix = "give three channels, red, green and blue"
        if shape[0] == 3:
            fix = "put channels last with image.transpose(1, 2, 0)"
    elif image.dtype not in (np.uint8, np.uint16):
        fix = "scale to 0..255 and convert with image.astype(np.uint8)"
        if np.issubdtype(image.dtype, np.floating) and 0 <= image.min() <= image.max() <= 1:
            fix = "of values in 0..1 give (255 * image).round().astype(np.uint8)"
    if fix:
        accepted = "uint8 or uint16, (H, W, 3) RGB or (H, W) grey"
        raise ValueError(f"`{name}` must be {accepted}, got {image.dtype} {shape}; {fix}.")


def check_images(images: Sequence[Image]) -> None:
    """Checks each image, see `check_image`.

    Raises:
      TypeError: `images` is no list or tuple, or an image has another type.
      ValueError: an array has another dtype or shape; the message names its position.
    """
    if not isinstance(images, list | tuple):
        kind = type(images).__name__
        raise TypeError(f"`images` must be a list or tuple, got {kind}; give a list of images.")
    for position, image in enumerate(images):
        check_image(image, f"images[{position}]")


def name_of(image: Image, position: int | None) -> str:
    """Returns the name of an image in messages: its file, else its place among several."""
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    return ONLY if position is None else f"images[{position}]"


def read(image: Image, name: str, reading: Reading = _PLAIN) -> Picture:
    """Returns a checked image as uint8 (H, W, 3) RGB, upright.

    Raises:
      DataError: a file, bytes or a Pillow image cannot be decoded, or an image has 16 bits and
        there is no range; the text starts with `name`.
    """
    value_range = reading.value_range
    if isinstance(image, np.ndarray):
        is_grey = image.dtype == np.uint8 and image.ndim == 2
        pixels = np.stack([image] * 3, -1) if is_grey else image
        return depth.to_8_bits(name, pixels, value_range)
    if isinstance(image, PIL.Image.Image):
        return files.convert_image(name, image, value_range)
    try:
        if isinstance(image, bytes):
            return files.decode_image(name, image, value_range)
        return files.read_image(image, value_range)
    except files.TooLargeError as error:
        if reading.is_windowed:
            return windows.read_by_windows(
                name, image, value_range, host_memory(), reading.window_rows
            )
        fix = "cut it into tiles"
        if reading.windows_fix:
            fix = f"read it by windows: {reading.windows_fix}; or {fix}"
        raise DataError(error.where, error.what, fix) from error


def size_of(image: Image, name: str, reading: Reading = _PLAIN) -> Size:
    """Returns the (height, width) that `read` would return, without decoding.

    Raises:
      DataError: the header shows that `read` would fail.
    """
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    if isinstance(image, PIL.Image.Image):
        return files.upright_size(image)
    limit = windows.MAX_PIXELS if reading.is_windowed else None
    if isinstance(image, bytes):
        return files.decode_size(name, image, limit)
    return files.read_size(image, limit)
