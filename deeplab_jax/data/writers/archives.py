"""Downloaded archives, unpacked so that nothing lands outside the target or looks finished early.

An archive is checked as a whole before its first byte is written: every name, every kind of member
and the room that the wanted files need.
"""

import fcntl
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from deeplab_jax.errors import DataError, DeepLabError, ResourceError

_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError)
_SPARE = 64 << 20  # bytes left free beside what is written


class _Member(NamedTuple):
    """A file in an archive or folder: its name there, and what opens it."""

    name: str
    size: int
    key: object


@contextmanager
def staged(root: Path, part: str) -> Iterator[Path]:
    """Yields an empty folder; what the block writes to `part` in it moves to `root / part`.

    It moves only when the block ends well, and at once. What a killed run left is removed first.

    Args:
      root: made if missing; the folder lies in it, on the same disk.
      part: relative path, which must not exist under `root`.

    Raises:
      ResourceError: another process is writing the same.
    """
    partial = root / f".{part.replace('/', '.')}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    lock = os.open(partial, os.O_RDONLY)
    try:
        _lock(lock, root / part)
        for entry in partial.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        try:
            yield partial
            (root / part).parent.mkdir(parents=True, exist_ok=True)
            os.rename(partial / part, root / part)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    finally:
        os.close(lock)


def _lock(file: int, target: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        what = "is being written by another process"
        raise ResourceError(str(target), what, "wait for it to end") from error
    except OSError:
        pass  # a file system without locks


def require_space(where: Path, needed: int) -> None:
    """Checks that a folder's disk has room.

    Raises:
      ResourceError: it has not; the text says how many bytes are needed and how many are free.
    """
    free = shutil.disk_usage(where).free
    if needed + _SPARE > free:
        what = f"{needed} bytes are needed and {free} are free"
        raise ResourceError(str(where), what, "free some space, or choose another --output")


def unpack(source: Path, target: Path, rename: Callable[[str], str]) -> int:
    """Writes the wanted files of an archive, or of a folder that it was unpacked to.

    Args:
      source: a .tar, .tgz or .zip file, or a folder.
      target: the folder to write into, where nobody else writes.
      rename: from a file's name in the archive to its name under `target`, or "" to leave it out;
        a folder's files are named as if it lay in the archive.

    Returns:
      The number of files written.

    Raises:
      DataError: the archive is damaged, or has a link, a device or a name that leads elsewhere.
      ResourceError: the wanted files do not fit on the disk.
    """
    if source.is_dir():
        members = _folder_members(source, rename)
        return _write(members, lambda path: path.open("rb"), target, rename)
    try:
        if _head(source).startswith(b"PK"):  # its table is at the end, which a cut one lacks
            with zipfile.ZipFile(source) as file:
                members = _zip_members(source, file, rename)
                return _write(members, lambda key: file.open(key), target, rename)
        with tarfile.open(source) as tar:
            members = _tar_members(source, tar, rename)
            return _write(members, lambda key: tar.extractfile(key), target, rename)
    except _DAMAGE as error:
        if isinstance(error, DeepLabError) or getattr(error, "errno", None):
            raise  # of the disk, not of the archive
        why = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")
        what = f"is damaged or cut short ({why}; it starts with {_head(source)!r})"
        raise DataError(str(source), what, "download it again") from error


def _head(source: Path) -> bytes:
    """Returns the bytes that tell what a file is."""
    with source.open("rb") as file:
        return file.read(12)


def _folder_members(source: Path, rename: Callable[[str], str]) -> list[_Member]:
    paths = (path for path in sorted(source.rglob("*")) if path.is_file())
    found = [_Member(p.relative_to(source.parent).as_posix(), p.stat().st_size, p) for p in paths]
    return [member for member in found if rename(member.name)]


def _zip_members(source: Path, file: zipfile.ZipFile, rename: Callable[[str], str]) -> list:
    members = []
    for info in file.infolist():
        mode = info.external_attr >> 16
        kind = stat.S_IFMT(mode)
        _check_member(source, info.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
        if not info.is_dir() and rename(info.filename):
            members.append(_Member(info.filename, info.file_size, info))
    return members


def _tar_members(source: Path, tar: tarfile.TarFile, rename: Callable[[str], str]) -> list:
    members = []
    for info in tar:
        _check_member(source, info.name, info.isreg() or info.isdir())
        if info.isreg() and rename(info.name):
            members.append(_Member(info.name, info.size, info))
    return members


def _check_member(source: Path, name: str, is_plain: bool) -> None:
    """Refuses what leads elsewhere; links altogether, since the official archives have none."""
    leaves = name.startswith("/") or ".." in name.split("/") or set(name) & set("\\\0")
    if leaves or not is_plain:
        what = "is a link or a device" if not is_plain else "would be written outside the target"
        fix = "use the official archive, or name a folder that you unpacked yourself"
        raise DataError(str(source), f"its member {name!r} {what}", fix)


def _write(members: list, open_member: Callable, target: Path, rename: Callable[[str], str]) -> int:
    target.mkdir(parents=True, exist_ok=True)
    require_space(target, sum(member.size for member in members))
    for member in members:
        path = target / rename(member.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_member(member.key) as reader, path.open("wb") as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)
    return len(members)
