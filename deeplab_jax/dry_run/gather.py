"""Gathers the facts of a run without writing anything.

`gather` collects the facts, `text.render` prints them, and `dry_run` ends as the run would: with
the first error of what is missing or does not fit.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from jax.stages import Compiled

from deeplab_jax.config import PUBLISHED_IMAGES, Config, DataConfig, get_config, warnings
from deeplab_jax.data import open_dataset
from deeplab_jax.data.augment.chain import check_transforms
from deeplab_jax.distributed import mesh as mesh_lib
from deeplab_jax.dry_run import flops, hours, text
from deeplab_jax.dry_run import hardware as hardware_lib
from deeplab_jax.dry_run.compiled import CompiledStep, compile_step, lower_step
from deeplab_jax.dry_run.estimate import estimate, item_bytes
from deeplab_jax.dry_run.facts import DeviceMemory, Inputs, RunFacts, memory_advice
from deeplab_jax.dry_run.hardware import Hardware
from deeplab_jax.errors import DataError, DeepLabError, ResourceError
from deeplab_jax.training import workdir as workdir_lib
from deeplab_jax.training.bad_samples import without_listed
from deeplab_jax.training.extend.given import Given
from deeplab_jax.training.init_weights import check_init
from deeplab_jax.training.log.curves import check_curves
from deeplab_jax.training.optimizer import build_schedule
from deeplab_jax.training.plan import make_plan, read_batches
from deeplab_jax.training.setup import check_best
from deeplab_jax.training.state import abstract_state
from deeplab_jax.utils import compile_cache
from deeplab_jax.utils.places import as_place, is_address
from deeplab_jax.utils.progress import Screen

_T = TypeVar("_T")
# Share of a device's memory that a step may use: JAX takes three quarters of a GPU unless told
# otherwise, and a TPU's runtime keeps some for itself.
_USABLE = {"gpu": 0.75, "tpu": 0.94, "cpu": 0.8}
_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"
_LOG_BYTES = 300  # of a line of the log, at most
_MARKS = np.linspace(0, 100, 49)  # percent of the steps


def dry_run(config: Config, workdir: str, hardware: str | None) -> None:
    """Prints what a run computes, needs and reads; writes nothing.

    `workdir` need not exist. `hardware` is a name for `hardware.parse_hardware`; None means the
    devices of this machine.

    Raises:
      ConfigError: the hardware is unknown, or the batch does not divide over it.
      ResourceError: the step does not fit a device's memory, or the checkpoints the disk.
      DeepLabError: another error that would end the run; everything else is printed before.
    """
    facts = gather(config, workdir, hardware)
    print("\n".join(text.render(facts)), flush=True)
    for error in facts.errors:
        raise error


def gather(config: Config, workdir: str, hardware: str | None) -> RunFacts:
    """Returns the facts of a run; arguments and ConfigError as in `dry_run`."""
    devices: Sequence[jax.Device]
    if hardware is None:
        devices = jax.devices()
        chosen = _local_hardware(devices)
    else:  # before JAX starts: then processors are divided into virtual devices
        chosen = hardware_lib.parse_hardware(hardware)
        devices = hardware_lib.compile_devices(chosen) if hardware_lib.has_compiler(chosen) else ()
    mesh = mesh_lib.mesh_shape(config, chosen.num_devices)
    path = as_place(workdir)
    inputs = find_inputs(config, path)
    total = inputs.plan.total if inputs.plan else config.train.steps
    state = item_bytes(abstract_state(config))
    lines = total // config.log.every_steps + 1
    lines += total // inputs.plan.eval_every if inputs.plan else 0
    # The latest, the best, and the one being written.
    needed = (config.checkpoint.keep + 2) * sum(state.values()) + lines * _LOG_BYTES
    rates = {}
    if total:
        schedule = build_schedule(config.train, total)
        rates = {float(at): float(schedule(round((total - 1) * at / 100))) for at in _MARKS}
    disk_free = None
    if not is_address(path):
        absolute = path.absolute()
        existing = next(folder for folder in (absolute, *absolute.parents) if folder.is_dir())
        disk_free = shutil.disk_usage(existing).free
    macs = flops.count_macs(config)
    memory, step = _device_memory(config, chosen, devices, is_here=hardware is None)
    step_time = hours.guess(2 * flops.step_macs(config, macs), config, chosen)
    if hardware is None and step and memory.fits:
        # Where no guess is possible there is an accelerator.
        if step_time is None or step_time.high <= hours.MAX_SECONDS:
            try:
                step_time = hours.measure(step, config)
            except jax.errors.JaxRuntimeError as error:  # the guess stays
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                note = "a step tried here ran out of memory: end other programs on these devices"
                notes = (*inputs.warnings, f"{note}, or {memory_advice(config)}")
                inputs = replace(inputs, warnings=notes)
    elif hardware is not None and chosen.kind == "cpu":
        step_time = None  # virtual devices share this machine's cores
    if hardware is not None and not Path(config.data.root).is_dir():
        # The data are with the hardware.
        absent = [error for error in inputs.errors if isinstance(error, DataError)]
        notes = (*inputs.warnings, *(f"{e.where}: {e.what}, on this machine" for e in absent[:1]))
        rest = tuple(error for error in inputs.errors if error not in absent)
        inputs = replace(inputs, warnings=notes, errors=rest)
    return RunFacts(
        config=config, hardware=chosen, mesh=mesh, parameters=flops.count_parameters(config),
        learning=flops.count_learning(config), macs=macs, state=state, memory=memory,
        step_time=step_time, inputs=inputs, rates=rates, disk_needed=needed,
        disk_free=disk_free, workdir=path,
    )  # fmt: skip


def _local_hardware(devices: Sequence[jax.Device]) -> Hardware:
    """Describes the devices of this machine; the memory is the runtime's own limit."""
    first = devices[0]
    kind = {"cuda": "gpu", "rocm": "gpu"}.get(first.platform, first.platform)
    statistics = first.memory_stats() if kind != "cpu" else None
    memory = (statistics or {}).get("bytes_limit")
    return Hardware(f"{len(devices)} x {first.device_kind}", kind, len(devices), memory)


