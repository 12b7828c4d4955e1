"""The one place where image files are opened: photographs, masks, and masks written back.

Nothing is decoded before its header was checked, and every failure is one line that names the file.
"""

import io
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from deeplab_jax.errors import DataError

MAX_PIXELS = 80_000_000  # a small file can claim to be huge; below the size Pillow itself refuses

# Pillow's own limit only warns, at more pixels than `_open` refuses.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# Pillow spreads 2 and 4 bit grey over 0..255; dividing gives the stored indices back.
_GREY_STEP = {"L;2": 85, "L;4": 17}


def read_image(path: str | Path) -> np.ndarray:
    """Returns a file's photograph; see `decode_image`."""
    return decode_image(str(path), _read_bytes(str(path)))


def read_label(path: str | Path) -> np.ndarray:
    """Returns a file's mask of class indices; see `decode_label`."""
    return decode_label(str(path), _read_bytes(str(path)))


def read_color_label(path: str | Path) -> np.ndarray:
    """Returns a file's mask of colours; see `decode_color_label`."""
    return decode_color_label(str(path), _read_bytes(str(path)))


def read_size(path: str | Path) -> tuple[int, int]:
    """Returns (height, width) as the header says, before any turning.

    Raises:
      DataError: the header cannot be read.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise DataError(str(path), f"has a damaged header ({error})", "replace the file") from error


def decode_image(name: str, data: bytes) -> np.ndarray:
    """Returns a photograph as uint8 (H, W, 3) RGB, turned upright as its EXIF data says.

    Decoding is OpenCV's, as in the reference, so pixels equal `cv2.imread`'s. Grey images become
    three equal channels, alpha is dropped and 16 bit is cut to 8.

    Args:
      name: what messages call it.
      data: the bytes of the file.

    Raises:
      DataError: the data is cut short, too large, or not an image.
    """
    _open(name, data)
    # From bytes: `cv2.imread` would fill the rest of a cut JPEG with grey.
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        image = None
    if image is None:
        raise DataError(name, "is damaged or cut short", "replace the file")
    return image


def decode_label(name: str, data: bytes) -> np.ndarray:
    """Returns a mask's stored indices, never the colours of a palette.

    Args:
      name: what messages call it.
      data: the bytes of the file.

    Returns:
      uint8 (H, W); uint16 where a value is above 255.

    Raises:
      DataError: as for `decode_image`; or the mask holds colours, or is a JPEG.
    """
    mask = _open_mask(name, data)
    if mask.mode not in ("1", "L", "P") and not mask.mode.startswith("I"):
        raise DataError(
            name,
            f"holds colours (mode {mask.mode}), not one class index per pixel",
            "store masks as grey or palette PNG",
        )
    step = _GREY_STEP.get(str(mask.tile[0].args) if mask.tile else "", 1)
    label = _pixels(name, mask)
    if label.dtype.itemsize > 1 and (label.min() < 0 or label.max() > 65535):
        raise DataError(
            name,
            f"has values {label.min()}..{label.max()}; class indices lie in 0..65535",
            "rewrite the mask with class indices",
        )
    if label.dtype.itemsize > 1 and label.max() > 255:
        return label.astype(np.uint16)
    return label.astype(np.uint8) // np.uint8(step)


def decode_color_label(name: str, data: bytes) -> np.ndarray:
    """Returns a mask's colours, those of its palette if it has one, uint8 (H, W, 3) RGB.

    Args:
      name: what messages call it.
      data: the bytes of the file.

    Raises:
      DataError: as for `decode_image`; or the mask is a JPEG.
    """
    return _pixels(name, _open_mask(name, data).convert("RGB"))


def _open_mask(name: str, data: bytes) -> ImageFile.ImageFile:
    mask = _open(name, data)
    if mask.format == "JPEG":
        raise DataError(name, "is a JPEG, which changes class indices", "store masks as PNG")
    return mask


def _pixels(name: str, mask: Image.Image) -> np.ndarray:
    try:
        return np.asarray(mask)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(name, f"is damaged or cut short ({error})", "replace the file") from error


def write_png_indices(path: str | Path, label: np.ndarray, palette: np.ndarray) -> None:
    """Writes class indices as a PNG that viewers show in colour and `read_label` reads back.

    Args:
      path: the file to write.
      label: uint8 (H, W).
      palette: uint8 (C, 3), RGB; indices from C on are shown black.
    """
    image = Image.fromarray(label)
    # All 256 entries: with fewer, Pillow packs indices into as few bits as the palette needs.
    image.putpalette(palette.astype(np.uint8).tobytes().ljust(768, b"\0"))
    image.save(path, "PNG")


def write_overlay(
    path: str | Path, image: np.ndarray, label: np.ndarray, palette: np.ndarray
) -> None:
    """Writes the image with its classes' colours half over it, as a JPEG.

    Args:
      path: the file to write.
      image: uint8 (H, W, 3), RGB.
      label: uint8 (H, W), values in [0, C).
      palette: uint8 (C, 3), RGB.
    """
    mixed = (image.astype(np.uint16) + palette[label]) // 2
    Image.fromarray(mixed.astype(np.uint8)).save(path, "JPEG", quality=92)


def _read_bytes(path: str) -> bytes:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        raise DataError(path, what, "check the path and its permissions") from error
    if not data:
        raise DataError(path, "is an empty file", "replace the file")
    return data


def _open(path: str, data: bytes) -> ImageFile.ImageFile:
    """Reads the header alone: what it is, and how large it would become."""
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise _too_large(path, str(error)) from error
    except UnidentifiedImageError as error:
        what = f"is not an image (it starts with {data[:12]!r})"
        raise DataError(path, what, "replace or remove the file") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(path, f"has a damaged header ({error})", "replace the file") from error
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(path, f"{image.height} x {image.width} pixels")
    return image


def _too_large(path: str, size: str) -> DataError:
    return DataError(
        path, f"is too large to decode safely ({size}, limit {MAX_PIXELS})", "shrink the image"
    )
