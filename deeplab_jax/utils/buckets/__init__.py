"""Files in a bucket of Google Cloud Storage or S3; `places.as_place` makes their addresses.

Folders do not exist there: a name with slashes is enough. A file appears whole or not at all.
A request that gets no answer is repeated for `PATIENCE` seconds, with growing pauses. Then others
are not even tried for `REST` seconds, so that what a run does at its end does not wait again.
"""

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Self, TypeVar

# Before a path is first used: otherwise an installed TensorFlow would read and write buckets.
os.environ.setdefault("EPATH_USE_TF", "false")

from etils.epath.backend import fsspec_backend
from etils.epath.gpath import PosixGPath
from fsspec.config import conf

from deeplab_jax.errors import ResourceError, describe_cause

PATIENCE = 60.0  # seconds from the first failure of a request to the last try
REST = 60.0
_LONGEST_PAUSE = 8.0  # seconds
_TRANSIENT = (errno.EIO, errno.EBUSY, getattr(errno, "EREMOTEIO", errno.EIO))
_T = TypeVar("_T")
# When the last try to reach a bucket ended, and how.
_silent: dict[tuple[str, ...], tuple[float, Exception]] = {}

# A cached list of a folder would hide what other processes, and tensorstore in this one, write.
for _scheme in ("gcs", "gs", "s3"):
    conf.setdefault(_scheme, {}).setdefault("use_listings_cache", False)
if os.environ.get("DEEPLAB_DEBUG") != "1":  # they log every failure, which is told here once
    for _name in ("gcsfs", "s3fs", "aiobotocore", "google"):
        logging.getLogger(_name).setLevel(logging.CRITICAL)


class Address(PosixGPath):
    """The place of a file or folder in a bucket, with the methods of a path.

    Every method raises FileNotFoundError as a path does, and ResourceError for what else fails.
    """

    def exists(self) -> bool:
        """Tells whether there is such a file, or a file below this name."""
        return ask(self, super().exists)

    def is_dir(self) -> bool:
        """Tells whether there is a file below this name."""
        return ask(self, super().is_dir)

    def is_symlink(self) -> bool:
        """Returns False: buckets have no links."""
        return False

    def iterdir(self) -> Iterator[Self]:
        """Yields what lies directly below this name; raises FileNotFoundError if nothing does."""
        listed = ask(self, lambda: list(super(Address, self).iterdir()))
        return iter([place for place in listed if place != self])

    def read_bytes(self) -> bytes:
        """Returns the file's content."""
        return ask(self, lambda: self._system.cat_file(str(self)))

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """Returns the file's content, UTF-8 by default."""
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def write_bytes(self, data: bytes) -> int:
        """Writes the file, replacing one that exists."""
        self._put(data, "overwrite")
        return len(data)

    def write_text(self, data: str, encoding: str | None = None) -> int:
        """Writes the file, UTF-8 by default, replacing one that exists."""
        return self.write_bytes(data.encode(encoding or "utf-8"))

    def create(self, data: bytes) -> bool:
        """Writes the file unless it exists; returns whether it was written.

        Of several processes that do this at once, one succeeds.
        """
        try:
            self._put(data, "create")
        except FileExistsError:
            # A request whose answer was lost may have written it before it was repeated.
            return self.exists() and self.read_bytes() == data
        return True

    def _put(self, data: bytes, mode: str) -> None:
        try:
            ask(self, lambda: self._system.pipe_file(str(self), data, mode=mode))
        except FileNotFoundError as error:
            fix = "create it, or mend its name"
            raise ResourceError(str(self), "there is no such bucket", fix) from error

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Does nothing: folders do not exist."""

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes the file."""
        try:
            ask(self, lambda: self._system.rm_file(str(self)))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def stat(self) -> Any:
        """Returns the file's size as `length`; raises FileNotFoundError where there is none."""
        return ask(self, super().stat)

    def rmtree(self, missing_ok: bool = False) -> None:
        """Removes all files below this name."""
        with suppress(FileNotFoundError):
            ask(self, super().rmtree)

    def copy_tree(self, target: "Address") -> None:
        """Copies all files below this name to below another."""
        ask(self, lambda: self._system.copy(f"{self}/", f"{target}/", recursive=True))

    def resolve(self, strict: bool = False) -> Self:
        """Returns the address, which is always absolute."""
        return self

    @property
    def _system(self) -> Any:
        return fsspec_backend.fs(str(self))


def ask(place: Address, request: Callable[[], _T]) -> _T:
    """Returns a request's result; repeats it while the bucket does not answer.

    Raises:
      FileNotFoundError, FileExistsError: as the request does.
      ResourceError: anything else; tells which bucket, and why.
    """
    bucket, end, pause = place.parts[:3], 0.0, 0.5
    if bucket in _silent and time.monotonic() < _silent[bucket][0] + REST:
        raise lost(place, _silent[bucket][1])
    while True:
        try:
            return request()
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception as error:
            now = time.monotonic()
            end = end or now + PATIENCE
            if now + pause < end and _is_transient(error):
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            if _is_transient(error):
                _silent[bucket] = time.monotonic(), error
            raise lost(place, error) from error


def lost(place: object, error: Exception) -> ResourceError:
    """Returns the error for a bucket that does not answer, or refuses."""
    what = "gives no answer" if _is_transient(error) else "refuses"
    fix = "check the connection, the credentials and the bucket's name; the same command goes on"
    return ResourceError(str(place), f"the bucket {what}: {describe_cause(error)}", fix)


def _is_transient(error: Exception) -> bool:
    """Tells whether the same request may succeed later."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    code = getattr(error, "code", None)
    if "HttpError" in kinds and code is not None:
        return int(code) in (408, 429) or int(code) >= 500
    # By name: whichever library is not installed has raised nothing.
    names = {"ClientConnectionError", "ClientPayloadError", "HTTPClientError", "TransportError"}
    names |= {"ConnectionError", "TimeoutError", "ConnectTimeoutError", "ReadTimeoutError"}
    return bool(names & kinds) or getattr(error, "errno", None) in _TRANSIENT
