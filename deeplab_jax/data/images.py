"""Reads photographs and masks from files, bytes or Pillow images, and writes masks.

A header is checked before anything is decoded, and every failure is one line that names the file.
An image that cannot be decoded to its last pixel is an error, and so is a PNG with a wrong
checksum. Damage that other decoders let pass is not found: flipped bytes, or an end marker after a
cut. The EXIF orientation is applied, to masks too. Files of several pictures (animations, TIFF
pages) are refused; a JPEG's further pictures are previews, a TIFF's reduced copies and transparency
masks belong to one picture, and are ignored.
"""

import io
import logging
import os
import stat
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import cv2
import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from deeplab_jax.data.pictures import depth, masks, png, tiff
from deeplab_jax.errors import DataError

MAX_PIXELS = 80_000_000  # a small file can claim to be huge; below the size Pillow itself refuses
MAX_BYTES = 8 * MAX_PIXELS  # 16 bits of four channels each, not compressed

_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")  # of the others some run programs to decode
LOSSY_FORMATS = ("JPEG", "MPO", "WEBP")  # MPO: a JPEG of several pictures
_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_DEEP_FLAGS = _FLAGS | cv2.IMREAD_ANYDEPTH
_ORIENTATION = 0x0112  # EXIF tag; 1 is upright

# Pillow's limit lies above the one of `_open`; its other warnings precede an error raised here.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)  # so do the lines that it logs

# Pillow spreads 2 and 4 bit grey over 0..255; dividing gives the stored indices back.
_GREY_STEP = {"2": 85, "4": 17}
_PILLOW = threading.Lock()  # an image opened, but not yet decoded, changes when it is decoded


class TooLargeError(DataError):
    """A picture that is not decoded because of its size."""


def read_image(path: str | Path, value_range: Sequence[int] = ()) -> np.ndarray:
    """Returns `decode_image` of a file."""
    return decode_image(str(path), read_bytes(str(path)), value_range)


def read_pixels(path: str | Path) -> np.ndarray:
    """Returns `decode_pixels` of a file."""
    return decode_pixels(str(path), read_bytes(str(path)))


def read_label(path: str | Path) -> np.ndarray:
    """Returns `decode_label` of a file."""
    return decode_label(str(path), read_bytes(str(path)))


def read_color_label(path: str | Path) -> np.ndarray:
    """Returns `decode_color_label` of a file."""
    return decode_color_label(str(path), read_bytes(str(path)))


def read_size(path: str | Path, max_pixels: int | None = None) -> tuple[int, int]:
    """Returns the (height, width) that `read_image` would return, by the header alone.

    `max_pixels` is the largest picture; MAX_PIXELS by default.

    Raises:
      DataError: the file has no header of an image, or `read_image` would refuse it.
    """
    with opened(str(path), max_pixels) as file:
        return upright_size(open_header(str(path), file, max_pixels))


