"""A lock between processes, which the system releases when its holder ends in any way."""

import errno
import fcntl
import os
import platform
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deeplab_jax.errors import ConfigError
from deeplab_jax.utils.places import is_address


@contextmanager
def hold(directory: Path) -> Iterator[Callable[[], None]]:
    """Locks a work directory against other processes while the block runs, by its file `.lock`.

    Without locks in the file system there is no protection. In a bucket the lock is a
    `lease.Lease`, which can be lost: what is yielded raises ResourceError then.

    Raises:
      ConfigError: another process has it, or `.lock` is a link or no regular file.
    """
    if is_address(directory):
        from deeplab_jax.utils.buckets import Address
        from deeplab_jax.utils.buckets.lease import Lease

        with Lease(Address(directory)) as lease:
            yield lease.check
        return
    with os.fdopen(_open(directory / ".lock"), "r+") as file:
        if not try_lock(file.fileno()):
            file.seek(0)
            what = f"another process trains here ({file.read()})"
            raise ConfigError(str(directory), what, "wait for it, or choose another --workdir")
        file.seek(0)
        file.truncate()
        file.write(f"pid {os.getpid()} on {platform.node()}")
        file.flush()
        yield lambda: None  # it cannot be lost


def try_lock(descriptor: int) -> bool:
    """Locks an open file or folder until it is closed; returns False if another process has it.

    Without locks in the file system there is no protection.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _open(path: Path) -> int:
    """Opens the file of the lock, made if missing; never what a link points to."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        what = f"is a symbolic link to {os.readlink(path)}"
        raise ConfigError(str(path), what, f"remove it: rm {path}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ConfigError(str(path), "is not a regular file", f"remove it: rm {path}")
    return descriptor
