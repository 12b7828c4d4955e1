"""What the machine is, and its ceilings: matrix products and copies, by JAX and by PyTorch."""

import platform
import shutil
import subprocess
from typing import Any

import jax
import jax.numpy as jnp

from deeplab_jax.utils import environment
from evidence.networks import exact_torch, pytorch
from evidence.record import Box, Item, Result
from evidence.timing import Way, alternate

_QUERY = ("name", "driver_version", "vbios_version", "memory.total", "memory.used", "power.limit",
          "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "temperature.gpu",
          "persistence_mode", "ecc.mode.current", "mig.mode.current", "pcie.link.gen.current",
          "clocks_event_reasons.active")  # fmt: skip
_PACKAGES = ("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "flax", "optax", "numpy",
             "torch", "triton", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "nvidia-cublas",
             "nvidia-cublas-cu12")  # fmt: skip


def items(box: Box) -> list[Item]:
    """Returns the facts, and a ceiling each of products and of copies."""
    side = box.pick(8192, 256)
    return [
        Item("machine", lambda: _machine(box)),
        Item("matmul bfloat16", lambda: _matmul(box, side, "bfloat16", False)),
        Item("matmul float32", lambda: _matmul(box, side, "float32", False)),
        Item("matmul tf32", lambda: _matmul(box, side, "float32", True)),
        Item("copy", lambda: _copy(box, box.pick(2**31, 2**20))),
    ]


def _machine(box: Box) -> Result:
    torch = pytorch()

    device = jax.devices()[0]
    facts: Result = {
        "device": device.device_kind,
        "platform": device.platform,
        "processor": environment.processor(),
        "system": platform.platform(),
        "packages": environment.packages(_PACKAGES),
        "torch_cuda": torch.version.cuda,
        "torch_cudnn": torch.backends.cudnn.version(),
        "variables": environment.variables(),
        "commit": environment.commit(),
        "nvidia_smi": _nvidia_smi(),
    }
    stats = device.memory_stats()
    facts["memory_bytes"] = (stats or {}).get("bytes_limit")
    return facts | {"line": f"{device.device_kind}, jax {jax.__version__}"}


def _nvidia_smi() -> dict[str, str]:
    """Returns what the driver says, by field; fields that it does not know are left out."""
    if shutil.which("nvidia-smi") is None:
        return {}
    found = {}
    for name in (*_QUERY, "compute_apps"):
        query = f"--query-gpu={name}" if name != "compute_apps" else "--query-compute-apps=pid"
        got = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True
        )
        if got.returncode == 0 and got.stdout.strip():
            found[name] = " ".join(got.stdout.split())
    return found


def _matmul(box: Box, side: int, dtype: str, is_tf32: bool) -> Result:
    torch = pytorch()

    exact_torch(torch)
    torch.backends.cuda.matmul.allow_tf32 = is_tf32
    high = jax.lax.Precision.HIGHEST
    precision = jax.lax.Precision.DEFAULT if is_tf32 or dtype == "bfloat16" else high
    a = jax.random.normal(jax.random.key(0), (side, side), jnp.dtype(dtype))
    product = jax.jit(lambda a: jnp.matmul(a, a, precision=precision))
    b = torch.from_dlpack(a)
    times = alternate(
        box,
        {
            "jax": Way(lambda: product(a), jax.block_until_ready),
            "torch": Way(lambda: b @ b, torch_wait(torch)),
        },
    )
    rates = {name: 2 * side**3 / way["median"] for name, way in times.items()}
    line = ", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in rates.items())
    return {"side": side, "times": times, "flops_per_second": rates, "line": line}


def _copy(box: Box, size: int) -> Result:
    """Times reading and writing an array once, as y = x + 1 does."""
    torch = pytorch()

    x = jnp.zeros((size // 4,), jnp.float32)
    add = jax.jit(lambda x: x + 1)
    y = torch.from_dlpack(x)
    times = alternate(
        box,
        {
            "jax": Way(lambda: add(x), jax.block_until_ready),
            "torch": Way(lambda: y + 1, torch_wait(torch)),
        },
    )
    rates = {name: 2 * size / way["median"] for name, way in times.items()}
    line = ", ".join(f"{name} {rate / 1e9:.4g} GB/s" for name, rate in rates.items())
    return {"bytes": size, "times": times, "bytes_per_second": rates, "line": line}


def torch_wait(torch: Any) -> Any:
    """Returns what waits for all that PyTorch has begun."""
    return lambda _: torch.cuda.synchronize() if torch.cuda.is_available() else None
