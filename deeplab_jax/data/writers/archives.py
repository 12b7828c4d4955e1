"""Unpacks downloaded archives; nothing lands outside the target or looks finished early.

The whole archive is checked before the first byte is written: every name, every kind of member and
the space that the wanted files need.
"""

import functools
import io
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from deeplab_jax.data.writers.staging import require_space
from deeplab_jax.errors import DataError, DeepLabError

_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError)


class _Member(NamedTuple):
    """A file in an archive or folder: name, bytes, and a function that opens it."""

    name: str
    size: int
    open: Callable[[], IO[bytes] | None]


def unpack(source: Path, target: Path, rename: Callable[[str], str]) -> int:
    """Writes the wanted files of a .tar, .tgz, .zip or unpacked folder; returns their number.

    `rename` maps a file's name in the archive to its name under `target`, "" to leave it out; files
    of a folder are named as if the folder lay in the archive. No other process writes to `target`.

    Raises:
      DataError: the archive is damaged, or has a link, a device or a name that leads elsewhere.
      ResourceError: the wanted files do not fit on the disk.
    """
    if source.is_dir():
        return _write(_folder_members(source), target, rename)
    try:
        if _head(source).startswith(b"PK"):  # its table is at the end, which a cut one lacks
            with zipfile.ZipFile(source) as file:
                return _write(_zip_members(source, file), target, rename)
        with tarfile.open(source) as tar:
            return _write(_tar_members(source, tar), target, rename)
    except _DAMAGE as error:
        if isinstance(error, DeepLabError) or getattr(error, "errno", None):
            raise  # of the disk, not of the archive
        why = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")
        what = f"is damaged or cut short ({why}; it starts with {_head(source)!r})"
        raise DataError(str(source), what, "download it again") from error


def _head(source: Path) -> bytes:
    """Returns the first bytes of a file, which show its kind."""
    with source.open("rb") as file:
        return file.read(12)


def _folder_members(source: Path) -> Iterator[_Member]:
    for path in sorted(source.rglob("*")):
        if path.is_file():
            name = path.relative_to(source.parent).as_posix()
            yield _Member(name, path.stat().st_size, functools.partial(io.FileIO, path))


def _zip_members(source: Path, file: zipfile.ZipFile) -> Iterator[_Member]:
    for info in file.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        _check_member(source, info.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
        if not info.is_dir():
            yield _Member(info.filename, info.file_size, functools.partial(file.open, info))


def _tar_members(source: Path, tar: tarfile.TarFile) -> Iterator[_Member]:
    for info in tar:
        _check_member(source, info.name, info.isreg() or info.isdir())
        if info.isreg():
            yield _Member(info.name, info.size, functools.partial(tar.extractfile, info))


def _check_member(source: Path, name: str, is_plain: bool) -> None:
    """Refuses names that lead out of the target, links and devices; official archives have none."""
    leaves = name.startswith("/") or ".." in name.split("/") or set(name) & set("\\\0")
    if leaves or not is_plain:
        what = "is a link or a device" if not is_plain else "would be written outside the target"
        fix = "use the official archive, or name a folder that you unpacked yourself"
        raise DataError(str(source), f"its member {name!r} {what}", fix)


def _write(members: Iterable[_Member], target: Path, rename: Callable[[str], str]) -> int:
    wanted = [member for member in members if rename(member.name)]  # after the checks of all
    target.mkdir(parents=True, exist_ok=True)
    require_space(target, sum(member.size for member in wanted))
    for member in wanted:
        path = target / rename(member.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        reader = member.open()
        assert reader is not None  # a regular file
        with reader, path.open("wb") as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)
    return len(wanted)
