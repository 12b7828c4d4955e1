"""A run's work directory: its lock, its configuration, and checks before it is continued.

<workdir>/config.json    the resolved configuration, for people
<workdir>/log.jsonl      see `log.JsonLog`
<workdir>/progress.png   see `picture`; after each evaluation
<workdir>/checkpoints/   the latest and the best step
"""

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deeplab_jax import checkpoint
from deeplab_jax.config import Config, difference, flatten, to_json
from deeplab_jax.config.checks import as_text
from deeplab_jax.data import Dataset
from deeplab_jax.distributed import hosts
from deeplab_jax.errors import ConfigError
from deeplab_jax.utils.atomic import atomic_write
from deeplab_jax.utils.locks import try_lock
from deeplab_jax.utils.places import is_address


@contextmanager
def lock(workdir: Path) -> Iterator[Callable[[], None]]:
    """Locks `workdir`, created if missing, against other processes while the block runs.

    The system releases the lock when the process ends in any way. Without locks in the file system
    there is no protection. The first of several hosts holds the lock for all. In a bucket the lock
    is a `lease.Lease`, which can be lost: what is yielded raises ResourceError then.
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
    with (workdir / ".lock").open("a+") as file:
        if not try_lock(file.fileno()):
            file.seek(0)
            what = f"another process trains here ({file.read()})"
            raise ConfigError(str(workdir), what, "wait for it, or choose another --workdir")
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {platform.node()}")
        file.flush()
        yield _keep


def _keep() -> None:
    """Does nothing: a file's lock cannot be lost."""


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
