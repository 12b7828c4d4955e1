"""This machine: cores, accelerators by their device files, speed of its processor, its allocator.

Nothing here loads JAX.
"""

import ctypes
import glob
import os
import sys
import time
from importlib.util import find_spec

_PLUGINS = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")

# Sides of matrices and how often each is multiplied. The large one fills many cores. The small one
# takes less than a millisecond, so that one of many is undisturbed beside other work: there threads
# wait for each other, and the large one's best was a tenth of the small one's (two cores, load 13).
_PRODUCTS = {768: 10, 384: 60}
_PRODUCT_SECONDS = 1.0  # of a side, about
# A training step's speed over a matrix product's, low and high. Seen on two cores of an AMD EPYC,
# 2026-11-30 (docs/performance.md): 0.55 and 0.76 for ResNet-18, 0.64 for ResNet-50 at output stride
# 16, 0.85 at 8. The low end leaves room for machines with slower memory.
STEP_SHARE = (0.4, 0.85)

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # of mallopt, from glibc's malloc.h


def keep_freed_memory() -> None:
    """Makes the C library keep large blocks that are freed, for this process's next allocations.

    XLA's processor client allocates the temporaries of a program anew in every call. As blocks of
    the system's they are mapped page by page each time, a tenth of a training step. Kept, they stay
    mapped; the process holds its largest demand until it ends.

    To be called by a process of our own before it starts threads, as threads with arenas of their
    own go on mapping. Changes nothing beside an accelerator, where the user tunes the allocator, or
    where it is not glibc's.
    """
    is_tuned = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if is_tuned or not sys.platform.startswith("linux") or has_accelerator():
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def num_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tpu_chips() -> list[str]:
    """Returns the device files that TPU chips have; other hardware may have such files too."""
    return glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")


def has_accelerator() -> bool:
    """Tells whether there is a GPU or TPU with JAX's support for it.

    False where `JAX_PLATFORMS=cpu` hides it.
    """
    if os.environ.get("JAX_PLATFORMS", "").lower() == "cpu":
        return False
    has_gpu = bool(glob.glob("/dev/nvidia[0-9]*") or os.path.exists("/dev/dxg"))  # dxg: WSL
    return (has_gpu and any(map(_is_installed, _PLUGINS))) or (
        bool(tpu_chips()) and _is_installed("libtpu")
    )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # nor is its package
        return False


def product_speed() -> float:
    """Returns FLOP/s of a float32 matrix product on all cores, the best of several."""
    import numpy as np  # here: what the other functions serve starts at once

    best = 0.0
    for side, repeats in _PRODUCTS.items():
        matrix = np.ones((side, side), np.float32)
        end = time.perf_counter() + _PRODUCT_SECONDS
        for _ in range(repeats):
            began = time.perf_counter()
            np.dot(matrix, matrix)
            done = time.perf_counter()
            best = max(best, 2 * side**3 / (done - began))
            if done > end:
                break
    return best


def describe(low: float, high: float) -> str:
    """Returns a range of seconds in words, such as "1.2 to 3.6 h"; equal ends give one number."""
    unit, name = next(((u, n) for u, n in ((3600, "h"), (60, "min")) if high >= 1.5 * u), (1, "s"))
    first, last = (_short(value / unit) for value in (low, high))
    return f"{first} {name}" if first == last else f"{first} to {last} {name}"


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"
