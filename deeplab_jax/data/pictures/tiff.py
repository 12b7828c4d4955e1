"""TIFF's directories: which of them are pictures, what a file is in words, and parts of it.

Pillow decodes TIFF. What it does not do is done by giving it another TIFF with the same coded
bytes: the rows of a window alone, or samples of 16 bits as a grey picture.
"""

import io
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, TiffImagePlugin

SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = (
    254,
    255,
    256,
    257,
    258,
    259,
    262,
)
FILL_ORDER, OFFSETS, SAMPLES, ROWS, COUNTS, PLANAR, PREDICTOR = 266, 273, 277, 278, 279, 284, 317
ORIENTATION, COLORS, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS = (
    274,
    320,
    322,
    323,
    324,
    325,
)
EXTRA, FORMAT, JPEG_TABLES, SUBSAMPLING = 338, 339, 347, 530
STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # of files, the last two BigTIFF
_SHORT, _LONG, _BYTES = 3, 4, 7  # types of values in a directory
_LONG_TAGS = (
    WIDTH,
    HEIGHT,
    OFFSETS,
    ROWS,
    COUNTS,
    TILE_WIDTH,
    TILE_HEIGHT,
    TILE_OFFSETS,
    TILE_COUNTS,
)
_KEPT = (BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, SAMPLES, PLANAR, PREDICTOR, COLORS, EXTRA,
         FORMAT, JPEG_TABLES, SUBSAMPLING)  # fmt: skip
KINDS = (SUBFILE, OLD_SUBFILE, WIDTH)  # all that is looked at of further pictures
_USED = {*KINDS, *_LONG_TAGS, *_KEPT, ORIENTATION}
_MAX_DIRECTORIES = 10_000
_STRIP = 64  # rows that uncompressed data is cut into
_NOT_COMPRESSED = 1
# Codes whose strips and tiles stand alone: LZW, JPEG, Deflate (two), PackBits, LZMA, Zstandard.
_ALONE = (_NOT_COMPRESSED, 5, 7, 8, 32946, 32773, 34925, 50000)
_COMPRESSIONS = {34712: "JPEG 2000", 33003: "JPEG 2000", 33005: "JPEG 2000",
                 34887: "LERC", 50002: "JPEG XL", 52546: "JPEG XL", 34892: "lossy JPEG",
                 50001: "WebP"}  # fmt: skip

Tags = Mapping[int, object]


