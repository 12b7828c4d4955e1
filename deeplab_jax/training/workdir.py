"""A run's directory: who may write there, whether every host sees it, what it was begun with."""

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deeplab_jax import checkpoint
from deeplab_jax import config as config_lib
from deeplab_jax.config import Config
from deeplab_jax.data import Dataset
from deeplab_jax.distributed import hosts
from deeplab_jax.distributed.shared_dir import as_path, check_shared
from deeplab_jax.errors import ConfigError
from deeplab_jax.utils.atomic import atomic_write


def agree(config: Config, workdir: str | os.PathLike) -> Path:
    """Returns a run's directory, once the hosts agree on software and settings and all see it.

    Raises:
      ConfigError: hosts differ; a setting cannot be used; the directory is an address, or is not
        seen by all.
      ResourceError: a host cannot write there.
    """
    values = config_lib.flatten(config)
    facts = {f"config.{k}": v for k, v in values.items() if k not in hosts.LOCAL_FIELDS}
    hosts.require_equal(hosts.software() | facts)
    with hosts.sync_errors():
        config_lib.validate(config)
        path = as_path(workdir)
    check_shared(path, [checkpoint.folder_of(path)])
    return path


@contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Keeps other processes from training in `workdir` meanwhile; creates it.

    The system releases the lock when the process ends, however it does. Where the file system has
    no locks there is no protection. Of several hosts the first holds it for all.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    if not hosts.is_primary():
        yield
        return
    with (workdir / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            what = f"another process trains here ({file.read()})"
            fix = "wait for it, or choose another --workdir"
            raise ConfigError(str(workdir), what, fix) from None
        except OSError:
            pass
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {platform.node()}")
        file.flush()
        yield


def write_config(workdir: Path, config: Config) -> None:
    """Writes `config.json`, for people; what counts is in the checkpoints."""
    if hosts.is_primary():
        with atomic_write(workdir / "config.json") as file:
            file.write(f"{config_lib.to_json(config)}\n".encode())


def check_continuation(workdir: Path, config: Config, dataset: Dataset) -> None:
    """Refuses to continue what another configuration or other data began.

    Raises:
      ConfigError: `workdir` holds a run with another configuration (says where it differs), or
        something that is not a run.
    """
    info = checkpoint.read_info(workdir)
    if info.kind != "run" or info.config is None:
        what = f"holds a checkpoint of kind {info.kind}, not a run"
        raise ConfigError(str(workdir), what, "choose another --workdir")
    changes = config_lib.difference(info.config, config)
    if changes:
        raise ConfigError(
            str(workdir),
            f"holds a run with another configuration ({'; '.join(changes)})",
            "continue it with its own, or choose another --workdir",
        )
    if not info.data:
        print(f"{workdir}: on which data it was trained is not known, so that is not compared")
    elif info.data != dataset.fingerprint():
        what = f"trained on {info.data}, and {config.data.root} now has {dataset.fingerprint()}"
        raise ConfigError(str(workdir), what, "restore the data, or choose another --workdir")
