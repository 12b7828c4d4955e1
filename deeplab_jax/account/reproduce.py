"""Repetition of the first steps of a run, and the comparison of their losses with its log.

Losses are equal bit for bit where the step is the same program on the same devices: same versions,
devices, processor and number of cores, and variables that change the program. Otherwise the order
of sums may differ, and losses are equal to rounding at first (docs/hosts.md, "What the number of
devices changes"). Training amplifies rounding, so later losses are told and not judged; see
`tolerance`.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deeplab_jax import checkpoint
from deeplab_jax.config import Config
from deeplab_jax.config.transforms import FIELD
from deeplab_jax.distributed import mesh as mesh_lib
from deeplab_jax.errors import CheckpointError, ConfigError, DataError
from deeplab_jax.training import workdir as workdir_lib
from deeplab_jax.training.bad_samples import without_listed
from deeplab_jax.training.plan import make_plan, read_batches
from deeplab_jax.training.setup import (
    RunSetup,
    gather,
    restore_or_init,
    start_entry,
    with_counts,
)
from deeplab_jax.training.step import make_train_step
from deeplab_jax.utils import compile_cache
from deeplab_jax.utils.progress import counting

# What may change the last bits of a loss, by section of an entry of `env.json`; and the code.
_COMPARED = {
    "devices": ("platform", "kind", "count", "processes"),
    "processor": ("model", "cores"),
    "packages": ("python", "jax", "jaxlib", "flax", "optax", "numpy", "opencv-python-headless",
                 "libtpu"),
    "variables": ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION",
                  "JAX_DISABLE_MOST_OPTIMIZATIONS", "NPROC", "OMP_NUM_THREADS"),
}  # fmt: skip


@dataclass(frozen=True)
class Logged:
    """The loss of a step in the log, and the start, an entry of `env.json`, that computed it."""

    loss: float
    entry: Mapping[str, Any]


@dataclass(frozen=True)
class Compared:
    """The loss of a step in the run and here.

    Attributes:
      tolerance: relative difference that counts as equal; 0 means bit for bit, None that rounding
        may have grown beyond any bound.
    """

    step: int
    there: float
    here: float
    tolerance: float | None

    @property
    def difference(self) -> float:
        """The relative difference."""
        return abs(self.here - self.there) / max(abs(self.there), 1e-30)

    @property
    def is_judged(self) -> bool:
        """Whether the losses must be equal."""
        return self.tolerance is not None

    @property
    def is_equal(self) -> bool:
        """Whether they are equal, bit for bit or to the tolerance."""
        return self.here == self.there or self.difference <= (self.tolerance or 0.0)

    def __str__(self) -> str:
        text = f"step {self.step}: loss {self.there!r} in the run, {self.here!r} here"
        return f"{text}, relative difference {self.difference:.1e}"


# Relative difference of losses that rounding explains where the order of sums differs: (last step,
# difference). Later, none is a bound: a narrow network with batches of four multiplies a difference
# by up to 50 a step.
_ROUNDING = {
    "float64": ((1, 1e-12), (10, 1e-9)),
    "float32": ((1, 1e-5), (2, 1e-3)),
    "bfloat16": ((1, 1e-2),),
}


def tolerance(dtype: str, step: int) -> float | None:
    """Returns the relative difference that rounding explains at a step; None for any."""
    return next((value for last, value in _ROUNDING[dtype] if step <= last), None)


def first_losses(workdir: Path, most: int) -> list[Logged]:
    """Returns the losses of the first steps that a run's log holds without a gap, at most `most`.

    Raises:
      ConfigError: log or `env.json` is not there, or does not tell the first steps.
    """
    starts = {entry["began"]: entry for entry in workdir_lib.read_starts(workdir / workdir_lib.ENV)}
    path = workdir / "log.jsonl"
    if not path.is_file():
        what = "there is no log of a run"
        raise ConfigError(str(path), what, "give a work directory of `deeplab train`")
    entry: Mapping[str, Any] | None = None
    found: dict[int, Logged] = {}
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
            if event["event"] == "time" and event["at"] == "start":
                entry = starts.get(event["began"])
            elif event["event"] in ("train", "loss") and entry is not None:
                found[int(event["step"])] = Logged(float(event["loss"]), entry)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # such as a line that a kill cut short
    steps = next(step for step in range(1, len(found) + 2) if step not in found)
    if steps == 1:
        what = f"does not hold the loss of step 1 and the start that computed it ({len(found)}"
        what += " other steps)"
        fix = "use a run that this version of deeplab_jax began at step 0"
        raise ConfigError(str(path), what, fix)
    return [found[step] for step in range(1, min(steps - 1, most) + 1)]


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Returns a phrase for each thing that may change the last bits of a loss, and differs."""
    pairs = [("code", there.get("code"), here.get("code"))]
    for section, names in _COMPARED.items():
        old, new = (entry.get(section) or {} for entry in (there, here))
        pairs += [(f"{section} {name}", old.get(name), new.get(name)) for name in names]
    return [
        f"{name}: {_shown(old)} in the run, {_shown(new)} here"
        for name, old, new in pairs
        if old != new
    ]


