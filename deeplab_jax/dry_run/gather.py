"""What a run computes, needs and reads, told without writing anything.

`gather` collects the facts, `dry_run_text` lays them out, and `dry_run` ends as the run would:
with the error of what is missing, or of what does not fit.
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deeplab_jax import checkpoint
from deeplab_jax.config import Config
from deeplab_jax.data import Dataset, TrainBatch, open_dataset
from deeplab_jax.distributed import mesh as mesh_lib
from deeplab_jax.dry_run import estimate as estimate_lib
from deeplab_jax.dry_run import flops, hardware, text
from deeplab_jax.dry_run.compiled import Program, step_program
from deeplab_jax.errors import DeepLabError, ResourceError
from deeplab_jax.training import workdir as workdir_lib
from deeplab_jax.training.bad_samples import without_listed
from deeplab_jax.training.init_weights import check_init
from deeplab_jax.training.loop import warnings
from deeplab_jax.training.optimizer import build_optimizer
from deeplab_jax.training.plan import Plan, make_plan, read_batches

# Images of the training splits as they are published, for where they are not here.
_PUBLISHED = {("voc", "trainaug"): 10582, ("ade20k", "train"): 20210, ("cityscapes", "train"): 2975}
# Of a device's memory, what a program may use: JAX takes three quarters of a GPU unless told
# otherwise, and a TPU's runtime keeps some for itself.
_USABLE = {"gpu": 0.75, "tpu": 0.94, "cpu": 0.8}
_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"
_LOG_BYTES = 250  # of a line of the log, at most
_CHECKPOINTS = 3  # the latest, the best, and the one being written
_POINTS = 48  # of the rate's curve


@dataclass(frozen=True)
class Memory:
    """Of one device, in bytes.

    Attributes:
      needed: by the compiled step, `arguments` and temporaries.
      temporaries: feature maps, gradients and what else lies between arguments and results.
      usable: by a program; None where it is not known.
      total: of the device; None where it is not known.
      collectives: {kind: (how many, bytes)} of one step.
      source: who says so.
      is_estimate: ours instead of the compiler's.
    """

    needed: int
    temporaries: int
    usable: int | None
    total: int | None
    collectives: dict[str, tuple[int, int]]
    source: str
    is_estimate: bool

    @property
    def fits(self) -> bool:
        """Tells whether a device holds the step, as far as that is known."""
        return self.usable is None or self.needed <= self.usable


@dataclass(frozen=True)
class Inputs:
    """What the run finds: data, start and schedule.

    Attributes:
      dataset: of training; None: not here.
      num_samples: training images; None: not known.
      plan: of steps; None: not known.
      first: all rows of the first batch; None: not readable.
      start: step that the run continues at; 0: a new one.
      warnings: what is legal but probably not meant.
      errors: what would end the run, in the order that it would meet them.
    """

    dataset: Dataset | None
    num_samples: int | None
    plan: Plan | None
    first: TrainBatch | None
    start: int
    warnings: tuple[str, ...]
    errors: tuple[DeepLabError, ...]


@dataclass(frozen=True)
class Facts:
    """Of a run, before it begins.

    Attributes:
      config: the run's.
      target: the devices' name.
      num_devices: of them.
      mesh: (data, spatial): groups of devices that share the batch, devices that share an image.
      parameters: by part of the network.
      macs: multiply-adds of one image forward, by part.
      state: bytes by item.
      memory: of one device.
      inputs: data, start and schedule.
      rates: learning rates, evenly over the run; empty: not known.
      disk_needed: bytes.
      disk_free: bytes, where the work directory is or would be.
      workdir: of the run.
    """

    config: Config
    target: str
    num_devices: int
    mesh: tuple[int, int]
    parameters: dict[str, int]
    macs: dict[str, int]
    state: dict[str, int]
    memory: Memory
    inputs: Inputs
    rates: tuple[float, ...]
    disk_needed: int
    disk_free: int
    workdir: Path

    @property
    def errors(self) -> tuple[DeepLabError, ...]:
        """What would end the run, too little memory or disk first."""
        return (*_misfits(self), *self.inputs.errors)


def dry_run(config: Config, workdir: str, target: str | None) -> None:
    """Prints what a run computes, needs and reads; writes nothing.

    Args:
      config: the run's, checked.
      workdir: of the run.
      target: see `hardware.parse_hardware`; None: the devices that are here.

    Raises:
      ConfigError: the target is none, or the batch does not divide over it.
      DeepLabError: what would end the run, after all else was told.
      ResourceError: it does not fit a device's memory, or the disk.
    """
    facts = gather(config, workdir, target)
    print("\n".join(text.render(facts)), flush=True)
    for error in facts.errors:
        raise error


def gather(config: Config, workdir: str, target: str | None) -> Facts:
    """Returns the facts of a run.

    Raises:
      ConfigError: as `dry_run`.
    """
    goal, devices = _find_devices(target)
    mesh = mesh_lib.mesh_shape(config, goal.num_devices)
    path = workdir_lib.as_path(workdir)
    inputs = _inputs(config, path)
    total = inputs.plan.total if inputs.plan else config.train.steps
    state = estimate_lib.sizes(estimate_lib.abstract_state(config))
    lines = total // config.log.every_steps + 1
    lines += total // inputs.plan.eval_every if inputs.plan else 0
    return Facts(
        config=config,
        target=goal.name,
        num_devices=goal.num_devices,
        mesh=mesh,
        parameters=flops.count_parameters(config),
        macs=flops.count_macs(config),
        state=state,
        memory=_memory(config, goal, devices, is_here=target is None),
        inputs=inputs,
        rates=_rates(config, total),
        disk_needed=_CHECKPOINTS * sum(state.values()) + lines * _LOG_BYTES,
        disk_free=_disk_free(path),
        workdir=path,
    )


def _find_devices(target: str | None) -> tuple[hardware.Hardware, Sequence[Any]]:
    """Returns the target, and its devices where something here compiles for them.

    It comes first: processors are divided as JAX starts.
    """
    if target is None:
        devices = jax.devices()
        return _as_target(devices), devices
    goal = hardware.parse_hardware(target)
    return goal, hardware.compile_devices(goal) if hardware.has_compiler(goal) else ()


def _as_target(devices: Sequence[Any]) -> hardware.Hardware:
    """Returns the devices of this machine as a target."""
    first = devices[0]
    kind = {"cuda": "gpu", "rocm": "gpu"}.get(first.platform, first.platform)
    name = f"{len(devices)} x {first.device_kind}"
    statistics = first.memory_stats() if kind != "cpu" else None
    return hardware.Hardware(name, kind, len(devices), (statistics or {}).get("bytes_limit"))


def _inputs(config: Config, path: Path) -> Inputs:
    """Looks at all that the run would, and goes on after an error."""
    errors: list[DeepLabError] = []
    data, classes = config.data, config.model.num_classes
    dataset = _attempt(errors, open_dataset, data, classes, data.train_split)
    _attempt(errors, open_dataset, data, classes, data.val_split)
    if dataset and data.max_bad_samples:
        dataset = _attempt(errors, without_listed, dataset, path)
    number = len(dataset) if dataset else _PUBLISHED.get((data.dataset, data.train_split))
    plan = None if number is None else _attempt(errors, make_plan, config, number)
    notes = warnings(config)
    start = _attempt(errors, checkpoint.latest_step, path)
    if start is None:
        names = dataset.class_names if dataset else ()
        notes += _attempt(errors, check_init, config, names) or []
    elif dataset:
        _attempt(errors, workdir_lib.check_continuation, path, config, dataset)
    first = None
    if dataset and plan:
        unreadable: list[DeepLabError] = []
        first = _attempt(unreadable, _first_batch, config, dataset, plan)
        if data.max_bad_samples:
            notes += [
                f"{error}; config.data.max_bad_samples may leave it out" for error in unreadable
            ]
        else:
            errors += unreadable
    return Inputs(dataset, number, plan, first, start or 0, tuple(notes), tuple(errors))


def _attempt(errors: list[DeepLabError], function: Any, *arguments: Any) -> Any:
    """Returns what a function does, or None after noting its error."""
    try:
        return function(*arguments)
    except DeepLabError as error:
        if str(error) not in map(str, errors):
            errors.append(error)
        return None


def _first_batch(config: Config, dataset: Dataset, plan: Plan) -> TrainBatch:
    """Returns all rows of step 0, which threads read whatever the number of workers."""
    rows = range(config.train.batch_size)
    return next(read_batches(config, dataset, plan, range(1), rows, num_workers=0))


def _rates(config: Config, total: int) -> tuple[float, ...]:
    if not total:
        return ()
    _, schedule = build_optimizer(config.train, total)
    steps = np.linspace(0, total - 1, _POINTS).round()
    return tuple(float(schedule(step)) for step in steps)


def _memory(
    config: Config, goal: hardware.Hardware, devices: Sequence[Any], is_here: bool
) -> Memory:
    """Returns what a device must hold, by the compiler where it is installed."""
    usable = _usable(goal, is_here)
    if devices:
        print(f"compiling for {goal.name}, which takes some minutes at most ...", flush=True)
        got: Program | estimate_lib.Estimate = _compile(config, goal, devices, is_here)
        source = f"the compiler's own figures ({hardware.compiler_version(goal)})"
    else:
        got = estimate_lib.estimate(config, goal)
        source = "our estimate, within a factor of 1.5 of the compiler's figure"
        source += f"\n(the compiler itself: {hardware.install_command(goal)})"
    return Memory(
        needed=got.needed,
        temporaries=got.temporaries,
        usable=usable,
        total=_machine() if goal.kind == "cpu" else goal.memory_bytes,
        collectives=got.collectives,
        source=source,
        is_estimate=not devices,
    )


def _compile(
    config: Config, goal: hardware.Hardware, devices: Sequence[Any], is_here: bool
) -> Program:
    try:
        return step_program(config, devices, {} if is_here else hardware.compiler_options(goal))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        text = " ".join(str(error).split("RESOURCE_EXHAUSTED:")[-1].split())[:150]
        raise ResourceError(goal.name, f"does not hold the step ({text})", advice(config)) from None


def _machine() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _usable(goal: hardware.Hardware, is_here: bool) -> int | None:
    """Returns the bytes of a device's memory that a program may use."""
    if goal.kind == "cpu":
        return int(_machine() * _USABLE["cpu"]) // goal.num_devices
    if goal.memory_bytes is None:
        return None
    if is_here:
        return goal.memory_bytes  # the runtime's own limit
    share = _USABLE[goal.kind]
    if goal.kind == "gpu":
        with suppress(ValueError):
            share = float(os.environ.get(_FRACTION, share))
    return int(goal.memory_bytes * share)