class Directory(NamedTuple):
    """One directory of a TIFF: the tags of one picture."""

    order: str  # "<" or ">", of the file's numbers
    tags: Tags

    @classmethod
    def read(
        cls, tags: TiffImagePlugin.ImageFileDirectory_v2, wanted: Collection[int] = _USED
    ) -> "Directory":
        """Returns what Pillow makes of the wanted tags, without values that are damaged."""
        found: dict[int, object] = {}
        for tag in tags.keys() & wanted:  # a private one may be as large as the file
            with suppress(Exception):  # whatever Pillow makes of damage
                found[tag] = tags[tag]
        return cls("<" if tags.prefix == b"II" else ">", found)

    def number(self, tag: int, default: int = 0) -> int:
        """Returns a tag's first number."""
        values = self.numbers(tag)
        return values[0] if values else default

    def numbers(self, tag: int) -> tuple[int, ...]:
        """Returns a tag's whole numbers, () without it or where it holds others."""
        value = self.tags.get(tag, ())
        values = value if isinstance(value, tuple) else (value,)
        return values if all(type(v) is int and v >= 0 for v in values) else ()

    @property
    def is_picture(self) -> bool:
        """Whether it is no reduced copy and no transparency mask of another."""
        return not self.number(SUBFILE) & 5 and self.number(OLD_SUBFILE) != 2

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) as stored."""
        return self.number(HEIGHT), self.number(WIDTH)

    @property
    def bits(self) -> int:
        """Bits of a sample, the most of all channels."""
        return max(self.numbers(BITS), default=1)


def directories(file: BinaryIO, wanted: Collection[int] = _USED) -> Iterator[Directory]:
    """Yields the directories of a TIFF in their order, up to damage, with the wanted tags."""
    seen: set[int] = set()
    try:
        file.seek(0)
        head = file.read(8)
        if 43 in head[2:4]:  # BigTIFF
            head += file.read(8)
        ifd = TiffImagePlugin.ImageFileDirectory_v2(head)
        while ifd.next and ifd.next not in seen and len(seen) < _MAX_DIRECTORIES:
            seen.add(ifd.next)
            file.seek(ifd.next)
            ifd.load(file)
            yield Directory.read(ifd, wanted)
    except Exception:  # whatever Pillow makes of damage
        return


def fault(directory: Directory) -> tuple[str, str] | None:
    """Returns what a picture is that is not read, and what to do; None where nothing is known.

    Both are for a `DataError`. Masks of one band may hold what is refused here of photographs.
    """
    samples, bits, kind = directory.number(SAMPLES, 1), directory.bits, directory.number(FORMAT, 1)
    photometric, extra = directory.number(PHOTOMETRIC), directory.number(EXTRA)
    if name := _COMPRESSIONS.get(directory.number(COMPRESSION, 1)):
        fix = "store it otherwise: gdal_translate -co COMPRESS=DEFLATE IN.tif OUT.tif"
        return f"is a TIFF in {name} compression", fix
    whole = "store whole numbers of 8 or 16 bits: gdal_translate -ot UInt16 IN.tif OUT.tif"
    if kind in (3, 5, 6):
        what = f"is a TIFF of {bits}-bit {'floats' if kind == 3 else 'complex numbers'}"
        return what, whole + ", with -scale LOW HIGH 0 65535 for fractions"
    if samples == 2 and extra not in (1, 2):
        return "is a TIFF of 2 bands", "keep one: gdal_translate -b 1 IN.tif OUT.tif"
    if samples > 4 or (samples > 2 and photometric < 2):
        what = f"is a TIFF of {samples} bands"
        what += "" if samples > 4 else ", none of them marked as red, green or blue"
        fix = "keep three as red, green and blue, such as gdal_translate -b 1 -b 2 -b 3"
        return what, f"{fix} -co PHOTOMETRIC=RGB IN.tif OUT.tif"
    if bits > 16 or kind == 2:
        return f"is a TIFF of {bits}-bit {'signed ' * (bits <= 16)}integers", whole
    if bits > 8 and photometric == 0:
        return "is a TIFF stored inverted (white is 0)", "store it with black as 0"
    if bits > 8 and samples > 1 and photometric != 2:
        what = f"is a TIFF of {samples} channels of {bits} bits that are not red, green and blue"
        return what, "store it as RGB of 8 or 16 bits, or one channel of it"
    return None


def has_unmarked_band(directory: Directory) -> bool:
    """Tells whether a picture in red, green and blue has a fourth band that is no transparency."""
    is_rgb = directory.number(PHOTOMETRIC) == 2 and directory.number(SAMPLES, 1) == 4
    return is_rgb and directory.number(EXTRA) not in (1, 2)


def hidden_fault(directory: Directory, image: Image.Image) -> tuple[str, str] | None:
    """Returns the fault of an opened picture of which Pillow would pass over channels, or print."""
    is_whole = len(image.getbands()) == directory.number(SAMPLES, 1)
    is_known = directory.number(COMPRESSION, 1) not in _COMPRESSIONS
    return None if is_whole and is_known else fault(directory)


def describe(file: BinaryIO) -> tuple[str, str] | None:
    """Returns what a TIFF is that Pillow cannot open, and what to do; None where nothing is seen.

    Both are for a `DataError`.
    """
    file.seek(0)
    if file.read(4) == b"MM\0+":
        fix = "store it little-endian: gdal_translate -co ENDIANNESS=LITTLE IN.tif OUT.tif"
        return "is a big-endian BigTIFF, which is not read", fix
    pictures = (d for d in directories(file) if d.is_picture and WIDTH in d.tags)
    first = next(pictures, None)
    if first is None:
        return None
    if found := fault(first):
        return found
    samples = first.number(SAMPLES, 1)
    places = ", in tiles" if TILE_OFFSETS in first.tags else ""
    places += ", in planes" if first.number(PLANAR, 1) == 2 else ""
    what = f"is a TIFF of {samples} channel{'s' if samples > 1 else ''} of {first.bits} bits"
    what += f"{places}, of a kind that is not read (compression "
    what += f"{first.number(COMPRESSION, 1)}, photometric {first.number(PHOTOMETRIC)})"
    return what, "store it as a plain one: gdal_translate -co TILED=NO IN.tif OUT.tif"


def is_cuttable(directory: Directory, max_pixels: int) -> bool:
    """Tells whether some rows can be decoded alone, with at most `max_pixels` around a row."""
    tiles = directory.numbers(TILE_OFFSETS)
    is_subsampled = directory.number(PHOTOMETRIC) == 6 and directory.number(COMPRESSION, 1) != 7
    return (
        directory.number(COMPRESSION, 1) in _ALONE
        and not is_subsampled
        and directory.number(ORIENTATION, 1) == 1
        and bool(tiles or directory.numbers(OFFSETS))
        and 0 < _places(directory)[1] * directory.size[1] <= max_pixels
    )


def part_rows(directory: Directory) -> int:
    """Returns the rows of a strip or tile, which is decoded as a whole."""
    return _places(directory)[1]


def cut(file: BinaryIO, directory: Directory, top: int, bottom: int) -> tuple[bytes, int]:
    """Returns a TIFF of the strips or tiles that hold rows top..bottom-1, and its first row.

    Raises:
      ValueError: the file does not hold them.
    """
    height = directory.size[0]
    is_tiled, length, places = _checked_places(directory)
    planes = directory.number(SAMPLES, 1) if directory.number(PLANAR, 1) == 2 else 1
    per_plane = len(places) // planes
    across = -(-directory.size[1] // max(directory.number(TILE_WIDTH), 1)) if is_tiled else 1
    first, last = top // length, -(-bottom // length)
    wanted = [
        place
        for plane in range(planes)
        for place in places[plane * per_plane :][first * across : last * across]
    ]
    rows = min(last * length, height) - first * length
    changes = {WIDTH: (directory.size[1],), HEIGHT: (rows,)}
    if is_tiled:
        changes |= {key: (directory.number(key),) for key in (TILE_WIDTH, TILE_HEIGHT)}
    else:
        changes[ROWS] = (length,)
    tags = {key: directory.tags[key] for key in _KEPT if key in directory.tags}
    return _write(directory.order, {**tags, **changes}, _read(file, wanted)), first * length


def read_16_bits(file: BinaryIO, directory: Directory) -> np.ndarray:
    """Returns the samples of a picture of 16 bits and several channels, uint16 (H, W, S).

    Pillow would keep 8 bits of them. It decodes each plane, or all channels side by side, as one
    grey picture; horizontal differences between pixels are summed here.

    Raises:
      Exception: the picture is damaged; whatever Pillow makes of it.
    """
    height, width = directory.size
    samples = directory.number(SAMPLES, 1)
    is_tiled, length, places = _checked_places(directory)
    planes = samples if directory.number(PLANAR, 1) == 2 else 1
    channels, each = samples // planes, len(places) // planes
    step = directory.number(TILE_WIDTH) if is_tiled else width  # pixels that are coded together
    tags: dict[int, object] = {
        WIDTH: (width * channels,), HEIGHT: (height,), BITS: (16,), PHOTOMETRIC: (1,),
        COMPRESSION: (directory.number(COMPRESSION, 1),),
    }  # fmt: skip
    if is_tiled:
        tags |= {TILE_WIDTH: (step * channels,), TILE_HEIGHT: (length,)}
    else:
        tags[ROWS] = (length,)
    pixels = np.empty((height, width, planes, channels), np.uint16)
    for plane in range(planes):
        parts = _read(file, places[plane * each : (plane + 1) * each])
        data = io.BytesIO(_write(directory.order, tags, parts))
        # Not `Image.open`, whose limit of pixels would count the channels.
        with TiffImagePlugin.TiffImageFile(data) as grey:
            pixels[:, :, plane] = np.asarray(grey).reshape(height, width, channels)
    if directory.number(PREDICTOR, 1) == 2:
        for left in range(0, width, step):
            part = pixels[:, left : left + step]
            np.cumsum(part, axis=1, dtype=np.uint16, out=part)
    return pixels.reshape(height, width, samples)


def _checked_places(directory: Directory) -> tuple[bool, int, list[tuple[int, int]]]:
    """Returns `_places`; raises ValueError where they do not cover the picture."""
    is_tiled, length, places = _places(directory)
    height, width = directory.size
    planes = directory.number(SAMPLES, 1) if directory.number(PLANAR, 1) == 2 else 1
    across = -(-width // max(directory.number(TILE_WIDTH), 1)) if is_tiled else 1
    if length < 1 or len(places) < planes * -(-height // length) * across:
        raise ValueError("has too few strips or tiles")
    return is_tiled, length, places


def _places(directory: Directory) -> tuple[bool, int, list[tuple[int, int]]]:
    """Returns whether the picture is in tiles, their or the strips' rows, and (offset, bytes)."""
    height, width = directory.size
    if offsets := directory.numbers(TILE_OFFSETS):
        counts = directory.numbers(TILE_COUNTS) or directory.numbers(COUNTS)
        return True, directory.number(TILE_HEIGHT), [*zip(offsets, counts, strict=False)]
    length = min(directory.number(ROWS, height), height)
    places = [*zip(directory.numbers(OFFSETS), directory.numbers(COUNTS), strict=False)]
    samples = directory.number(SAMPLES, 1) if directory.number(PLANAR, 1) == 1 else 1
    row, rest = divmod(width * samples * directory.bits, 8)
    is_plain = directory.number(COMPRESSION, 1) == _NOT_COMPRESSED and not rest
    if (
        is_plain
        and samples == directory.number(SAMPLES, 1)
        and len(places) == 1
        and length > _STRIP
    ):
        offset, end = places[0][0], sum(places[0])
        starts = range(offset, min(offset + height * row, end), _STRIP * row)
        places = [(start, min(_STRIP * row, end - start)) for start in starts]
        length = _STRIP
    return False, length, places


