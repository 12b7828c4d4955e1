"""A run's directory: who may write there, whether every host sees it, what it was begun with."""

import fcntl
import hashlib
import os
import platform
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import jax
from ml_collections import ConfigDict

from deeplab_jax import checkpoint, hosts
from deeplab_jax import config as config_lib
from deeplab_jax.data import Dataset
from deeplab_jax.errors import ConfigError, shorten
from deeplab_jax.whole_file import whole_file

_FREE_ON_HOSTS = ("data.root", "data.num_workers")  # what may differ between hosts
_PATIENCE = 10.0  # seconds until a new file must show on the other hosts


def is_free_on_hosts(argument: str) -> bool:
    """Tells whether an argument `--config.KEY=VALUE` may differ between hosts."""
    return argument.partition("=")[0].removeprefix("--config.") in _FREE_ON_HOSTS


def agree(config: ConfigDict, workdir: str | os.PathLike) -> Path:
    """Returns a run's directory, once the hosts agree on software and settings and all see it.

    Raises:
      ConfigError: hosts differ; a setting cannot be used; the directory is an address, or is not
        seen by all.
      ResourceError: a host cannot write there.
    """
    values = config_lib.flatten(config)
    facts = {f"config.{k}": v for k, v in values.items() if k not in _FREE_ON_HOSTS}
    hosts.compare(hosts.software() | facts)
    with hosts.together():
        config_lib.validate(config)
        path = as_path(workdir)
    check_shared(path)
    return path


def as_path(text: str | os.PathLike) -> Path:
    """Returns a directory's path.

    Raises:
      ConfigError: it is an address, such as of a bucket.
    """
    if match := re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(text)):
        raise ConfigError(
            str(text),
            f"is an address ({match[0]}), not a path",
            "mount the bucket (gcsfuse), or use NFS or Filestore, and give the path there",
        )
    return Path(text)


def check_shared(workdir: Path) -> None:
    """Refuses a directory that not every host sees and can write to; leaves nothing there.

    Raises:
      ConfigError: names the hosts that do not see it.
      ResourceError: one cannot write there.
    """
    if not hosts.are_several():
        return
    made: list[Path] = []
    token = workdir / f".seen-{hosts.exchange(uuid.uuid4().hex)[0]}"
    try:
        with hosts.together():
            if hosts.is_first():
                made = _make(workdir)
                token.touch()
        seen = hosts.exchange([hosts.name(), str(workdir.absolute()), _appears(token)])
        if all(is_seen for *_, is_seen in seen):
            with hosts.together():
                for folder in (workdir, checkpoint.folder_of(workdir)):
                    if folder.is_dir():
                        own = folder / f"{token.name}-{jax.process_index()}"
                        own.touch()
                        own.unlink()
    finally:
        if hosts.is_first():
            token.unlink(missing_ok=True)
            with suppress(OSError):  # another run began there
                for folder in reversed(made):
                    folder.rmdir()
    if blind := [host for host, _, is_seen in seen if not is_seen]:
        what = f"what {seen[0][0]} writes here is not seen by {shorten(blind)}"
        if len(paths := dict.fromkeys(path for _, path, _ in seen)) > 1:
            what += f"; it is {' and '.join([*paths][:3])} there"
        fix = "use an absolute path that every host mounts, such as of NFS, Filestore or gcsfuse"
        raise ConfigError(str(workdir), what, fix)


def _make(folder: Path) -> list[Path]:
    """Makes a folder; returns which ones were made for it, from the top."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _appears(path: Path) -> bool:
    end = time.monotonic() + _PATIENCE
    while not path.exists():
        if time.monotonic() > end:
            return False
        with suppress(OSError):
            os.listdir(path.parent)  # makes NFS look again
        time.sleep(0.1)
    return True


@contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Keeps other processes from training in `workdir` meanwhile; creates it.

    The system releases the lock when the process ends, however it does. Where the file system has
    no locks there is no protection. Of several hosts the first holds it for all.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    if not hosts.is_first():
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


def write_config(workdir: Path, config: ConfigDict) -> None:
    """Writes `config.json`, for people; what counts is in the checkpoints."""
    if hosts.is_first():
        with whole_file(workdir / "config.json") as file:
            file.write(f"{config_lib.to_json(config)}\n".encode())


def check_continuation(workdir: Path, config: ConfigDict, dataset: Dataset) -> None:
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
    elif info.data != fingerprint(dataset):
        what = f"trained on {info.data}, and {config.data.root} now has {fingerprint(dataset)}"
        raise ConfigError(str(workdir), what, "restore the data, or choose another --workdir")


def fingerprint(dataset: Dataset) -> str:
    """Returns a text that changes when samples are added, removed or renamed."""
    digest = hashlib.sha256("\n".join(dataset.ids).encode()).hexdigest()
    return f"{len(dataset)} images ({digest[:12]})"