def decode_size(name: str, data: bytes, max_pixels: int | None = None) -> tuple[int, int]:
    """Returns the (height, width) that `decode_image` would return, by the header alone.

    Raises:
      DataError: as for `read_size`; the text starts with `name`.
    """
    _check_length(name, len(data), max_pixels)
    return upright_size(open_header(name, io.BytesIO(data), max_pixels))


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Returns the (height, width) of a Pillow image once it is turned upright."""
    is_turned = _TURNS.get(orientation(image), (0, False))[0] % 2 == 1
    return image.size if is_turned else image.size[::-1]


def decode_image(name: str, data: bytes, value_range: Sequence[int] = ()) -> np.ndarray:
    """Returns a photograph as uint8 (H, W, 3) RGB, upright; see `decode_pixels`.

    16 bits are scaled by `value_range`, see `depth.to_8_bits`; 8 bits stay as they are.

    Raises:
      DataError: the data is cut short, too large, or not an image, or it has 16 bits and there is
        no range; the text starts with `name`.
    """
    return depth.to_8_bits(name, decode_pixels(name, data), value_range)


def decode_pixels(name: str, data: bytes, max_pixels: int | None = None) -> np.ndarray:
    """Returns a photograph upright: uint8 (H, W, 3) RGB, or of 16 bits uint16 (H, W, 3) or (H, W).

    JPEG, PNG and WebP are decoded by OpenCV, as in the reference, so pixels equal `cv2.imread`'s.
    Grey of 8 bits becomes three equal channels, alpha is dropped, CMYK is converted without a
    colour profile.

    Raises:
      DataError: as for `decode_image`.
    """
    header = _open_whole(name, data, max_pixels)
    tag = orientation(header)
    if header.format in ("TIFF", "BMP"):  # OpenCV multiplies by alpha there, and rounds 16 bits
        return _turn(_to_pixels(name, header), tag)
    is_deep = header.format == "PNG" and data[png.BITS_PLACE] == 16
    # From bytes: `cv2.imread` would fill the rest of a cut JPEG with grey.
    try:
        flags = _DEEP_FLAGS if is_deep else _FLAGS
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        raise damaged(name)
    return _turn(image, tag)


def convert_image(name: str, image: Image.Image, value_range: Sequence[int] = ()) -> np.ndarray:
    """Returns a Pillow image of any mode as `decode_image` returns a file; several threads may.

    Raises:
      DataError: it is too large, has 32 bits a channel, or 16 bits in several channels, of which
        Pillow keeps 8; there is no range for its 16 bits; or its file is damaged or closed. The
        text starts with `name`.
    """
    _check_pixels(name, image)
    with _PILLOW:
        tag = orientation(image)
        tiles = getattr(image, "tile", None)
        if image.format == "PNG" and image.mode != "I;16" and tiles and ";16" in str(tiles[0].args):
            raise _cut_to_8_bits(name)
        # Pillow converts grey times alpha into grey with alpha alone.
        whole = image.convert("LA") if image.mode == "La" else image
        return depth.to_8_bits(name, _turn(_to_pixels(name, whole), tag), value_range)


def decode_label(name: str, data: bytes) -> np.ndarray:
    """Returns a mask's stored indices, uint8 (H, W), or uint16 if one is above 255.

    A palette's colours are not looked at, nor which of its entries are transparent. An index that
    is stored in colour is read, see `masks`; where pixels are fully transparent the result is
    int32, with `masks.TRANSPARENT` there.

    Raises:
      DataError: as for `decode_image`; or the mask holds colours, or its format is lossy.
    """
    mask = _open_mask(name, data)
    packing = _packing(mask)
    tag = orientation(mask)
    if mask.mode not in ("1", "L", "P") and not mask.mode.startswith("I"):
        return _turn(_decode_several(name, mask), tag)
    if mask.mode in ("1", "L") and "I" in packing:
        raise DataError(name, "is stored inverted (white is 0)", "store masks as PNG")
    step = _GREY_STEP.get(packing[:1], 1) if mask.mode == "L" else 1
    label = _turn(_pixels(name, mask), tag)
    if label.dtype.itemsize == 1:
        return label.astype(np.uint8) // np.uint8(step)
    low, high = label.min(), label.max()
    if low < 0 or high > 65535:
        what = f"has values {low}..{high}; class indices lie in 0..65535"
        raise DataError(name, what, "rewrite the mask with class indices")
    return label.astype(np.uint8 if high <= 255 else np.uint16)


def _packing(image: ImageFile.ImageFile) -> str:
    """Returns how samples are stored, as Pillow calls it; "" once an image is decoded."""
    args = (image.tile[0].args if image.tile else "") or ""
    return (args if isinstance(args, str) else str(args[0])).partition(";")[2]


def _decode_several(name: str, mask: ImageFile.ImageFile) -> np.ndarray:
    """Returns the indices of a mask of several channels or of floats; refuses all but indices."""
    mode = {"La": "LA", "RGBa": "RGBA"}.get(mask.mode, mask.mode)  # alpha was multiplied in
    if mode not in masks.CHANNELS:
        floats = _pixels(name, mask) if mode == "F" else None
        raise DataError(name, *masks.fault_of_mode(mode, floats))
    _refuse_16_bits(name, mask)
    pixels = _pixels(name, mask, "" if mode == mask.mode else mode)
    label = masks.to_index(name, pixels[..., : masks.CHANNELS[mode]])
    if label is None:
        raise DataError(name, *masks.fault_of_mode(mode, None))
    return label


def _refuse_16_bits(name: str, mask: ImageFile.ImageFile) -> None:
    if "16" in _packing(mask):  # of which Pillow keeps the upper 8
        what = f"has 16 bits a channel (mode {mask.mode}); masks of several channels have 8"
        raise DataError(name, what, "save masks as 8-bit PNG")


def decode_color_label(name: str, data: bytes) -> np.ndarray:
    """Returns a mask's colours, those of its palette if it has one, uint8 (H, W, 3) RGB.

    Where pixels are fully transparent the result is RGBA, uint8 (H, W, 4), alpha 0 or 255.

    Raises:
      DataError: as for `decode_image`; or the mask's format is lossy, or pixels are half
        transparent.
    """
    mask = _open_mask(name, data)
    tag = orientation(mask)
    if mask.mode.startswith("I;16"):
        what, fix = "holds 16-bit numbers, not colours", "set config.data.mask_format=index"
        raise DataError(name, what, fix)
    if mask.mode == "F":
        raise DataError(name, *masks.fault_of_mode("F", _pixels(name, mask)))
    _refuse_16_bits(name, mask)
    if mask.has_transparency_data:
        return _turn(masks.without_alpha(name, _pixels(name, mask, "RGBA")), tag)
    return _turn(_to_rgb(name, mask), tag)


def write_png(file: str | Path | BinaryIO, values: np.ndarray) -> None:
    """Writes uint8 (H, W) as a grey PNG."""
    Image.fromarray(values).save(file, "PNG")


def write_png_indices(file: str | Path | BinaryIO, label: np.ndarray, palette: np.ndarray) -> None:
    """Writes class indices as a PNG that viewers show in colour and `read_label` reads back.

    `label` is uint8 (H, W), `palette` uint8 (C, 3) RGB; indices from C on are shown black.
    """
    to_indexed(label, palette).save(file, "PNG")


def to_indexed(label: np.ndarray, palette: np.ndarray) -> Image.Image:
    """Returns class indices as a Pillow image of mode P; arguments as for `write_png_indices`."""
    image = Image.fromarray(label)
    # All 256 entries: with fewer, Pillow packs indices into fewer bits.
    image.putpalette(palette.astype(np.uint8).tobytes().ljust(768, b"\0"))
    return image


@contextmanager
def opened(path: str, max_pixels: int | None = None) -> Iterator[BinaryIO]:
    """Opens a regular file: a pipe would wait for a writer, a device never ends."""
    try:
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):
            kind = "folder" if stat.S_ISDIR(info.st_mode) else "pipe, socket or device"
            raise DataError(path, f"is a {kind}, not a file", "replace or remove it")
        _check_length(path, info.st_size, max_pixels)
        with open(path, "rb") as file:
            yield file
    except DataError:
        raise
    except (OSError, ValueError) as error:
        what = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise DataError(path, what, "check the path and its permissions") from error


def _check_length(name: str, num_bytes: int, max_pixels: int | None = None) -> None:
    limit = MAX_BYTES if max_pixels is None else 8 * max_pixels
    if num_bytes > limit:
        raise _too_large(name, f"{num_bytes} bytes", limit)
    if not num_bytes:
        raise DataError(name, "is an empty file", "replace the file")


def _check_pixels(name: str, image: Image.Image, max_pixels: int | None = None) -> None:
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    if image.width * image.height > limit:
        raise _too_large(name, f"{image.height} x {image.width} pixels", limit)


def read_bytes(path: str) -> bytes:
    """Returns the bytes of a regular file of a picture's size (DataError)."""
    with opened(path) as file:
        return file.read()


