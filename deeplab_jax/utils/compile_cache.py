"""Compiled programs kept between processes, in a folder of the user's own.

Its files run as code, so a folder that others can write to is never used.
"""

import hashlib
import os
import platform
import stat
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from jaxlib import utils as jaxlib_utils

from deeplab_jax.utils.progress import PLAIN_SECONDS, clock, say

VARIABLE = "DEEPLAB_COMPILE_CACHE"
_OFF = ("off", "0", "no", "false")
_LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
_USUAL, _FATAL = 1, 3  # levels of XLA's messages; JAX sets the first where the user sets none


def enable() -> Path | None:
    """Switches JAX's cache on and returns its folder; None where it stays as it was.

    The folder is `deeplab_jax/xla` in the user's cache directory (`XDG_CACHE_HOME`), or what the
    environment variable `DEEPLAB_COMPILE_CACHE` names; "off" switches the cache off. An unusable
    folder is no error; if the variable names it, a line on standard error says so.
    """
    if jax.config.values["jax_compilation_cache_dir"]:
        return None
    folder = own_folder(is_told=True)
    if folder is None:
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


def own_folder(is_told: bool = False) -> Path | None:
    """Returns the folder of `enable`, made if missing; None where it is off or not usable.

    With `is_told`, a line on standard error says why a folder that the variable names is not used.
    """
    choice = os.environ.get(VARIABLE, "")
    if choice.lower() in _OFF:
        return None
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = Path(choice) if choice else home / "deeplab_jax" / "xla"
        return _make_private(folder.absolute() / _machine())
    except (OSError, RuntimeError) as error:  # no home, a full disk, another's folder
        if choice and is_told:
            print(f"compile cache {choice} is not used: {error}", file=sys.stderr)
        return None


def is_on() -> bool:
    """Tells whether compiled programs are kept, in whatever folder."""
    values = jax.config.values
    return bool(values["jax_enable_compilation_cache"] and values["jax_compilation_cache_dir"])


_compiled: tuple[float, float | None] = 0.0, None  # seconds of past blocks; start of one running
_REQUESTS, _HITS = (
    f"/jax/compilation_cache/{name}" for name in ("compile_requests_use_cache", "cache_hits")
)
_events: Counter[str] = Counter()  # JAX's own events of this process, by name


def _note(event: str, **_: str | int) -> None:
    _events[event] += 1


jax.monitoring.register_event_listener(_note)


@contextmanager
def compiling(what: str, is_told: bool = False) -> Iterator[None]:
    """Shows a clock while the block compiles `what`, and afterwards how long it took.

    Args:
      what: the program, such as "the training step".
      is_told: whether lines come at the start and at the end. Otherwise what takes less than ten
        seconds leaves no line.
    """
    global _compiled
    note = "cached afterwards" if is_on() else "not cached"
    past, began, before = _compiled[0], time.perf_counter(), _events.copy()
    _compiled = past, began
    try:
        with without_alarms(), clock(f"compiling {what}", f"once per shape; {note}", is_told):
            yield
    finally:
        took = time.perf_counter() - began
        _compiled = past + took, None
    if is_told or took >= PLAIN_SECONDS:
        hits, requests = (_events[name] - before[name] for name in (_HITS, _REQUESTS))
        is_cached = hits == requests > 0
        say(f"{what}: {'from the cache' if is_cached else 'compiled'} in {took:.1f} s")


def seconds() -> float:
    """Returns how long this process has been in `compiling` blocks so far."""
    past, began = _compiled
    return past if began is None else past + time.perf_counter() - began


@contextmanager
def without_alarms() -> Iterator[None]:
    """Silences XLA's alarms ("Very slow compile", "Constant folding is taking ...") in the block.

    They are logged as errors, and no flag of XLA's tells them apart. What ends a compilation is
    raised, and so is not lost. A level of the user's own stays, such as `TF_CPP_MIN_LOG_LEVEL=0`.
    """
    is_usual = os.environ.get(_LOG_LEVEL) == str(_USUAL)
    if not is_usual or jax.config.values["jax_logging_level"] not in (None, "NOTSET"):
        yield
        return
    jaxlib_utils.absl_set_min_log_level(_FATAL)
    try:
        yield
    finally:
        jaxlib_utils.absl_set_min_log_level(_USUAL)


def _make_private(folder: Path) -> Path:
    """Returns the folder, made with mode 0700 if missing; OSError if others can write there."""
    for path in [*reversed(folder.parents), folder]:
        path.mkdir(mode=0o700, exist_ok=True)  # another process may make it meanwhile
    for path in (folder.parent, folder):
        info = path.lstat()
        is_own = info.st_uid == os.getuid() and stat.S_ISDIR(info.st_mode)
        if not is_own or info.st_mode & 0o022:
            raise PermissionError(f"{path} is a link, or others own it or can write there")
    # Who can write to a folder above could put another one in its place; both before and after
    # links are followed.
    for path in dict.fromkeys([*folder.parents, *folder.resolve().parents]):
        info = path.stat()
        is_open = info.st_mode & 0o022 and not info.st_mode & stat.S_ISVTX  # /tmp is sticky
        if is_open or info.st_uid not in (0, os.getuid()):
            raise PermissionError(f"others own {path}, above it, or can write there")
    return folder


def _machine() -> str:
    """Returns a name for this kind of processor: programs of another kind would crash."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        features = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:12]}"
