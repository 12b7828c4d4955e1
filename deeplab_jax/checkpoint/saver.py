"""Saves the steps of a run in the background; older ones are removed when the new one is safe."""

import contextlib
import dataclasses
import errno
import os
from collections.abc import Mapping
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from deeplab_jax.checkpoint import bucket, description, folder
from deeplab_jax.checkpoint.description import Info
from deeplab_jax.distributed import hosts
from deeplab_jax.errors import CheckpointError, ResourceError, describe_cause, root_cause
from deeplab_jax.utils import steps
from deeplab_jax.utils.places import as_place, is_address
from deeplab_jax.utils.trees import PyTree

WRITE_SECONDS = 300  # that hosts wait for each other's writes


class Saver:
    """Saves the steps of one run; keeps the latest ones and the best.

    The best step has the highest finite `Info.score`, the later of equals; a step saved without
    metrics is never the best. Older ones are removed when a newer one is on the disk with
    all its files and folders. Use it as a context manager: leaving waits for the last save and
    raises what went wrong with it.

    Args:
      path: the work directory, created if missing. Remains of a killed save are removed.
      keep: number of latest steps to keep, at least 1; the best is kept beside them.

    Raises:
      ConfigError: its folder of steps is a symbolic link.
      ResourceError: the directory cannot be written.
    """

    def __init__(self, path: str | os.PathLike, keep: int = 2):
        self._path, self._keep = as_place(path).absolute(), keep
        bucket.enable(self._path)
        self._bytes = 0  # of the last save
        self._pending: tuple[int, Any] | None = None  # a save under way: its step, Orbax's response
        root = steps.folder_of(self._path)
        with hosts.sync_errors():  # no host saves before the first one has cleaned
            folder.check_link(self._path)
            try:
                root.mkdir(parents=True, exist_ok=True)
                folder.check_writable(root)  # before training
                if hosts.is_primary():
                    folder.clean(self._path)
                latest = steps.latest_step(self._path)
            except OSError as error:
                raise self._failure(error) from error
        self._latest: int | None = hosts.all_gather(latest)[0]  # others may see an older list

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def save(
        self,
        step: int,
        items: Mapping[str, PyTree],
        info: Info,
        metrics: dict[str, float] | None = None,
    ) -> bool:
        """Starts to save a step and returns once the arrays may be overwritten or donated.

        Waits for an earlier save still under way.

        Args:
          step: optimiser steps done, greater than that of every step saved before.
          items: pytree of arrays by item name.
          info: the description; `step` and `metrics` replace its own.
          metrics: scores of an evaluation of exactly these items.

        Returns:
          False if this step was saved already, in which case nothing is done, else True.

        Raises:
          ResourceError: this save, or the one before it, failed; steps finished earlier are intact.
          CheckpointError: the directory holds a later step.
        """
        latest = self._pending[0] if self._pending else self._latest
        if latest is not None and step <= latest:
            if step == latest:
                return False
            what = f"holds step {latest}, so step {step} cannot be saved behind it"
            raise CheckpointError(str(self._path), what, "use a new work directory")
        # Orbax refuses an item without arrays, such as the state of plain SGD.
        items = {name: item for name, item in items.items() if jax.tree.leaves(item)}
        written = description.write(dataclasses.replace(info, step=step, metrics=metrics), items)
        self._bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(items))
        self.wait()  # each host tells its own reason
        with hosts.sync_errors():  # otherwise hosts would wait for one that cannot write
            if hosts.is_primary():
                self._check_room()
        try:
            # Folders at once: where one cannot be made, threads would wait for it until the end.
            options = ocp.options.AsyncOptions(
                timeout_secs=WRITE_SECONDS, create_directories_asynchronously=False
            )
            with ocp.Context(async_options=options):
                where = steps.step_path(self._path, step)
                response = ocp.save_checkpointables_async(where, items, custom_metadata=written)
            self._pending = step, response
        except Exception as error:
            raise self._failure(error) from error
        return True

    def wait(self) -> None:
        """Returns once the last save is on the disk, and older steps that are not kept are removed.

        Raises:
          ResourceError: it failed.
        """
        if self._pending is None:
            return
        (step, response), self._pending = self._pending, None
        try:
            response.result()
            if hosts.is_primary():
                folder.sync_step(self._path, step)
                self._remove_older(step)
            self._latest = step
        except Exception as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Waits like `wait`."""
        self.wait()

    def _remove_older(self, latest: int) -> None:
        """Removes steps that are neither among the latest nor the best."""
        found = {}
        for step in steps.finished(self._path):
            with contextlib.suppress(CheckpointError):  # others stay, and do not count
                info = description.read(self._path, step).info
                found[step] = info.score
        if latest not in found:
            raise OSError(errno.EIO, f"step {latest} is not on the disk as it was saved")
        kept = {*sorted(found)[-self._keep :], description.best(found)}
        for step in found.keys() - kept:
            folder.remove(self._path, step)

    def _check_room(self) -> None:
        free = folder.free_bytes(self._path)
        if free is not None and free < self._bytes:
            raise self._failure(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    def _failure(self, error: Exception) -> ResourceError:
        if (lost := hosts.lost_host(self._path, root_cause(error))) is not None:
            return lost
        what = f"cannot save a checkpoint: {describe_cause(error)}"
        if is_address(self._path):
            fix = "check the connection, the credentials and the bucket"
            return ResourceError(str(self._path), what, f"{fix}; steps saved before are intact")
        if self._bytes and self._path.exists():
            free = folder.free_bytes(self._path) or 0
            what += f" (at most {self._bytes / 1e6:.1f} MB to write, {free / 1e6:.1f} MB free)"
        fix = "make room or choose another directory; steps saved before are intact"
        return ResourceError(str(self._path), what, fix)


def save_once(path: str | os.PathLike, items: Mapping[str, PyTree], info: Info) -> None:
    """Saves step `info.step` in a directory without checkpoints; returns when it is complete.

    Raises:
      CheckpointError: the directory holds a checkpoint.
      ResourceError: it cannot be written.
    """
    if (latest := steps.latest_step(path)) is not None:
        what = f"already holds a checkpoint (step {latest})"
        raise CheckpointError(str(path), what, "choose another directory, or remove this one")
    with Saver(path) as saver:
        saver.save(info.step, items, info, info.metrics)
