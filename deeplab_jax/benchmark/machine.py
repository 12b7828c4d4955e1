"""The machine's ceiling of matrix products, and the memory that a call takes."""

import ctypes
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from deeplab_jax.utils import machine

_SIDES = {"cpu": (1024, 2048)}  # of square matrices
_LARGE_SIDES = (4096, 8192)
_REPEATS = 3
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_PEAK = "5"  # written to `clear_refs`: the peak becomes what is resident
HOW = "weights and state, and the growth of the peak resident memory in a step"


def threads() -> int:
    """Returns the number of threads that XLA computes with on a processor, and PyTorch is given."""
    wanted = os.environ.get("NPROC", "")
    return min(int(wanted), machine.num_cores()) if wanted.isdigit() else machine.num_cores()


def ceiling(dtype: str) -> dict[str, Any]:
    """Returns the most FLOP/s of a few square matrix products on one device, and whose it is.

    Products of float32 have full precision, as in the network. On a processor NumPy's product
    counts too.
    """
    device = jax.local_devices()[0]
    best: dict[str, Any] = {"flops_per_second": 0.0, "by": ""}
    if device.platform == "cpu" and dtype == "float32":
        best = {"flops_per_second": machine.product_speed(), "by": "NumPy"}
    precision = jax.lax.Precision.DEFAULT if dtype == "bfloat16" else jax.lax.Precision.HIGHEST
    product = jax.jit(partial(jnp.dot, precision=precision))
    for side in _SIDES.get(device.platform, _LARGE_SIDES):
        matrix = jax.device_put(jnp.ones((side, side), dtype), device)
        product(matrix, matrix).block_until_ready()
        for _ in range(_REPEATS):
            began = time.perf_counter()
            product(matrix, matrix).block_until_ready()
            speed = 2 * side**3 / (time.perf_counter() - began)
            if speed > best["flops_per_second"]:
                best = {"flops_per_second": speed, "by": f"JAX, {side} x {side}"}
    return best


def growth(run: Callable[[], Any]) -> int | None:
    """Returns by how many bytes the process's resident memory peaks above now while `run` runs.

    None where the system does not tell.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed is given back first
    try:
        _RESET.write_text(_PEAK)
        before = _resident("VmRSS")
        run()
        return max(_resident("VmHWM") - before, 0)
    except (OSError, StopIteration, ValueError):
        return None


class Others:
    """Meter of the time that other programs take of the cores that this process may use."""

    def __init__(self) -> None:
        """Begins."""
        self._began = self._read()

    def share(self) -> float | None:
        """Returns their share of all cores' time since the beginning; None where not known."""
        before, now = self._began, self._read()
        if before is None or now is None or now[1] <= before[1]:
            return None
        busy, total, own = (b - a for a, b in zip(before, now, strict=True))
        return max(0.0, (busy - own) / total)

    def _read(self) -> tuple[float, float, float] | None:
        """Returns seconds: of the cores when busy, of the cores in all, of this process."""
        try:
            lines = Path("/proc/stat").read_text().splitlines()
            names = {f"cpu{core}" for core in os.sched_getaffinity(0)}
            rows = [line.split() for line in lines if line.split()[0] in names]
            ticks = [[int(word) for word in row[1:9]] for row in rows]  # up to "steal"
        except (OSError, AttributeError, ValueError, IndexError):
            return None
        total, idle = sum(map(sum, ticks)), sum(row[3] + row[4] for row in ticks)
        hertz = os.sysconf("SC_CLK_TCK")
        return (total - idle) / hertz, total / hertz, time.process_time()


def peak_resident() -> int | None:
    """Returns the most bytes that were resident so far, or since `growth` was last called."""
    try:
        return _resident("VmHWM")
    except (OSError, StopIteration, ValueError):
        return None


def _resident(field: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])
