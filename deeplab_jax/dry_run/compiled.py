"""A compiled training step, and what its compiler says about it.

Memory, collectives and (on GPUs) convolutions without a cuDNN kernel are facts of the compiled
step. Cycles are the TPU compiler's own estimate, never a measurement.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import cast

import jax
import jax.numpy as jnp
from jax.stages import Compiled, Lowered, Wrapped

from deeplab_jax.config import Config
from deeplab_jax.distributed import mesh as mesh_lib
from deeplab_jax.dry_run.cycles import kind_of
from deeplab_jax.training.losses.class_weights import resolved
from deeplab_jax.training.state import State, abstract_state
from deeplab_jax.training.step import make_train_step

_COLLECTIVE = re.compile(
    r' = (?P<result>[^"%]+?) '
    r"(?P<kind>all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    r"|collective-broadcast|ragged-all-to-all)(?P<start>-start)?\("
)
_SHAPE = re.compile(r"\b(pred|bf16|[suf]\d+)\w*\[([\d,]*)\]")
_HEADER = re.compile(r"(ENTRY )?%?([\w.-]+) .*{$")
_CALLED = re.compile(r"(?:body|calls|to_apply|\w+_computations?)={?(%?[\w.-]+(?:, %?[\w.-]+)*)")
_TURNS = re.compile(r'"known_trip_count":{"n":"?(\d+)')
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_NAME = re.compile(r'op_name="([^"]*)"')
_WINDOW = re.compile(r"window={size=([\dx]+)")
_STEPS = 1000  # of the schedule; its length does not change the compiled step
_LARGEST_KERNEL = 7  # of the network's own convolutions


@dataclass(frozen=True)
class CompiledStep:
    """Figures of a compiled step, for one device."""

    seconds: float  # of compiling
    arguments: int  # bytes of the state and the batch
    outputs: int  # bytes of the new state and the metrics
    aliased: int  # bytes of outputs that reuse the memory of arguments
    temporaries: int  # bytes of everything else, mostly activations
    collectives: dict[str, tuple[int, int]]  # {kind: (number, bytes of their results)}
    flops: float | None  # of one step; None where the compiler does not tell
    cycles: int | None  # estimated cycles of one step; None where the compiler does not tell
    cycles_by_kind: dict[str, tuple[int, int]]  # the same, {kind: (forward, backward)}
    bytes_accessed: float | None  # by all operations of one step; None where it does not tell
    unrecognised: tuple[str, ...]  # names of convolutions that have no kernel of cuDNN (GPU)

    @property
    def needed(self) -> int:
        """Bytes that must fit on a device."""
        return self.arguments + self.outputs - self.aliased + self.temporaries


def lower_step(config: Config, devices: Sequence[jax.Device]) -> Lowered:
    """Returns the training step of a run, traced for real devices or `compile_devices`.

    Raises:
      ConfigError: the batch or the rows of an image do not divide over the devices.
    """
    # Class weights, which are not counted yet, are numbers in the program and nothing more.
    step = make_train_step(resolved(config), _STEPS, mesh_lib.mesh_of(config, devices))
    return cast(Wrapped, step).lower(*abstract_arguments(config))


def compile_step(
    lowered: Lowered, options: Mapping[str, bool | int] | None = None
) -> tuple[CompiledStep, Compiled]:
    """Compiles a traced step; returns its figures and itself.

    Options: see `hardware.compiler_options`.
    """
    began = time.perf_counter()
    accepted = cast(dict[str, str | bool], dict(options or {}))  # integers too
    compiled = lowered.compile(compiler_options=accepted)
    return read_compiled(compiled, time.perf_counter() - began), compiled


Arguments = tuple[State, jax.ShapeDtypeStruct, jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]


def abstract_arguments(config: Config) -> Arguments:
    """Returns shapes and types of the training step's state, image, label and box."""
    batch, (height, width) = config.train.batch_size, config.data.crop_size
    image = jax.ShapeDtypeStruct((batch, height, width, 3), jnp.uint8)
    label = jax.ShapeDtypeStruct((batch, height, width), jnp.uint8)
    return abstract_state(config), image, label, jax.ShapeDtypeStruct((batch, 4), jnp.int32)


