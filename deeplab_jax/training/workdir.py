"""A run's work directory: its lock, its configuration, and checks before it is continued.

<workdir>/config.json    the resolved configuration, for people
<workdir>/log.jsonl      see `log.JsonLog`
<workdir>/progress.png   see `picture`; after each evaluation
<workdir>/checkpoints/   the latest steps and the best; those set aside as N.damaged or N.replaced
"""

import errno
import os
import platform
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from deeplab_jax import checkpoint
from deeplab_jax.config import Config, difference, flatten, to_json
from deeplab_jax.config.checks import as_text
from deeplab_jax.data import Dataset
from deeplab_jax.distributed import hosts
from deeplab_jax.errors import CheckpointError, ConfigError, DamagedError, clip
from deeplab_jax.utils.atomic import atomic_write
from deeplab_jax.utils.locks import try_lock
from deeplab_jax.utils.places import is_address


@contextmanager
def lock(workdir: Path) -> Iterator[Callable[[], None]]:
    """Locks `workdir`, created if missing, against other processes while the block runs.

    The system releases the lock when the process ends in any way. Without locks in the file system
    there is no protection. The first of several hosts holds the lock for all. In a bucket the lock
    is a `lease.Lease`, which can be lost: what is yielded raises ResourceError then.

    Raises:
      ConfigError: another process trains there, or `.lock` is a link or no regular file.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    if not hosts.is_primary():
        yield _keep
        return
    if is_address(workdir):
        from deeplab_jax.utils.buckets import Address
        from deeplab_jax.utils.lease import Lease

        with Lease(Address(workdir)) as lease:
            yield lease.check
        return
    with os.fdopen(_open_lock(workdir / ".lock"), "r+") as file:
        if not try_lock(file.fileno()):
            file.seek(0)
            what = f"another process trains here ({file.read()})"
            raise ConfigError(str(workdir), what, "wait for it, or choose another --workdir")
        file.seek(0)
        file.truncate()
        file.write(f"pid {os.getpid()} on {platform.node()}")
        file.flush()
        yield _keep


def _keep() -> None:
    """Does nothing: a file's lock cannot be lost."""


def _open_lock(path: Path) -> int:
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


def write_config(workdir: Path, config: Config) -> None:
    """Writes `config.json`, for people; an unusable place shows here, before anything compiles."""
    if hosts.is_primary():
        with atomic_write(workdir / "config.json") as file:
            file.write(f"{to_json(config)}\n".encode())


def read_run(workdir: Path, step: int, config: Config) -> checkpoint.Info:
    """Returns the description of a saved step that `config` may continue.

    Raises:
      ConfigError: `workdir` holds a run with another configuration, whose differences are named, or
        a checkpoint that is no run.
    """
    info = checkpoint.read_info(workdir, step)
    if info.kind != "run" or info.config is None:
        what = f"holds a checkpoint of kind {info.kind}, not a run"
        raise ConfigError(str(workdir), what, "choose another --workdir")
    changes = difference(info.config, config)
    if changes:
        own, names = flatten(info.config), [change.partition(":")[0] for change in changes]
        flags = " ".join(f"--config.{name}={as_text(own[name])}" for name in names)
        raise ConfigError(
            str(workdir),
            f"holds a run with another configuration ({'; '.join(changes)})",
            f"continue it with {flags}, or choose another --workdir",
        )
    return info


class Start(NamedTuple):
    """Where a run begins.

    Attributes:
      step: the step to restore; None for a new run.
      saved: its description; None for a new run.
      damaged: the newer steps that are not good, with what is wrong with each.
      replaced: the newer steps that the user goes back behind.
    """

    step: int | None = None
    saved: checkpoint.Info | None = None
    damaged: Mapping[int, str] = {}
    replaced: tuple[int, ...] = ()


def choose(
    workdir: Path,
    config: Config,
    step: int | str | None = None,
    restart: bool = False,
    damaged: Mapping[int, str] | None = None,
) -> Start:
    """Returns where a run begins: at the newest step whose description is good.

    Args:
      workdir: the work directory; nothing there changes.
      config: the run's configuration.
      step: the only step to begin at, a number, "latest" or "best".
      restart: begin anew where steps were saved and none is good; others still come first.
      damaged: steps that are known to be damaged, with what is wrong with each.

    Raises:
      CheckpointError: steps were saved, and none is good; or `step` is not there, or is damaged.
      ConfigError: the step is of another configuration.
    """
    found = checkpoint.finished(workdir)
    if step is not None:
        number = checkpoint.find_step(workdir, step)
        later = tuple(other for other in found if other > number)
        return Start(number, read_run(workdir, number, config), {}, later)
    reasons = dict(damaged or {})
    for number in reversed(found):
        if number in reasons:
            continue
        try:
            saved = read_run(workdir, number, config)
        except DamagedError as error:
            reasons[number] = error.what
            continue
        return Start(number, saved, reasons)
    before = checkpoint.set_aside_before(workdir)
    if not restart and (reasons or before):
        texts = [f"step {number} {clip(reason, 200)}" for number, reason in reasons.items()]
        texts += [f"{name} was set aside" for name in before]
        fix = f"put a copy into {checkpoint.folder_of(workdir)}, or begin anew with --restart"
        raise CheckpointError(str(workdir), f"no step is good: {'; '.join(texts)}", fix)
    return Start(damaged=reasons)


def check_same_data(workdir: Path, info: checkpoint.Info, dataset: Dataset) -> None:
    """Refuses to continue on other training data.

    Raises:
      ConfigError: samples were added, removed or renamed since the run began.
    """
    if not info.data:
        print(f"{workdir}: on which data it was trained is not known, so that is not compared")
    elif info.data != dataset.fingerprint():
        what = f"trained on {info.data}, and its training split is now {dataset.fingerprint()}"
        raise ConfigError(str(workdir), what, "restore the data, or choose another --workdir")
