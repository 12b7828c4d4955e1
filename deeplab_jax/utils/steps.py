"""Where a checkpoint directory keeps its steps: `<directory>/checkpoints/<step>/`.

Importing this loads no JAX, so that a wrong path is told at once.
"""

import difflib
import hashlib
import json
import os
import re
import shlex
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from deeplab_jax.errors import (
    CheckpointError,
    ConfigError,
    DamagedError,
    ResourceError,
    describe_cause,
    shorten,
)
from deeplab_jax.utils.places import as_place, is_address

# Orbax's file about a step, written before the step appears; its `custom_metadata` is ours.
DESCRIPTION = "_CHECKPOINT_METADATA"
FORMAT = 2  # version of the description; raised when older readers would misunderstand it
UNVERIFIED = 1  # the format without checksums
ACCEPTED = (
    "give a work directory of `deeplab train`, or make one of PyTorch's weights: deeplab convert"
    " from-pytorch --checkpoint FILE --output DIR"
)
COMPLETE = "commit_success.txt"  # Orbax's last file of a step in a bucket
EXPORT = "export.json"  # of a folder that `deeplab export` wrote
_STEPS = "checkpoints"  # the folder that holds one folder per step
_WEIGHTS = (".pth", ".pt", ".safetensors", ".bin", ".ckpt")
_MAX_ENTRIES = 1000  # of a folder that is searched for checkpoints
_MAX_BYTES = 1 << 26  # of a description
_NUMBER = re.compile("0|[1-9][0-9]{0,17}")
_OLD_FIELDS = frozenset(
    ("format", "kind", "config", "class_names", "palette", "counters", "step", "metrics", "data")
)


def folder_of(path: str | os.PathLike) -> Path:
    """Returns the folder of a directory's steps."""
    return as_place(path) / _STEPS


def step_path(path: str | os.PathLike, step: int) -> Path:
    """Returns the folder of a step."""
    return folder_of(path).absolute() / str(step)


