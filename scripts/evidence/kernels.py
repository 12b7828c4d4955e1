"""Where a step's time goes: JAX's profiler, its trace read without TensorFlow, kernels by kind."""

import gzip
import json
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from deeplab_jax.dry_run import cycles
from evidence.networks import ade20k, train_step
from evidence.record import Box, Item, Result

_STEPS = 5  # that are traced
_LARGEST = 20  # operations that are listed one by one
_LINE = re.compile(r"^\s*(?:ROOT )?%?(?P<name>[\w.-]+) = .*? (?P<opcode>[a-z][\w-]*)\(")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_CONTAINERS = ("while", "call", "conditional")  # their time is that of what they call
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective")
# Of kernels that the program does not name, by words of cuDNN's and cuBLAS's.
_CONVOLUTIONS = "convolutions and 1x1"
_NAMELESS = ("fprop", "dgrad", "wgrad", "convol", "cudnn", "gemm", "nvjet", "cutlass", "cublas")


class Operation(NamedTuple):
    """An operation of the compiled program."""

    opcode: str
    path: str  # in the program's own names, such as jit(train_step)/jvp(...)/conv1/norm/mul
    target: str  # of a custom call


def items(box: Box) -> list[Item]:
    """Returns the step of R-50-D16 in both types."""
    kinds = box.pick(("bfloat16", "float32"), ("float32",))
    return [
        Item(f"R-50-D16 {dtype}", lambda dtype=dtype: _trace(box, dtype), 90) for dtype in kinds
    ]


def _trace(box: Box, dtype: str) -> Result:
    way, compiled = train_step(ade20k(box, dtype))
    folder = box.output / "traces" / dtype
    shutil.rmtree(folder, ignore_errors=True)
    for _ in range(3):
        way.wait(way.call())
    began = time.perf_counter()
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # its events would crowd out kernels
    with jax.profiler.trace(str(folder), profiler_options=options):
        for _ in range(_STEPS):
            way.wait(way.call())
    traced = (time.perf_counter() - began) / _STEPS
    [path] = folder.glob("plugins/profile/*/*.trace.json.gz")
    program = read_program(compiled.as_text() or "")
    return summary(list(read_kernels(path)), program, _STEPS) | {"traced_step_seconds": traced}


def read_program(text: str) -> dict[str, Operation]:
    """Returns {name: operation} of the text of a compiled program."""
    found = {}
    for line in text.splitlines():
        if match := _LINE.match(line):
            path, target = (pattern.search(line) for pattern in (_OP_NAME, _TARGET))
            found[match["name"]] = Operation(
                match["opcode"], path[1] if path else "", target[1] if target else ""
            )
    return found


def read_kernels(path: Path) -> Iterator[tuple[str, str, float]]:
    """Yields (kernel, operation of the program or "", seconds) of a trace.

    A GPU's kernels are on its streams; other lines of the device repeat them in groups. A
    processor's operations are on its threads.
    """
    with gzip.open(path) as file:
        events = json.load(file)["traceEvents"]
    processes: dict[int, str] = {}
    threads: dict[tuple[int, int], str] = {}
    for event in events:
        if event.get("ph") == "M" and event["name"] == "process_name":
            processes[event["pid"]] = event["args"]["name"]
        elif event.get("ph") == "M" and event["name"] == "thread_name":
            threads[event["pid"], event["tid"]] = event["args"]["name"]
    devices = {pid for pid, name in processes.items() if name.startswith("/device:")}
    for event in events:
        if event.get("ph") != "X" or (devices and event["pid"] not in devices):
            continue
        operation = (event.get("args") or {}).get("hlo_op", "")
        is_stream = "Stream" in threads.get((event["pid"], event["tid"]), "")
        if is_stream if devices else operation:
            yield event["name"], operation, event["dur"] / 1e6


def summary(
    kernels: list[tuple[str, str, float]], program: dict[str, Operation], steps: int
) -> Result:
    """Returns the time of a step by kind of kernel, and its largest operations.

    Args:
      kernels: of all steps, from `read_kernels`.
      program: from `read_program`.
      steps: how many were traced.
    """
    kinds: dict[str, float] = defaultdict(float)
    single: dict[str, list[Any]] = {}
    for kernel, name, seconds in kernels:
        operation = program.get(name, Operation("", "", ""))
        if operation.opcode in _CONTAINERS:
            continue
        kinds[kind_of(kernel, operation)] += seconds / steps
        row = single.setdefault(name or kernel, [0.0, 0, kernel, operation.path])
        row[0] += seconds / steps
        row[1] += 1
    total = sum(kinds.values())
    if not total:
        raise ValueError("the trace has no kernel of the step")
    by_kind = dict(sorted(kinds.items(), key=lambda pair: -pair[1]))
    largest = sorted(single.items(), key=lambda pair: -pair[1][0])[:_LARGEST]
    first, share = next(iter(by_kind)), next(iter(by_kind.values())) / total
    return {
        "kernel_seconds": total,
        "kernels": round(len(kernels) / steps),
        "kinds": by_kind,
        "largest": [
            {"operation": name, "seconds": row[0], "calls": row[1] / steps, "kernel": row[2][:120],
             "path": row[3]} for name, row in largest
        ],
        "line": f"{1e3 * total:.4g} ms of kernels, most in {first} ({share:.0%})",
    }  # fmt: skip


def kind_of(kernel: str, operation: Operation) -> str:
    """Returns the kind of a kernel, as of `cycles`, with its direction where the program tells."""
    path, text = operation.path, f"{operation.opcode} {operation.target} {kernel}".lower()
    if any(word in text for word in _COLLECTIVES):
        return "collectives"
    if operation.opcode in ("copy", "transpose") or "memcpy" in text or "memset" in text:
        return "copies and transposes"
    if not path:
        return _CONVOLUTIONS if any(word in text for word in _NAMELESS) else "without a name"
    kind, is_backward = cycles.kind_of(path)
    if "__cudnn$conv" in operation.target:
        kind = _CONVOLUTIONS
    return f"{kind}, {'backward' if is_backward else 'forward'}"