def open_header(name: str, file: BinaryIO, max_pixels: int | None = None) -> ImageFile.ImageFile:
    """Reads the header alone, and refuses formats, sizes and several pictures (DataError).

    Of a TIFF the one picture is opened that is no reduced copy or transparency mask.
    """
    try:
        image = _open_any(file, max_pixels)
        num_pictures = getattr(image, "n_frames", 1) if image.format != "MPO" else 1
        if num_pictures > 1 and image.format == "TIFF":
            found = [n for n, d in enumerate(tiff.directories(file)) if d.is_picture]
            if len(found) == 1:
                image.seek(found[0])
                num_pictures = 1
    except Image.DecompressionBombError as error:
        raise _too_large(name, str(error)) from error
    except UnidentifiedImageError as error:
        file.seek(0)
        head = file.read(512)
        what, fix = _describe(head), "replace or remove the file"
        if head[:4] in tiff.STARTS:
            what, fix = tiff.describe(file) or (what, fix)
        raise DataError(name, what, fix) from error
    except Exception as error:  # whatever a plugin makes of damage
        raise DataError(name, f"has a damaged header ({error})", "replace the file") from error
    _check_pixels(name, image, max_pixels)
    if num_pictures > 1:
        raise DataError(name, f"holds {num_pictures} pictures", "keep one picture in a file")
    if image.format == "TIFF" and (odd := tiff.hidden_fault(directory_of(image), image)):
        raise DataError(name, *odd)
    return image


def _open_any(file: BinaryIO, max_pixels: int | None) -> ImageFile.ImageFile:
    try:
        return Image.open(file, formats=_FORMATS)
    except Image.DecompressionBombError:
        if max_pixels is None:
            raise
    file.seek(0)
    head = file.read(16)
    for name in _FORMATS:  # the same without Pillow's limit; ours is checked by the caller
        factory, is_format = Image.OPEN[name]
        if is_format is None or is_format(head):
            file.seek(0)
            return cast(ImageFile.ImageFile, factory(file, ""))
    raise UnidentifiedImageError("no picture")


def directory_of(image: Image.Image) -> tiff.Directory:
    """Returns the directory of a TIFF's picture that is open, an empty one of other formats."""
    tags = getattr(image, "tag_v2", None)
    return tiff.Directory("<", {}) if tags is None else tiff.Directory.read(tags)