def _disk_free(path: Path) -> int:
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.is_dir())
    return shutil.disk_usage(existing).free


def _misfits(facts: Facts) -> list[ResourceError]:
    """Returns the errors of what is too small."""
    memory, found = facts.memory, []
    if not memory.fits:
        assert memory.usable is not None
        needed, usable = memory.needed / hardware.GIB, memory.usable / hardware.GIB
        what = f"a device needs {needed:.1f} GiB of the {usable:.1f} GiB that can be used"
        found.append(ResourceError(facts.target, what, advice(facts.config)))
    if facts.disk_needed > facts.disk_free:
        what = (
            f"needs {facts.disk_needed / 1e9:.2f} GB, and {facts.disk_free / 1e9:.2f} GB are free"
        )
        found.append(ResourceError(str(facts.workdir), what, "make room, or choose another place"))
    return found


def advice(config: Config) -> str:
    """Returns what makes a step need less memory, and has not been done."""
    model, parts = config.model, config.train.gradient_accumulation
    ways = []
    if model.dtype != "bfloat16":
        ways.append("config.model.dtype=bfloat16")
    if not model.remat:
        ways.append("config.model.remat=1,2,3,4")
    if config.train.batch_size % (2 * parts) == 0:
        ways.append(f"config.train.gradient_accumulation={2 * parts} (batch norm then sees parts)")
    ways.append(f"more devices, or config.mesh.spatial={2 * config.mesh.spatial}")
    return "try " + ", ".join(ways)
