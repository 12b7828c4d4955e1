"""TIFFs of every form, which neither Pillow nor OpenCV writes."""

import struct
import zlib

import numpy as np
import pytest


def directory(order, tags, place, following):
    """Returns a directory at `place`, followed by its values; each value is (type, numbers)."""
    sizes = {3: "H", 4: "I"}
    entries, rest, behind = b"", b"", place + 6 + 12 * len(tags)
    for tag, (kind, numbers) in sorted(tags.items()):
        data = struct.pack(f"{order}{len(numbers)}{sizes[kind]}", *numbers)
        if len(data) > 4:
            pointer = struct.pack(f"{order}I", behind + len(rest))
            rest, data = rest + data, pointer
        entries += struct.pack(f"{order}HHI", tag, kind, len(numbers)) + data.ljust(4, b"\0")
    head = struct.pack(f"{order}H", len(tags)) + entries
    return head + struct.pack(f"{order}I", following) + rest


def parts_of(array, tile, rows, order, is_compressed, predictor):
    """Yields the coded strips or tiles of one plane (H, W, channels)."""
    height, width, _ = array.shape
    down, right = tile or (rows, width)
    for top in range(0, height, down):
        for left in range(0, width, right):
            part = array[top : top + down, left : left + right]
            if tile:
                spare = [(0, side - n) for side, n in zip(tile, part.shape[:2], strict=True)]
                part = np.pad(part, (*spare, (0, 0)))
            if predictor:
                part = np.concatenate([part[:, :1], part[:, 1:] - part[:, :-1]], 1)
            data = part.astype(part.dtype.newbyteorder(order)).tobytes()
            yield zlib.compress(data) if is_compressed else data


def tiff(
    array, order="<", tile=(), rows=8, planes=False, deflate=False, predictor=False, tags=(),
    more=(),
):  # fmt: skip
    """Returns a TIFF of an array (H, W) or (H, W, S); `more` are (array, tags) of other pictures.

    `tags` replaces or adds {tag: numbers}.
    """
    pictures = [(array, dict(tags)), *more]
    data = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}H", 42)
    place = 8
    body = b""
    for number, (picture, changes) in enumerate(pictures):
        picture = picture[..., None] if picture.ndim == 2 else picture
        height, width, samples = picture.shape
        split = np.split(picture, samples, 2) if planes else [picture]
        parts = [p for plane in split
                 for p in parts_of(plane, tile, rows, order, deflate, predictor)]  # fmt: skip
        kind = {"u": 1, "i": 2, "f": 3}[picture.dtype.kind]
        entries = {
            256: (width,), 257: (height,), 258: (8 * picture.itemsize,) * samples,
            259: (8 if deflate else 1,), 262: (2 if samples > 2 else 1,), 277: (samples,),
            284: (2 if planes else 1,), 317: (2 if predictor else 1,), 339: (kind,) * samples,
        }  # fmt: skip
        entries |= {322: tile[1:], 323: tile[:1]} if tile else {278: (rows,)}
        entries |= {338: (2,) * (samples - 3)} if samples > 3 else {}
        offsets, counts = (324, 325) if tile else (273, 279)
        starts = place + np.cumsum([0, *map(len, parts)])
        entries |= {offsets: starts[:-1].tolist(), counts: [len(p) for p in parts], **changes}
        typed = {t: (4 if t in (273, 279, 324, 325) else 3, v) for t, v in entries.items()}
        here = int(starts[-1])
        size = len(directory(order, typed, here, 0))
        if number == 0:
            data += struct.pack(f"{order}I", here)
        is_last = number == len(pictures) - 1
        # The next picture's parts lie between the directories.
        following = 0 if is_last else here + size + following_bytes(pictures[number + 1][0])
        body += b"".join(parts) + directory(order, typed, here, following)
        place = here + size
    return data + body


def following_bytes(array):
    return array.nbytes  # pictures after the first are not compressed


@pytest.fixture
def write_tiff(tmp_path):
    """Returns write_tiff(array, **options) -> the path of a file, see `tiff`."""

    def write_tiff(array, name="a.tif", **options):
        path = tmp_path / name
        path.write_bytes(tiff(array, **options))
        return path

    return write_tiff
