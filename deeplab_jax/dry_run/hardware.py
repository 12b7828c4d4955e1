"""Hardware that a training step is compiled for on a machine without it.

The compilers of TPU slices and NVIDIA GPUs run wherever their plugins are installed. They tell
memory, communication and kernels, but no speed. JAX is imported inside functions: it must not start
before `set_compiler_environment`.
"""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from math import prod
from typing import TYPE_CHECKING

from deeplab_jax.errors import ConfigError, ResourceError

if TYPE_CHECKING:
    import jax

GIB = 2**30
_EXAMPLES = "cpu:8, v5e:4x4, v5p:4x4x4, h200, h100:8"
_MAX_CPUS = 256

# Memory of a chip in GiB, and the shapes of slices: those named, or X x Y x Z.
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_TPUS: dict[str, tuple[int, tuple[str, ...]]] = {
    "v4": (32, ()), "v5e": (16, _FLAT), "v5p": (95, ()), "v6e": (32, _FLAT)
}  # fmt: skip

# XLA's description of a GPU: name, bytes of memory, bytes per second, and what the two share.
# Source: XLA's own target specifications (H100: the SXM card); they agree with NVIDIA's figures.
_GPUS = {
    "h200": ("NVIDIA H200", 151_397_597_184, 4_800_000_000_000),
    "h100": ("NVIDIA H100 80GB HBM3", 84_942_979_072, 3_352_320_000_000),
}
# Peak FLOP/s of a device in bfloat16 and in float32 without TF32; vendors' data sheets. On a TPU a
# float32 product takes six passes in bfloat16.
_PEAKS = {
    "h200": (989e12, 67e12), "h100": (989e12, 67e12), "v4": (275e12, 275e12 / 6),
    "v5e": (197e12, 197e12 / 6), "v5p": (459e12, 459e12 / 6), "v6e": (918e12, 918e12 / 6),
}  # fmt: skip
# Bytes per second of a chip's memory; vendors' data sheets.
_MEMORY_SPEEDS = {"v4": 1228e9, "v5e": 819e9, "v5p": 2765e9, "v6e": 1640e9}
# What JAX calls devices: the first text that a name begins with counts.
_KINDS = {
    "NVIDIA H200": "h200", "NVIDIA H100 80GB HBM3": "h100", "TPU v4 lite": "", "TPU v4": "v4",
    "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v6": "v6e",
}  # fmt: skip
_GPU_DESCRIPTION = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 l2_cache_size: 52428800
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  device_memory_size: {memory} memory_bandwidth: {bandwidth}
  cuda_compute_capability {{ major: 9 }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""


@dataclass(frozen=True)
class Hardware:
    """Devices of one kind."""

    name: str  # as in `--hardware`, such as "v5e:4x4"; for local devices such as "2 x cpu"
    kind: str  # "cpu", "tpu" or "gpu"
    num_devices: int  # chips of the slice, GPUs, or virtual devices of a processor
    memory_bytes: int | None  # memory of one device; None for processors, which share the machine's


def parse_hardware(text: str) -> Hardware:
    """Returns the hardware with a name such as "v5e:4x4", "h200:8" or "cpu:8".

    Raises:
      ConfigError: the name is unknown.
    """
    family, _, size = text.partition(":")
    if family in _TPUS:
        return _parse_tpu(text, family, size)
    count = int(size) if re.fullmatch(r"[1-9]\d{0,4}", size) else 0 if size else 1
    if family in _GPUS:
        is_good = 1 <= count <= 8 or (count > 8 and count % 8 == 0)
        _require(is_good, text, "1 to 8 GPUs, or a multiple of 8", f"{family}:8")
        return Hardware(text, "gpu", count, _GPUS[family][1])
    _require(family == "cpu", text, f"one of {', '.join(('cpu', *_TPUS, *_GPUS))}", _EXAMPLES)
    _require(1 <= count <= _MAX_CPUS, text, f"1 to {_MAX_CPUS} virtual devices", "cpu:8")
    return Hardware(text, "cpu", count, None)


def _parse_tpu(text: str, family: str, size: str) -> Hardware:
    memory, shapes = _TPUS[family]
    if shapes:
        accepted, example = f"a slice of {', '.join(shapes)}", f"{family}:4x4"
        _require(size in shapes, text, accepted, example)
    else:
        accepted = "a slice XxYxZ whose sides are 2 or a multiple of 4 (the last may be 1)"
        _require(_is_box(size), text, accepted, f"{family}:4x4x4")
    return Hardware(text, "tpu", prod(_sides(size)), memory * GIB)


def _is_box(size: str) -> bool:
    if not re.fullmatch(r"[1-9]\d?x[1-9]\d?x[1-9]\d?", size):
        return False
    *sides, last = _sides(size)
    return all(side == 2 or side % 4 == 0 for side in sides) and (last in (1, 2) or last % 4 == 0)


def _require(is_good: bool, text: str, accepted: str, example: str) -> None:
    if not is_good:
        what = f"{text!r} is no known hardware: it must be {accepted}"
        raise ConfigError("--hardware", what, f"use one such as {example}")


def _sides(size: str) -> list[int]:
    return [int(side) for side in size.split("x")]


def peak_speed(hardware: Hardware, dtype: str) -> float | None:
    """Returns the peak FLOP/s of one device in a type of activations; None where unknown."""
    return _peak(hardware.name.partition(":")[0], dtype)


def peak_of_device(kind: str, dtype: str) -> float | None:
    """Returns the peak FLOP/s of a device by JAX's name of its kind; None where unknown."""
    return _peak(next((name for text, name in _KINDS.items() if kind.startswith(text)), ""), dtype)


def _peak(name: str, dtype: str) -> float | None:
    peaks = _PEAKS.get(name)
    return peaks[dtype != "bfloat16"] if peaks and dtype != "float64" else None


def memory_speed(hardware: Hardware) -> float | None:
    """Returns the bytes per second of one device's memory; None where unknown."""
    name = hardware.name.partition(":")[0]
    return _GPUS[name][2] if name in _GPUS else _MEMORY_SPEEDS.get(name)


def set_compiler_environment(hardware: Hardware) -> None:
    """Sets the variables that JAX and the compilers read; call it before JAX is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # a real accelerator is left alone
    if hardware.kind == "tpu":
        os.environ.update(
            TPU_SKIP_MDS_QUERY="1",  # else libtpu waits for a metadata server
            TPU_WORKER_HOSTNAMES="localhost",  # else it complains of their absence
            TPU_ACCELERATOR_TYPE="v5litepod-16",  # likewise; the topology says what counts
            ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # no chip is held, so there is nothing to lock
        )


def has_compiler(hardware: Hardware) -> bool:
    """Tells whether the compiler for the hardware is installed."""
    if hardware.kind == "tpu":
        return find_spec("libtpu") is not None
    with suppress(ModuleNotFoundError):  # no jax_plugins at all
        plugins = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")
        return hardware.kind == "cpu" or any(map(find_spec, plugins))
    return False


def compile_devices(hardware: Hardware) -> Sequence["jax.Device"]:
    """Returns devices to compile for; TPUs and GPUs among them cannot execute.

    Raises:
      ResourceError: the compiler is not installed, or JAX has started with too few processors.
      ConfigError: the slice is unknown to the TPU's compiler.
    """
    if not has_compiler(hardware):
        what = f"the {hardware.kind.upper()} compiler is missing"
        fix = f"install it: {install_command(hardware)}"
        raise ResourceError(f"--hardware={hardware.name}", what, fix)
    return {"cpu": _cpu_devices, "tpu": _tpu_devices, "gpu": _gpu_devices}[hardware.kind](hardware)


def install_command(hardware: Hardware) -> str:
    """Returns the command that installs the compiler for the installed version of JAX."""
    version = metadata.version("jaxlib")
    if hardware.kind == "tpu":
        return f'pip install "jax[tpu]=={version}"'
    names = (f"jax-cuda13-{part}=={version}" for part in ("plugin", "pjrt"))
    return f"pip install --no-deps {' '.join(names)}"  # neither CUDA nor a driver is needed


def compiler_version(hardware: Hardware) -> str:
    """Returns name and version of the installed compiler."""
    names = {"cpu": ("jaxlib",), "tpu": ("libtpu",)}
    for name in names.get(hardware.kind, ("jax-cuda13-plugin", "jax-cuda12-plugin")):
        with suppress(metadata.PackageNotFoundError):
            return f"{name} {metadata.version(name)}"
    return "none"


def compiler_options(hardware: Hardware) -> dict[str, bool | int]:
    """Returns options of `jax.stages.Lowered.compile`; kernels cannot be timed without a GPU."""
    if hardware.kind != "gpu":
        return {}
    return {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


def _cpu_devices(hardware: Hardware) -> Sequence["jax.Device"]:
    import jax

    with suppress(RuntimeError):  # JAX has started: there are as many as there are
        jax.config.update("jax_num_cpu_devices", hardware.num_devices)
    devices = jax.devices("cpu")
    if len(devices) < hardware.num_devices:
        what = f"JAX has started with {len(devices)} devices"
        fix = f"set XLA_FLAGS=--xla_force_host_platform_device_count={hardware.num_devices}"
        raise ResourceError(f"--hardware={hardware.name}", what, fix)
    return devices[: hardware.num_devices]


def _tpu_devices(hardware: Hardware) -> Sequence["jax.Device"]:
    import jax
    from jax.experimental import topologies

    family, _, size = hardware.name.partition(":")
    # A v4 chip is one device of two cores; slices of one chip have a host of one.
    options: dict[str, object] = {"chip_config_name": "megacore"} if family == "v4" else {}
    if hardware.num_devices == 1:
        options["chips_per_host_bounds"] = [1, 1, 1]
    try:
        topology = topologies.get_topology_desc(hardware.name, "tpu", **options)
    except jax.errors.JaxRuntimeError as error:
        cause = next(iter(str(error).splitlines()), "")
        what = f"libtpu knows no slice {size} of {family}: {cause}"
        raise ConfigError("--hardware", what, f"use one such as {_EXAMPLES}") from error
    return topology.devices


def _gpu_devices(hardware: Hardware) -> Sequence["jax.Device"]:
    import jax
    from jax._src.lib import xla_client
    from jax.experimental import topologies

    jax.devices("cpu")  # finds the plugins
    if not xla_client.pjrt_plugin_initialized("cuda"):  # it is not, without a driver
        xla_client.initialize_pjrt_plugin("cuda")
    name, memory, bandwidth = _GPUS[hardware.name.partition(":")[0]]
    description = _GPU_DESCRIPTION.format(name=name, memory=memory, bandwidth=bandwidth)
    hosts = max(1, hardware.num_devices // 8)
    shape = f"1x{hosts}x{hardware.num_devices // hosts}"  # slices, hosts, GPUs of a host
    topology = topologies.get_topology_desc("", "cuda", target_config=description, topology=shape)
    return topology.devices
