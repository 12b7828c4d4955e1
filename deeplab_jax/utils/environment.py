"""The software and the machine that a result was made with. Nothing here loads JAX."""

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from deeplab_jax import __version__
from deeplab_jax.utils import machine

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy",
             "opencv-python-headless", "pillow", "libtpu")  # fmt: skip
# Variables that change what is computed; others, which may hold secrets, are never written down.
_NAMED = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "CUDA_VISIBLE_DEVICES", "NPROC", "OMP_NUM_THREADS",
          "TF_CPP_MIN_LOG_LEVEL")  # fmt: skip
_PREFIXES = ("JAX_", "DEEPLAB_")
_SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL")


def packages(names: Sequence[str] = _PACKAGES) -> dict[str, str]:
    """Returns {name: version} of Python, this package and others; those not installed are left out.

    Some may be installed under another name, such as OpenCV.
    """
    found = {"python": platform.python_version(), "deeplab_jax": __version__}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def variables() -> dict[str, str]:
    """Returns the environment variables that change what is computed, without secrets."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if (name in _NAMED or name.startswith(_PREFIXES))
        and not any(word in name for word in _SECRET)
    }


def processor() -> dict[str, object]:
    """Returns the processor's model and the number of cores that this process may use."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(x.partition(": ")[2] for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {"model": model, "cores": machine.num_cores()}


def commit() -> str | None:
    """Returns the commit of this code's checkout, "-dirty" if changed; None where unknown."""
    file = Path(__file__)
    describe = ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    got = ""
    # `ls-files` fails in another repository around an installed package.
    for arguments in (("ls-files", "--error-unmatch", file.name), describe):
        try:
            found = subprocess.run(
                ["git", *arguments], cwd=file.parent, capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        if found.returncode:
            return None
        got = found.stdout
    return got.strip() or None


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def describe() -> dict[str, object]:
    """Returns what is known of this process, as JSON: software, machine, command, variables."""
    known = commit()
    git = known and {"commit": known.removesuffix("-dirty"), "dirty": known.endswith("-dirty")}
    return {
        "command": list(sys.argv),
        "folder": _folder(),
        "packages": packages(),
        "git": git,
        "platform": platform.platform(),
        "processor": processor(),
        "variables": variables(),
    }