def _open_whole(name: str, data: bytes, max_pixels: int | None = None) -> ImageFile.ImageFile:
    _check_length(name, len(data), max_pixels)
    header = open_header(name, io.BytesIO(data), max_pixels)
    # Damage of a PNG: Pillow would not mind, and libpng would print a line of its own.
    if header.format == "PNG" and not png.is_whole(data):
        raise damaged(name)
    return header


def _describe(head: bytes) -> str:
    """Returns a description of a file that is no readable image, by its first bytes."""
    start = f"(it starts with {head[:12]!r})"
    head = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if head[:14].lower().startswith((b"<!doctype html", b"<html", b"<head")):
        return f"looks like an HTML page, as a failed download leaves it {start}"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself (git lfs pull)"
    if head.isascii() and not set(head) & set(range(9)):
        return f"looks like text, not an image {start}"
    return f"is not an image in JPEG, PNG, WebP, TIFF or BMP {start}"


def _open_mask(name: str, data: bytes) -> ImageFile.ImageFile:
    mask = _open_whole(name, data)
    if mask.format in LOSSY_FORMATS:
        kind = "a WebP" if mask.format == "WEBP" else "a JPEG"
        raise DataError(name, f"is {kind}, which changes class indices", "store masks as PNG")
    return mask


def _to_pixels(name: str, image: Image.Image) -> np.ndarray:
    """Decodes with Pillow to uint8 (H, W, 3), or of 16 bits uint16 (H, W, 3) or (H, W)."""
    found = directory_of(image)
    if odd := tiff.fault(found) if found.tags else None:
        raise DataError(name, *odd)
    is_grey = image.mode.startswith("I;16")
    if is_grey and (found.bits != 16 or found.number(tiff.PLANAR, 1) == 1):
        return _pixels(name, image).astype(np.uint16)
    if found.bits > 8:  # of these Pillow would keep 8; and one plane it does not open
        if not isinstance(image, ImageFile.ImageFile) or image.fp is None:
            raise _cut_to_8_bits(name)
        try:
            pixels = tiff.read_16_bits(cast(BinaryIO, image.fp), found)
        except Exception as error:  # whatever a decoder makes of damage
            raise damaged(name, f" ({error})") from error
        return _turn(
            pixels[..., 0] if is_grey else pixels[..., :3], found.number(tiff.ORIENTATION, 1)
        )
    return _to_rgb(name, image)


def _cut_to_8_bits(name: str) -> DataError:
    what = "has 16 bits a channel, of which Pillow keeps 8"
    return DataError(name, what, "give the path or the bytes of its file")


def _to_rgb(name: str, image: Image.Image) -> np.ndarray:
    """Decodes with Pillow to uint8 (H, W, 3), of 16 bits the upper 8."""
    if image.mode.startswith("I;16"):
        return np.stack([(_pixels(name, image) >> 8).astype(np.uint8)] * 3, -1)
    if image.mode in ("I", "F"):
        fix = "store it with 8 or 16 bits a channel"
        raise DataError(name, "has 32 bits a channel; 8 and 16 are read", fix)
    return _pixels(name, image, "RGB")


def _pixels(name: str, image: Image.Image, mode: str = "") -> np.ndarray:
    try:
        return np.asarray(image.convert(mode) if mode else image)
    except Exception as error:  # whatever a decoder makes of damage
        raise damaged(name, f" ({error})") from error


def _turn(pixels: np.ndarray, tag: int) -> np.ndarray:
    """Returns the pixels upright, as the orientation tag says."""
    turns, is_mirrored = _TURNS.get(tag, (0, False))
    pixels = np.rot90(pixels, turns)
    return np.ascontiguousarray(pixels[:, ::-1] if is_mirrored else pixels)


# Tag: quarter turns to the left, then whether left and right change places.
_TURNS = {2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True),
          8: (1, False)}  # fmt: skip


def orientation(header: Image.Image) -> int:
    """Returns the EXIF orientation of an image, decoded or not; 1 is upright."""
    file = header.fp if header.format == "PNG" and isinstance(header, ImageFile.ImageFile) else None
    data = png.find_exif(file) if file and not file.closed else header.info.get("exif")
    if not data or header.format == "TIFF":  # Pillow turns TIFF itself
        return 1
    exif = Image.Exif()
    try:
        exif.load(data)
        return exif.get(_ORIENTATION, 1)
    except Exception:  # whatever a camera wrote; OpenCV passes over it too
        return 1


def damaged(name: str, why: str = "") -> DataError:
    """Returns the error of a picture that cannot be decoded to its end."""
    return DataError(name, f"is damaged or cut short{why}", "replace the file")


def _too_large(name: str, size: str, limit: int = MAX_PIXELS) -> TooLargeError:
    what = f"is too large to decode safely ({size}, limit {limit})"
    return TooLargeError(name, what, "cut it into tiles, or shrink it")
