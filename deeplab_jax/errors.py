"""Errors that a user can correct: one family of exceptions, each with its exit code and one line.

Every command renders these as `error: <where>: <what> - <fix>` (see `cli.run`).
"""

import errno
import os
import re
import shutil
import traceback
from collections.abc import Iterable
from pathlib import Path

_CLIPPED = 80  # characters of a quoted name


class DeepLabError(Exception):
    """An error that the user can correct.

    Attributes:
      where: the file, flag or configuration key at fault.
      what: the fault, with the value at hand and the accepted ones.
      fix: the remedy.
    """

    exit_code = 1

    def __init__(self, where: str, what: str, fix: str):
        super().__init__(where, what, fix)  # all three, so that it survives pickling from a worker
        self.where, self.what, self.fix = str(where), what, fix

    def __str__(self) -> str:
        return f"{self.where}: {self.what} - {self.fix}"


class ConfigError(DeepLabError, ValueError):
    """A flag, verb or configuration value that cannot be used."""

    exit_code = 2


class DataError(DeepLabError, ValueError):
    """An image, label, list or folder that cannot be used."""

    exit_code = 3


class CheckpointError(DeepLabError, ValueError):
    """A checkpoint or weights file that cannot be used."""

    exit_code = 4


class DamagedError(CheckpointError):
    """A step of a checkpoint that is not what was saved; others beside it may be good."""


class ResourceError(DeepLabError, RuntimeError):
    """Memory, disk space, a permission or a worker process is missing."""

    exit_code = 5


class ReaderError(ResourceError):
    """A thread or process that reads samples died or hangs; the training state is intact."""


class NumericError(DeepLabError, ArithmeticError):
    """Training produced a value that is not finite, or states that differ between devices."""

    exit_code = 6


class BadStepError(NumericError):
    """A training step's loss, gradient or new state is not finite, or its loss is a spike.

    Attributes:
      step: its number.
      reason: the numbers at fault, in words; the same whenever the step is repeated.
    """

    def __init__(self, where: str, what: str, fix: str, step: int, reason: str):
        super().__init__(where, what, fix)
        self.step, self.reason = step, reason


class Interrupted(DeepLabError):
    """Training was asked to stop and left; the text tells what was saved, or lost.

    Attributes:
      exit_code: 130 after Ctrl-C, 143 after SIGTERM, 141 when the reader of the output has gone;
        the same whatever was saved, because the command goes on where the last save is.
    """

    def __init__(self, where: str, what: str, fix: str, exit_code: int):
        super().__init__(where, what, fix)
        self.exit_code = exit_code


def as_resource_error(error: Exception) -> ResourceError | None:
    """Returns the `ResourceError` for an error about a file or memory; None for any other."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        if error.filename is None:  # printing does not say where
            return ResourceError("the output", "its disk is full", "free some space")
        where = str(error.filename)
        place = where if os.path.exists(where) else os.path.dirname(where) or "."  # may be a link
        free = shutil.disk_usage(place).free
        return ResourceError(where, f"the disk is full ({free} bytes free)", "free some space")
    if isinstance(error, OSError) and error.filename is not None:
        fix = "check that it exists, its owner and its mode, or choose another place"
        return ResourceError(str(error.filename), (error.strerror or str(error)).lower(), fix)
    if isinstance(error, MemoryError):
        fix = "lower config.train.batch_size or config.data.crop_size"
        return ResourceError("memory", f"is exhausted ({error})", fix)
    if (missing := missing_backend(error)) is not None:
        return missing
    if "RESOURCE_EXHAUSTED" in str(error):
        cause = str(error).split("RESOURCE_EXHAUSTED:")[-1].split("\n")[0].strip()
        fix = (
            "use fewer pixels at once, in training by config.train.gradient_accumulation,"
            " config.data.crop_size or config.model.remat; `deeplab train --dry-run` says what"
            " lowers the need"
        )
        return ResourceError("device", f"out of memory ({cause})", fix)
    return None


def missing_backend(error: BaseException) -> ResourceError | None:
    """Returns the error for devices of JAX_PLATFORMS that JAX did not find; None for another."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    frames = traceback.extract_tb(error.__traceback__)
    if not platforms or not any(frame.filename.endswith("xla_bridge.py") for frame in frames):
        return None
    fix = "unset JAX_PLATFORMS"
    for extra, names in (("gpu", ("cuda", "gpu")), ("tpu", ("tpu",))):
        if set(names) & set(platforms.split(",")):
            fix += f', or install its support: pip install -e ".[{extra}]"'
    what = "JAX finds no such device here, or cannot use it"
    return ResourceError(f"JAX_PLATFORMS={platforms}", what, fix)


def root_cause(error: BaseException) -> BaseException:
    """Returns the error that led to all others in the chain of causes."""
    while True:
        inner = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if isinstance(error, BaseExceptionGroup):
            inner = error.exceptions[0]
        if inner is None:
            return error
        error = inner


def describe_cause(error: BaseException) -> str:
    """Returns the root cause of an error in one line of at most 300 characters."""
    error = root_cause(error)
    code = re.search(r"os_error_code='(\d+)'", str(error))  # tensorstore's text is a paragraph
    if code is not None:
        return os.strerror(int(code[1]))
    lost = re.search(r"All \d+ retry attempts failed: [^\[\n]{1,200}", str(error))  # of a bucket
    if lost is not None:
        return lost[0].strip()
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyError):
        text = f"{text} is missing"
    return text if len(text) <= 300 else f"{text[:297]}..."


def check_folder(path: str | os.PathLike, flag: str) -> None:
    """Refuses a file where a folder is used or made (ResourceError, which names `flag`)."""
    if os.path.lexists(path) and not os.path.isdir(path):
        raise ResourceError(str(path), "is a file, not a folder", f"choose another {flag}")


def check_writable(path: Path, flag: str) -> None:
    """Refuses a file that could not be written, before the work that fills it.

    Raises:
      ResourceError: its folder is missing, or the file or folder is not writable; names `flag`.
    """
    fix = f"choose another {flag}, or create its folder"
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise ResourceError(str(path), what, fix)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ResourceError(str(path), "is not writable", f"choose another {flag}, or its mode")


def shorten(names: Iterable[object], limit: int = 10) -> str:
    """Returns up to `limit` names in sorted order, long ones cut, then the number of the rest."""
    texts = sorted(str(name) for name in names)
    rest = len(texts) - limit
    shown = ", ".join(clip(text) for text in texts[:limit])
    return shown + (f", ... ({rest} more)" if rest > 0 else "")


def clip(text: str, limit: int = _CLIPPED) -> str:
    """Returns foreign text for quoting in a message: at most `limit` characters, on one line."""
    if len(text) > limit:
        text = f"{text[: limit - 3]}..."
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