def _read(file: BinaryIO, places: Sequence[tuple[int, int]]) -> list[bytes]:
    end = file.seek(0, io.SEEK_END)
    if sum(count for _, count in places) > end:  # strips that overlap multiply a file
        raise ValueError("claims more bytes than it has")
    parts = []
    for offset, count in places:
        file.seek(offset)
        parts.append(file.read(count))
        if len(parts[-1]) != count:
            raise ValueError("is cut short")
    return parts


def _write(order: str, tags: Mapping[int, object], parts: Sequence[bytes]) -> bytes:
    """Returns a TIFF with one directory, in the byte order of its parts."""
    is_tiled = TILE_WIDTH in tags
    offsets, counts = (TILE_OFFSETS, TILE_COUNTS) if is_tiled else (OFFSETS, COUNTS)
    values = {**tags, offsets: (0,) * len(parts), counts: tuple(map(len, parts))}
    size = 8 + len(_directory(order, values, 8))
    starts = np.cumsum([size, *map(len, parts)])[:-1].tolist()
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    return b"".join([head, _directory(order, {**values, offsets: tuple(starts)}, 8), *parts])


def _directory(order: str, tags: Mapping[int, object], place: int) -> bytes:
    """Returns a directory that lies at `place`, followed by its values."""
    behind = place + 2 + 12 * len(tags) + 4
    entries, rest = b"", b""
    for tag, value in sorted(tags.items()):
        if isinstance(value, bytes):
            kind, number, data = _BYTES, len(value), value
        else:
            numbers = value if isinstance(value, tuple) else (value,)
            kind, number = _LONG if tag in _LONG_TAGS else _SHORT, len(numbers)
            data = struct.pack(f"{order}{number}{'I' if kind == _LONG else 'H'}", *numbers)
        if len(data) > 4:
            pointer = struct.pack(f"{order}I", behind + len(rest))
            rest += data + b"\0" * (len(data) % 2)
            data = pointer
        entries += struct.pack(f"{order}HHI", tag, kind, number) + data.ljust(4, b"\0")
    return struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + rest
