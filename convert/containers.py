"""The two file formats of `torch.save`: a zip since 2020, and pickles in a row before.

Sizes are checked before anything is allocated: a file takes at most twice its size plus a constant.
"""

import io
import zipfile
from typing import IO

import numpy as np

from convert import shown
from convert.rebuild import ForbiddenGlobal, Malformed
from convert.unpickler import unpickle

MAX_PICKLE = 64 << 20  # bytes; mmengine keeps a run's whole log in there
MAX_DIRECTORY = 8 << 20  # bytes of a zip's list of members: 100 000 tensors
MAX_UNPACKED = 256 << 20  # bytes that deflated members may hold beyond twice the file's size

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
_CHUNK = 1 << 20

# How files begin that are not checkpoints, what they are, and what to do.
_SIGNATURES = (
    (b"<!doctype", "is an HTML page", "the link gave a web page: download the file itself"),
    (b"<html", "is an HTML page", "the link gave a web page: download the file itself"),
    (b"<?xml", "is an XML page", "the link gave an error page: download the file itself"),
    (b"version https://git-lfs", "is a Git LFS pointer", "run `git lfs pull` where it came from"),
    (b"\x1f\x8b", "is a gzip archive", "unpack it first"),
    (b"\x89hdf", "is an HDF5 file", "give a .pth or .safetensors file"),
)


class LimitedFile(io.BufferedReader):
    """A file that refuses to read more than `limit` bytes at once: sizes stand in the file."""

    limit: int | None = None

    def read(self, size: int | None = -1, /) -> bytes:  # noqa: D102
        if self.limit is not None and size is not None and size > self.limit:
            raise Malformed(f"needs more than {self.limit} bytes to list its members")
        return super().read(size)


def read_checkpoint(file: LimitedFile, size: int) -> object:
    """Returns what `torch.save` wrote into a file of `size` bytes; raises as `unpickle`."""
    head = file.read(512)
    file.seek(0)
    if not head:
        raise Malformed("is empty (0 bytes)")
    if head.startswith(b"PK\3\4"):
        return _read_zip(file, size)
    if head[257:262] == b"ustar":
        what = "is a tar archive, PyTorch's format before 2017"
        raise Malformed(what, "load and save it again with PyTorch")
    return _read_legacy(file, size)


def is_safetensors(head: bytes) -> bool:
    """Tells by the first nine bytes of a file whether it is a safetensors file."""
    return head[8:9] == b"{" and not head.startswith(b"PK\3\4")


def _read_zip(file: LimitedFile, size: int) -> object:
    """Reads the pickle and the storages it asks for, and checks every other member's CRC too."""
    file.limit = MAX_DIRECTORY
    archive = zipfile.ZipFile(file)
    file.limit = None
    members = _checked_members(archive, size)
    root = _root(members)
    unread = dict(members)

    def read(name: str, expected: int | None = None) -> np.ndarray:
        info = members.get(root + name)
        if info is None:
            raise Malformed(f"has no member {shown(name)}")
        if expected is not None and info.file_size != expected:
            what = f"member {shown(name)} holds {info.file_size} bytes"
            raise Malformed(f"{what}, but its tensors need {shown(expected)}")
        unread.pop(root + name, None)
        return _read_member(archive, info)

    if root + "byteorder" in members and read("byteorder").tobytes() != b"little":
        raise Malformed("is big-endian", "save it again on a little-endian machine")
    if members[root + "data.pkl"].file_size > MAX_PICKLE:
        raise Malformed(f"has a pickle of more than {MAX_PICKLE} bytes", "save tensors alone")
    result = unpickle(
        io.BytesIO(read("data.pkl").tobytes()),
        lambda key, dtype, numel: read(f"data/{key}", numel * dtype.itemsize),
    )
    for info in unread.values():
        _read_member(archive, info)
    return result