def read_compiled(compiled: Compiled, seconds: float) -> CompiledStep:
    """Returns the figures of a compiled step; `seconds` is the time that compiling took."""
    memory = compiled.memory_analysis()
    assert memory is not None
    text, costs = compiled.as_text() or "", compiled.cost_analysis()
    return CompiledStep(
        seconds=seconds, arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes, aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes, collectives=read_collectives(text),
        flops=(costs or {}).get("flops"), bytes_accessed=(costs or {}).get("bytes accessed"),
        cycles=read_cycles(text), cycles_by_kind=read_cycles_by_kind(text),
        unrecognised=tuple(read_unrecognised(text)),
    )  # fmt: skip


def read_collectives(text: str) -> dict[str, tuple[int, int]]:
    """Counts the collectives in the text of a compiled step.

    Returns:
      {kind: (number per step, bytes of their results on a device)}. A collective of several arrays
      counts once; in a loop it counts once per turn where the compiler knows the number of turns.
    """
    found: dict[str, tuple[int, int]] = {}
    for line, times, _ in _instructions(text):
        if match := _COLLECTIVE.search(line):
            count, size = found.get(match["kind"], (0, 0))
            found[match["kind"]] = count + times, size + times * _result_bytes(match)
    return found


def _result_bytes(match: re.Match[str]) -> int:
    shapes = _SHAPE.findall(match["result"])
    if match["start"] and match["kind"] != "all-reduce":  # operands, results, then flags
        shapes = [shape for shape in shapes if shape[1]]
        shapes = shapes[len(shapes) // 2 :]
    sizes = (prod(map(int, filter(None, sides.split(",")))) for _, sides in shapes)
    items = (max(8, int(re.sub(r"\D", "", dtype) or 8)) // 8 for dtype, _ in shapes)
    return sum(size * item for size, item in zip(sizes, items, strict=True))


def read_cycles(text: str) -> int | None:
    """Returns the sum of the TPU compiler's estimates of each operation's cycles.

    An operation counts as often as it runs. A fusion has a figure of its own, which includes the
    operations inside. Collectives have no figure.
    """
    kinds = read_cycles_by_kind(text)
    return sum(map(sum, kinds.values())) if kinds else None


def read_cycles_by_kind(text: str) -> dict[str, tuple[int, int]]:
    """Returns the parts of `read_cycles`, {kind of operation: (forward, backward)}."""
    kinds: dict[str, tuple[int, int]] = {}
    for line, times, is_fused in _instructions(text):
        cycles = _CYCLES.search(line)
        if is_fused or not cycles:
            continue
        name = _NAME.search(line)
        kind, is_backward = kind_of(name[1] if name else "")
        both = list(kinds.get(kind, (0, 0)))
        both[is_backward] += int(cycles[1]) * times
        kinds[kind] = (both[0], both[1])
    return kinds


def _instructions(text: str) -> Iterator[tuple[str, int, bool]]:
    """Yields (instruction, number of runs, whether in a fusion); every branch counts as taken."""
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():  # comments: /*index=5*/
        header = None if line.startswith(" ") else _HEADER.match(line)
        if header:
            name = header[2]
            bodies[name] = []
            entry = name if header[1] else entry
        elif name:
            bodies[name].append(line)
    waiting = [(entry, 1, False)]
    while waiting:
        name, times, is_fused = waiting.pop()
        for line in bodies.get(name, ()):
            yield line, times, is_fused
            turns = _TURNS.search(line) if " while(" in line else None
            inner = times * int(turns[1]) if turns else times
            called = ", ".join(_CALLED.findall(line)).replace("%", "").split(", ")
            is_inside = is_fused or " fusion(" in line
            waiting += [(other, inner, is_inside) for other in called if other]


def read_unrecognised(text: str) -> Iterator[str]:
    """Yields the convolutions of a GPU's compiled step that have no fitting kernel of cuDNN.

    Where XLA does not recognise the gradient of a kernel, it becomes a forward convolution with a
    window of the feature map's size, or stays a convolution of XLA's own.
    """
    if "__cudnn$conv" not in text:
        return
    for line in text.splitlines():
        is_own = " convolution(" in line
        window = _WINDOW.search(line)
        if not window or not (is_own or "__cudnn$conv" in line):
            continue
        if is_own or max(map(int, window[1].split("x"))) > _LARGEST_KERNEL:
            name = _NAME.search(line)
            yield f"{window[1]} {name[1] if name else line.split(' = ')[0].strip()}"