def _shown(value: object) -> str:
    return "none" if value is None else str(value)


def repeat(workdir: Path, config: Config, most: int) -> tuple[list[Compared], list[str]]:
    """Repeats at most `most` first steps of a run; leaves nothing behind.

    Args:
      workdir: of the run, which is read alone.
      config: of the run; where its data are may differ.
      most: number of steps, at least 1.

    Returns:
      The losses of each step, and what differs between the run's starts and this one.

    Raises:
      ConfigError: the run's log or `env.json` does not tell its first steps; or a Python program
        gave its data, loss or transform.
      DataError: the data are not those of the run.
      CheckpointError: the weights that the run began with are not there, or others are.
    """
    logged = first_losses(workdir, most)
    given = [name for name in logged[0].entry.get("given") or () if name != "callbacks"]
    if given:
        what = f"was trained with {', '.join(given)} that a Python program gave"
        fix = "repeat its first steps with deeplab_jax.train into another folder, compare log.jsonl"
        raise ConfigError(str(workdir), what, fix)
    compile_cache.enable()
    with tempfile.TemporaryDirectory() as place:
        try:
            setup = gather(config, place)
        except (DataError, CheckpointError, ConfigError) as error:
            folder = logged[0].entry.get("folder")
            is_place = not isinstance(error, ConfigError) or error.where.startswith(FIELD)
            if folder is None or not is_place or Path(folder) == Path.cwd():
                raise
            fix = f"{error.fix}; the run began in the folder {folder}"
            raise type(error)(error.where, error.what, fix) from error
        dataset = without_listed(setup.dataset, workdir)
        setup = replace(setup, dataset=dataset, plan=make_plan(config, len(dataset)))
        here = start_entry(setup, None)
        _check_same(workdir, logged[0].entry, here)
        if config.loss.class_weighting != "none":
            stored = _stored_class_weights(workdir)
            setup = replace(setup, class_weights=stored) if stored else with_counts(setup)
        with counting(len(logged), "steps repeated") as count:
            losses = []
            for loss in _losses(setup, len(logged)):
                losses.append(loss)
                count()
    compared, changed = [], list[str]()
    for step, (entry, loss) in enumerate(zip(logged, losses, strict=True), 1):
        for phrase in differences(entry.entry, here):
            if phrase not in changed:
                changed.append(phrase)
        allowed = tolerance(config.model.dtype, step) if changed else 0.0
        compared.append(Compared(step, entry.loss, loss, allowed))
    return compared, changed


def _stored_class_weights(workdir: Path) -> tuple[float, ...]:
    """Returns the class weights that a run began with; none where no step is left to tell."""
    for step in reversed(checkpoint.finished(workdir)):
        with suppress(CheckpointError):
            return checkpoint.read_info(workdir, step).class_weights
    return ()


def _check_same(workdir: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuses other data or other initial weights than the run's."""
    name, old, new = "training", there.get("data") or {}, here["data"]
    if old.get(name) != new[name]:
        what = f"the run trained on {old.get(name)}, and the training split is now {new[name]}"
        fix = "restore the data, or say where they are: --config.data.root=DIR"
        raise DataError(str(workdir), what, fix)
    functions = [entry.get("transforms") or {} for entry in (there, here)]
    workdir_lib.check_same_functions(workdir, *functions)
    before, now = (entry.get("init") or "none" for entry in (there, here))
    if before != now:
        what = f"the run began with weights {before}, and there are now {now}"
        fix = "put the weights of config.init back in their place"
        raise CheckpointError(str(workdir), what, fix)


def _losses(setup: RunSetup, steps: int) -> Iterator[float]:
    """Yields the losses of the first steps, computed as a run does."""
    config, plan = setup.config, setup.plan
    rows = mesh_lib.local_rows(setup.mesh, config.train.batch_size)
    workers = config.data.num_workers
    batches = read_batches(config, setup.dataset, plan, range(steps), rows, workers)
    train_step = make_train_step(setup.step_config, plan.total, setup.mesh)
    _, state = restore_or_init(setup)
    compiling: AbstractContextManager = compile_cache.compiling("the training step", is_told=True)
    for _, on_device in mesh_lib.to_devices(batches, setup.mesh, config.train.batch_size):
        with compiling:
            state, metrics = train_step(state, *on_device[1:])
        compiling = nullcontext()
        yield metrics["loss"].item()


def render(compared: Sequence[Compared], changed: Sequence[str]) -> list[str]:
    """Returns a line for each loss that differs, what differs in the environment, and the sum."""
    lines = [str(pair) for pair in compared if pair.here != pair.there]
    lines += [f"differs: {phrase}" for phrase in changed]
    if all(pair.here == pair.there for pair in compared):
        return [*lines, f"{len(compared)} of {len(compared)} losses equal"]
    judged = [pair for pair in compared if pair.is_judged]
    equal = sum(pair.is_equal for pair in judged)
    how = " to rounding" if changed else ""
    lines.append(f"{equal} of {len(judged)} losses equal{how}")
    if rest := len(compared) - len(judged):
        lines.append(
            f"{rest} later ones are not judged: on what differs above, training amplifies rounding"
        )
    return lines