def finished(path: str | os.PathLike) -> list[int]:
    """Returns the steps that lie in a directory in order, damaged ones included.

    A step's name is its number as Python prints it; other names are no steps.
    """
    root = folder_of(path)
    try:
        entries = [entry for entry in root.iterdir() if _NUMBER.fullmatch(entry.name)]
        if is_address(root):
            entries = [entry for entry in entries if _is_complete(entry)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        what = f"cannot be listed: {describe_cause(error)}"
        raise ResourceError(str(root), what, "make it readable") from error
    return sorted(int(entry.name) for entry in entries)


def is_finished(path: str | os.PathLike, step: int) -> bool:
    """Tells whether a step lies in a directory, be it damaged; does not list the others."""
    where = step_path(path, step)
    return _is_complete(where) if is_address(where) else where.is_dir()


def latest_step(path: str | os.PathLike) -> int | None:
    """Returns the newest step, damaged or not, or None where there is none."""
    return max(finished(path), default=None)


def check(path: str | os.PathLike, step: int | str = "latest") -> list[int]:
    """Returns the finished steps of a checkpoint directory that has `step`.

    Args:
      path: the checkpoint directory.
      step: a number, "latest" or "best", for which any step is enough.

    Raises:
      CheckpointError: there is no such step, or no checkpoint; says what is there instead.
    """
    steps = finished(path)
    if not steps:
        raise _no_checkpoint(as_place(path))
    if step not in ("latest", "best") and str(step) not in map(str, steps):
        present = f"use one of: {', '.join(map(str, steps))}, latest, best"
        raise CheckpointError(str(path), f"there is no step {step}", present)
    return steps


def is_exported(path: str | os.PathLike) -> bool:
    """Tells whether a directory is one that `deeplab export` wrote, not a checkpoint."""
    return not is_address(path) and (as_place(path) / EXPORT).is_file()


def refuse_changes(path: str | os.PathLike, given: Sequence[str]) -> None:
    """Refuses what cannot change an exported folder, which is as it is: flags, or arguments.

    Raises:
      ConfigError: something is given.
    """
    if given:
        what = f"was written by `deeplab export`, so {given[0]} cannot change it"
        raise ConfigError(str(path), what, "leave that out, or export the checkpoint again")


def read_description(path: str | os.PathLike, step: int) -> dict[str, Any]:
    """Returns what a step's description says; its own checksum and the step's number are checked.

    Raises:
      DamagedError: the step is no folder, or its description is missing, damaged or another step's.
      ResourceError: a permission is missing.
    """
    where = step_path(path, step)
    try:
        return _read(where, step)
    except PermissionError as error:
        what = f"cannot be read: {describe_cause(error)}"
        raise ResourceError(str(where), what, "make it readable") from error
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise damaged(path, step, describe_cause(error)) from error


def damaged(path: str | os.PathLike, step: int, reason: str) -> DamagedError:
    """Returns the error about a damaged step, which names those with a good description."""
    others = [other for other in finished(path) if other != step and is_good(path, other)]
    fix = "no other step is good; use a copy of the directory"
    if others:
        fix = f"use --step {others[-1]}; good steps: {', '.join(map(str, others))}"
    return DamagedError(str(step_path(path, step)), f"is damaged: {reason}", fix)


def is_good(path: str | os.PathLike, step: int) -> bool:
    """Tells whether a step is a folder with a description of its own; reads no array."""
    try:
        _read(step_path(path, step), step)
    except (OSError, ValueError, RecursionError, MemoryError):
        return False
    return True


def with_digest(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a description with the SHA-256 of its canonical text."""
    return {**fields, "sha256": digest(fields)}


def digest(fields: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a description's canonical text, in hex."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _read(where: Path, step: int) -> dict[str, Any]:
    """Returns a step's description; ValueError or OSError says what is wrong with it."""
    _check_kinds(where)
    try:
        fields = json.loads((where / DESCRIPTION).read_bytes())["custom_metadata"]
    except RecursionError:
        raise ValueError("its description is nested too deep") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"its description is damaged ({describe_cause(error)})") from None
    if not isinstance(fields, dict):
        raise ValueError("its description is not of this program")
    if "sha256" in fields:
        own = {key: value for key, value in fields.items() if key != "sha256"}
        if fields["sha256"] != digest(own):
            raise ValueError("its description does not have the checksum that was saved with it")
        fields = own
    elif fields.get("format") != UNVERIFIED or not fields.keys() <= _OLD_FIELDS:
        raise ValueError("its description has no checksum")
    if fields.get("step") != step or isinstance(fields["step"], bool):
        raise ValueError(f"its description is that of step {fields.get('step')!r:.40}")
    return fields


def _check_kinds(where: Path) -> None:
    """Refuses what would not be read, or without end: links, pipes, endless files."""
    if is_address(where):
        _check_files(where)
        return
    folder = os.lstat(where)
    if not stat.S_ISDIR(folder.st_mode):
        is_link = stat.S_ISLNK(folder.st_mode)
        raise ValueError("it is a symbolic link" if is_link else "it is not a folder")
    try:
        file = os.lstat(where / DESCRIPTION)
    except FileNotFoundError:
        raise ValueError("it has no description") from None
    if not stat.S_ISREG(file.st_mode):
        raise ValueError("its description is not a regular file")
    if file.st_size > _MAX_BYTES:
        raise ValueError(f"its description has {file.st_size} bytes")


def _is_complete(where: Path) -> bool:
    """Tells it of a step in a bucket, where nothing can be renamed; so a last file says it."""
    return (where / COMPLETE).exists()


def _check_files(where: Path) -> None:
    """Refuses a step in a bucket that lacks a file, or whose description is no text of ours."""
    if not _is_complete(where):
        raise ValueError(f"its last file, {COMPLETE}, is missing")
    try:
        size = cast(Any, (where / DESCRIPTION).stat()).length
    except FileNotFoundError:
        raise ValueError("it has no description") from None
    if size > _MAX_BYTES:
        raise ValueError(f"its description has {size} bytes")


def convert_command(file: Path) -> str:
    """Returns the command that makes a checkpoint of a file of PyTorch weights."""
    output = shlex.quote(f"weights/{file.stem}")
    return f"deeplab convert from-pytorch --checkpoint {shlex.quote(str(file))} --output {output}"


def _no_checkpoint(path: Path) -> CheckpointError:
    where = str(path)
    if not path.exists():
        near = _near(path)
        fix = f"did you mean {near}?" if near else ACCEPTED
        return CheckpointError(where, "there is no such directory", fix)
    if not path.is_dir():
        what = "is a file, not a checkpoint directory"
        fix = f"convert it first: {convert_command(path)}"
        return CheckpointError(where, what, fix if path.suffix in _WEIGHTS else ACCEPTED)
    if path.name == _STEPS or path.parent.name == _STEPS:
        root = path.parent if path.name == _STEPS else path.parent.parent
        return CheckpointError(where, "lies inside a checkpoint directory", f"give {root}")
    if is_exported(path):
        what = "was written by `deeplab export`, and is no checkpoint"
        fix = f"measure it with deeplab verify {shlex.quote(where)} --data DIR, or give the run"
        return CheckpointError(where, what, fix)
    what = f"holds no finished checkpoint ({_STEPS}/<step> is missing)"
    if (path / "config.json").is_file():
        fix = "the command that began this run goes on with it until the first save"
        return CheckpointError(where, what, fix)
    entries = [entry for entry, _ in zip(path.iterdir(), range(_MAX_ENTRIES), strict=False)]
    if inner := sorted(entry for entry in entries if folder_of(entry).is_dir()):
        return CheckpointError(where, what, f"give one of those in it: {shorten(inner, 4)}")
    if files := sorted(entry for entry in entries if entry.suffix in _WEIGHTS):
        return CheckpointError(where, what, f"convert a file of it: {convert_command(files[0])}")
    return CheckpointError(where, what, ACCEPTED)


def _near(path: Path) -> Path | None:
    """Returns the checkpoint directory beside a missing one with the most similar name."""
    if not path.parent.is_dir():
        return None
    names = [
        entry.name for entry, _ in zip(path.parent.iterdir(), range(_MAX_ENTRIES), strict=False)
    ]
    for name in difflib.get_close_matches(path.name, names, 3):
        if folder_of(path.with_name(name)).is_dir():
            return path.with_name(name)
    return None
