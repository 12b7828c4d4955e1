"""Where a checkpoint directory keeps its steps: `<directory>/checkpoints/<step>/`.

Importing this loads no JAX, so that a wrong path is told at once.
"""

import difflib
import os
import shlex
from pathlib import Path

from deeplab_jax.errors import CheckpointError, ResourceError, describe_cause, shorten
from deeplab_jax.utils.places import as_place, is_address

ACCEPTED = (
    "give a work directory of `deeplab train`, or make one of PyTorch's weights: deeplab convert"
    " from-pytorch --checkpoint FILE --output DIR"
)
COMPLETE = "commit_success.txt"  # Orbax's last file of a step in a bucket
_STEPS = "checkpoints"  # the folder that holds one folder per step
_WEIGHTS = (".pth", ".pt", ".safetensors", ".bin", ".ckpt")
_MAX_ENTRIES = 1000  # of a folder that is searched for checkpoints


def folder_of(path: str | os.PathLike) -> Path:
    """Returns the folder of a directory's steps."""
    return as_place(path) / _STEPS


def step_path(path: str | os.PathLike, step: int) -> Path:
    """Returns the folder of a step."""
    return folder_of(path).absolute() / str(step)


def finished(path: str | os.PathLike) -> list[int]:
    """Returns the finished steps in order; names that are not numbers are unfinished saves."""
    root = folder_of(path)
    try:
        entries = [entry for entry in root.iterdir() if entry.name.isdecimal()]
        if is_address(root):  # where nothing can be renamed, a file says that a step is complete
            entries = [entry for entry in entries if (entry / COMPLETE).exists()]
        return sorted(int(entry.name) for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        what = f"cannot be listed: {describe_cause(error)}"
        raise ResourceError(str(root), what, "make it readable") from error


def latest_step(path: str | os.PathLike) -> int | None:
    """Returns the newest finished step, or None where there is none."""
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