def find_inputs(config: Config, workdir: Path) -> Inputs:
    """Checks data, start and schedule as the run would, and goes on after an error."""
    errors: list[DeepLabError] = []
    data, classes = config.data, config.model.num_classes
    begin = _attempt(errors, workdir_lib.choose, workdir, config)
    if begin and begin.saved:
        _attempt(errors, Given().check, workdir, begin.saved.given)
    dataset = _attempt(errors, open_dataset, data, classes, data.train_split)
    _attempt(errors, check_curves, config.log, workdir)
    if validation := _attempt(errors, open_dataset, data, classes, data.val_split):
        _attempt(errors, check_best, config.checkpoint.best, validation)
    if dataset and data.max_bad_samples:
        dataset = _attempt(errors, without_listed, dataset, workdir)
    number = len(dataset) if dataset else _published(data)
    plan = None if number is None else _attempt(errors, make_plan, config, number)
    notes = warnings(config)
    if begin is not None:
        notes += [f"step {step} of {workdir} {why}" for step, why in begin.damaged.items()]
        if begin.saved is None:
            names = dataset.class_names if dataset else ()
            notes += _attempt(errors, check_init, config, names) or []
        elif dataset:
            _attempt(errors, workdir_lib.check_same_data, workdir, begin.saved, dataset)
    functions = _attempt(errors, check_transforms, dataset, data) if dataset else None
    if begin and begin.saved and functions is not None:
        same = workdir_lib.check_same_functions
        _attempt(errors, same, workdir, begin.saved.functions, functions)
    start = begin.step if begin else None
    first = None
    if dataset and plan and functions is not None:
        unreadable: list[DeepLabError] = []
        rows = range(config.train.batch_size)
        batches = read_batches(config, dataset, plan, range(1), rows, num_workers=0)  # in threads
        first = _attempt(unreadable, next, batches)
        if data.max_bad_samples:
            fix = "config.data.max_bad_samples may leave it out"
            notes += [f"{error}; {fix}" for error in unreadable]
        else:
            errors += unreadable
    return Inputs(dataset, number, plan, first, start or 0, tuple(notes), tuple(errors))


def _published(data: DataConfig) -> int | None:
    """Returns the published number of training images, for where the data are not here."""
    is_published = data.train_split == get_config(data.dataset).data.train_split
    return PUBLISHED_IMAGES.get(data.dataset, (None,))[0] if is_published else None


def _attempt(
    errors: list[DeepLabError], function: Callable[..., _T], *arguments: object
) -> _T | None:
    """Returns the result of a function, or None after adding its error to the list, once."""
    try:
        return function(*arguments)
    except DeepLabError as error:
        if str(error) not in map(str, errors):
            errors.append(error)
        return None


def _device_memory(
    config: Config, hardware: Hardware, devices: Sequence[jax.Device], is_here: bool
) -> tuple[DeviceMemory, Compiled | None]:
    """Returns a device's memory, and the step where a compiler for it is installed."""
    usable = _usable(hardware, is_here)
    total = _machine_bytes() if hardware.kind == "cpu" else hardware.memory_bytes
    if devices:
        what = f"the training step for {hardware.name}"
        with Screen(is_transient=True).open(), compile_cache.compiling(what, is_told=True):
            figures, step = _compile(config, hardware, devices, is_here)
        source = f"the compiler's own figures ({hardware_lib.compiler_version(hardware)})"
        return DeviceMemory(figures, usable, total, source), step
    source = "our estimate, within a factor of 1.5 of the compiler's figure"
    source += f"\n(the compiler itself: {hardware_lib.install_command(hardware)})"
    return DeviceMemory(estimate(config, hardware), usable, total, source), None


def _compile(
    config: Config, hardware: Hardware, devices: Sequence[jax.Device], is_here: bool
) -> tuple[CompiledStep, Compiled]:
    options = {} if is_here else hardware_lib.compiler_options(hardware)
    try:
        return compile_step(lower_step(config, devices), options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = " ".join(str(error).split("RESOURCE_EXHAUSTED:")[-1].split())[:150]
        what = f"does not hold the step ({reason})"
        raise ResourceError(hardware.name, what, memory_advice(config)) from None


def _machine_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _usable(hardware: Hardware, is_here: bool) -> int | None:
    """Returns the bytes of a device's memory that a step may use; None where unknown."""
    if hardware.kind == "cpu":
        return int(_machine_bytes() * _USABLE["cpu"]) // hardware.num_devices
    if hardware.memory_bytes is None or is_here:
        return hardware.memory_bytes
    share = _USABLE[hardware.kind]
    if hardware.kind == "gpu":
        with suppress(ValueError):
            share = float(os.environ.get(_FRACTION, share))
    return int(hardware.memory_bytes * share)
