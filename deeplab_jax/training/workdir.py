"""A run's work directory: its lock, its configuration, and checks before it is continued.

<workdir>/config.json    the resolved configuration, for people
<workdir>/env.json       what each start of the run was made with, see `setup.start_entry`
<workdir>/log.jsonl      see `log.JsonLog`
<workdir>/metrics.csv    the same numbers, see `log.points`; after each save
<workdir>/progress.png   see `picture`; after each evaluation
<workdir>/tensorboard/   event files, and wandb/ and wandb.json, where `config.log` asks for them
<workdir>/checkpoints/   the latest steps and the best; those set aside as N.damaged or N.replaced
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from deeplab_jax import checkpoint
from deeplab_jax.config import Config, difference, flatten, to_json
from deeplab_jax.config.checks import as_text
from deeplab_jax.data import Dataset
from deeplab_jax.distributed import hosts
from deeplab_jax.errors import CheckpointError, ConfigError, DamagedError, clip, describe_cause
from deeplab_jax.utils.atomic import atomic_write, remove_stale
from deeplab_jax.utils.locks import hold
from deeplab_jax.utils.places import is_address

ENV = "env.json"


@contextmanager
def lock(workdir: Path) -> Iterator[Callable[[], None]]:
    """Locks `workdir`, created if missing, against other processes while the block runs.

    The system releases the lock when the process ends in any way. The first of several hosts holds
    it for all. What is yielded raises ResourceError where the lock was lost; see `locks.hold`.

    Raises:
      ConfigError: another process trains there, or `.lock` is a link or no regular file.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    if not hosts.is_primary():
        yield lambda: None
        return
    with hold(workdir) as check:
        if not is_address(workdir):
            remove_stale(workdir)
        yield check


def write_config(workdir: Path, config: Config) -> None:
    """Writes `config.json`, for people; an unusable place shows here, before anything compiles."""
    if hosts.is_primary():
        with atomic_write(workdir / "config.json") as file:
            file.write(f"{to_json(config)}\n".encode())


def add_start(workdir: Path, entry: dict[str, Any]) -> None:
    """Adds an entry, of `setup.start_entry`, to the list "starts" of `env.json`.

    A file that cannot be read is replaced, with a warning.
    """
    path, starts = workdir / ENV, []
    if path.exists():
        try:
            starts = read_starts(path)
        except ConfigError as error:
            print(f"warning: {error.where}: {error.what}; earlier starts are lost", flush=True)
    with atomic_write(path) as file:
        file.write(f"{json.dumps({'starts': [*starts, entry]}, indent=1)}\n".encode())


def read_starts(path: Path) -> list[dict[str, Any]]:
    """Returns the entries of an `env.json`, the first start first.

    Raises:
      ConfigError: it is not there, or not what a run writes.
    """
    try:
        starts = json.loads(path.read_text("utf-8"))["starts"]
        if starts and all(isinstance(entry["began"], int | float) for entry in starts):
            return list(starts)
        what = "is not what a run writes"
    except FileNotFoundError:
        what = "is not there: the run is of an older version, or has not started"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"cannot be read ({describe_cause(error)})"
    raise ConfigError(str(path), what, "use a run that this version of deeplab_jax began")


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


def check_same_functions(
    workdir: Path, before: Mapping[str, str], functions: Mapping[str, str]
) -> None:
    """Refuses to continue with other transforms of the user's.

    `before` and `functions` hold their fingerprints by name, of the run and of now.

    Raises:
      ConfigError: one was added or dropped, or its source has changed since the run began.
    """
    for name in dict.fromkeys([*before, *functions]):
        old, new = before.get(name, "no such transform"), functions.get(name, "no such transform")
        if old != new:
            what = f"trained with the transform {name} of source {old or 'unknown'}, and it is now"
            fix = "restore the file that defines it, or choose another --workdir, where"
            fix += f" --config.init.checkpoint={workdir} begins with its weights"
            raise ConfigError(str(workdir), f"{what} {new or 'unknown'}", fix)
