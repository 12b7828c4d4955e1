"""Compiled programs kept between processes, in a folder of the user's own.

What lies there is run as code, so a folder that others can write is never used.
"""

import hashlib
import os
import platform
import stat
from pathlib import Path

import jax

VARIABLE = "DEEPLAB_COMPILE_CACHE"


def enable() -> Path | None:
    """Switches JAX's cache on and returns its folder; None where it stays as it was.

    The folder is `deeplab_jax/xla` in the user's cache directory (`XDG_CACHE_HOME`), or what the
    environment variable `DEEPLAB_COMPILE_CACHE` names; "off" switches this off.
    """
    choice = os.environ.get(VARIABLE, "")
    if choice == "off" or jax.config.values["jax_compilation_cache_dir"]:
        return None
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = Path(choice) if choice else home / "deeplab_jax" / "xla"
    folder = folder / _machine()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in (folder.parent, folder):
            path.chmod(0o700)
        if any(not _is_private(path) for path in (folder.parent, folder)):
            return None
    except OSError:  # no home, a full disk, another's folder: a cache is not worth an error
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


def _is_private(path: Path) -> bool:
    info = path.lstat()
    return info.st_uid == os.getuid() and stat.S_ISDIR(info.st_mode) and not info.st_mode & 0o077


def _machine() -> str:
    """Returns a name of this processor: programs for another's instructions would crash."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        features = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:12]}"
