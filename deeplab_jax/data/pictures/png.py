"""The chunks of a PNG: its EXIF data, and whether it is whole."""

import io
import zlib
from collections.abc import Iterator
from typing import IO

BITS_PLACE = 24  # in a file, of the bits of a channel


def chunks(file: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Yields kind and length of a PNG's chunks; at each, `file` stands where its data begins."""
    place = 8
    file.seek(place)
    while len(head := file.read(8)) == 8:
        length = int.from_bytes(head[:4], "big")
        yield head[4:], length
        if head[4:] == b"IEND":
            return
        place += length + 12
        file.seek(place)


def find_exif(file: IO[bytes]) -> bytes:
    """Returns a PNG's EXIF data, which may follow the pixels, where Pillow's header has none."""
    place = file.tell()
    found = next((file.read(size) for kind, size in chunks(file) if kind == b"eXIf"), b"")
    file.seek(place)
    return found


def is_whole(data: bytes) -> bool:
    """Tells whether a PNG has its end, and right checksums of the chunks that decoding needs."""
    kind, file = b"", io.BytesIO(data)
    for kind, length in chunks(file):
        if kind[:1].isupper():
            start = file.tell()
            end = start + length
            checksum = zlib.crc32(memoryview(data)[start - 4 : end])
            if data[end : end + 4] != checksum.to_bytes(4, "big"):
                return False
    return kind == b"IEND"