def _checked_members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Returns the members by name; refuses what no writer of checkpoints does."""
    infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
    members = {info.filename: info for info in infos}
    if len(members) < len(infos):
        raise Malformed("is a zip archive with two members of one name")
    ends = [info.header_offset for info in infos[1:]] + [archive.start_dir]
    for info, end in zip(infos, ends, strict=False):
        name = shown(info.filename)
        if info.flag_bits & 0x2041:
            raise Malformed(f"member {name} is encrypted", "decrypt it first")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Malformed(f"member {name} is neither stored nor deflated", "zip it again")
        if info.header_offset + 30 + len(info.orig_filename) + info.compress_size > end:
            raise Malformed(f"member {name} lies outside the file or in another")
        if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
            raise Malformed(f"member {name} is given two sizes")
    if sum(info.file_size for info in infos) > 2 * size + MAX_UNPACKED:
        raise Malformed("unpacks to far more than its size", "zip it again without compression")
    return members


def _root(members: dict[str, zipfile.ZipInfo]) -> str:
    """Returns the folder, with its slash, in which a checkpoint's members lie."""
    roots = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
    if len(roots) != 1 or not all(name.startswith(roots[0]) for name in members):
        raise Malformed("is a zip archive, but no checkpoint", "give the .pth file itself")
    if f"{roots[0]}constants.pkl" in members:
        fix = "save its state dict with `torch.save`"
        raise Malformed("is a TorchScript program, not a checkpoint", fix)
    return roots[0]


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """Returns a member's content, uint8 (size,) and read-only; raises if its CRC is wrong."""
    with archive.open(info) as member:
        data = _read_bytes(member, info.file_size)
        member.read(1)  # the end, where the CRC is compared even if there is no content
    return data


def _read_bytes(file: IO[bytes], size: int) -> np.ndarray:
    """Returns the next bytes, uint8 (size,) and read-only; in chunks, so without a second copy."""
    data = np.empty(size, np.uint8)
    view, done = data.data, 0
    while done < size:
        chunk = file.read(min(size - done, _CHUNK))
        if not chunk:
            raise Malformed("is cut short")
        view[done : done + len(chunk)] = chunk
        done += len(chunk)
    data.flags.writeable = False
    return data


def _read_legacy(file: IO[bytes], size: int) -> object:
    """Reads magic number, version, machine, object, keys; then a count and data per storage."""
    head = io.BytesIO(file.read(MAX_PICKLE))
    claims: dict[str, tuple[np.dtype, int]] = {}

    def claim(key: str, dtype: np.dtype, numel: int) -> None:
        if numel * dtype.itemsize > size:
            what = f"storage {shown(key)} claims {shown(numel * dtype.itemsize)} bytes"
            raise Malformed(f"{what}, but the file has {size}")
        claims[key] = dtype, numel

    try:
        magic = unpickle(head, claim)
    except ForbiddenGlobal:
        raise  # a bare pickle: say what it asked for
    except Exception as error:
        raise _guess(head.getvalue()) from error
    if type(magic) is not int or magic != _LEGACY_MAGIC:
        raise Malformed("is a pickle, but no PyTorch checkpoint", "save it with `torch.save`")
    if unpickle(head, claim) != _LEGACY_VERSION:
        raise Malformed("is of an unknown version", "load and save it again with PyTorch")
    match unpickle(head, claim):
        case {"little_endian": True}:
            pass
        case dict():
            raise Malformed("is big-endian", "save it again on a little-endian machine")
        case _:
            raise Malformed("is damaged: it does not describe its machine")
    start = head.tell()
    unpickle(head, claim)  # which storages there are, before any of them is read
    keys = unpickle(head, claim)
    # Sorted, not as sets: numbers could have equal hashes.
    if not isinstance(keys, list) or sorted(keys) != sorted(claims):
        raise Malformed("lists other storages than its tensors have")
    file.seek(head.tell())
    storages = {key: _read_storage(file, size, key, *claims[key]) for key in keys}
    head.seek(start)
    return unpickle(head, lambda key, dtype, numel: storages[key])


def _read_storage(file: IO[bytes], size: int, key: str, dtype: np.dtype, numel: int) -> np.ndarray:
    """Returns the next storage, uint8 (numel * itemsize,) and read-only."""
    held = int.from_bytes(file.read(8), "little")
    if held != numel:
        raise Malformed(f"storage {shown(key)} holds {held} elements, its tensors need {numel}")
    if numel * dtype.itemsize > size - file.tell():
        raise Malformed(f"is cut short in storage {shown(key)}")
    return _read_bytes(file, numel * dtype.itemsize)


def _guess(head: bytes) -> Malformed:
    """Says what a file is that begins with no pickle of PyTorch's."""
    if is_safetensors(head[:9]):
        return Malformed("is a safetensors file", "read it as one: --checkpoint takes both")
    start = head[:512].lstrip().lower()
    for signature, what, fix in _SIGNATURES:
        if start.startswith(signature):
            return Malformed(f"{what}, not a checkpoint", fix)
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start):
        return Malformed("is text, not a checkpoint", "give a .pth or .safetensors file")
    if head.startswith(b"\x80"):
        return Malformed("is a pickle that is damaged, cut short or no checkpoint")
    return Malformed("is no PyTorch checkpoint, or its beginning is damaged")
