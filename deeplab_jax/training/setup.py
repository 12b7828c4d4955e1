"""The start of a run: its facts, gathered once, checked once, compared between all hosts once.

`gather` reads everything that decides a run and changes nothing. `claim` locks the work directory.
`restore_or_init` returns the state that training starts from, and sets aside damaged steps.
"""

import dataclasses
import difflib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from deeplab_jax import checkpoint
from deeplab_jax.config import Config, flatten, freeze, is_local, warnings
from deeplab_jax.data import Dataset
from deeplab_jax.data.augment.chain import check_transforms
from deeplab_jax.distributed import hosts
from deeplab_jax.distributed import mesh as mesh_lib
from deeplab_jax.distributed.shared_dir import check_shared
from deeplab_jax.errors import ConfigError, DamagedError, clip
from deeplab_jax.evaluation import label_counts
from deeplab_jax.models import DeepLabV3Plus, build_model
from deeplab_jax.training import workdir as workdir_lib
from deeplab_jax.training.bad_samples import leave_out
from deeplab_jax.training.extend.given import Given
from deeplab_jax.training.init_weights import check_init, init_fingerprint, load_init
from deeplab_jax.training.log.curves import check_curves
from deeplab_jax.training.losses import check_unused, class_weights
from deeplab_jax.training.plan import Plan, make_plan
from deeplab_jax.training.state import State, draw_state, restore_state, with_average
from deeplab_jax.utils import environment
from deeplab_jax.utils.places import as_place

_NOTHING = Given()


@dataclasses.dataclass(frozen=True)
class RunSetup:
    """The facts of a run before its first step, the same on all hosts.

    Attributes:
      config: the checked configuration.
      workdir: the work directory.
      dataset: the training split, without samples that were left out.
      validation: the validation split.
      plan: length, and steps of evaluations and saves.
      mesh: the devices.
      model: the network, for initial weights and evaluation.
      begin: the step that the run continues, and newer ones that it sets aside.
      is_asked: whether the user named that step, so that no other is taken.
      is_restart: whether the user lets a run begin anew where no step is good.
      notes: a line for each setting that is legal but probably a mistake.
      functions: fingerprints of the user's transforms, by name.
      check_lock: raises ResourceError if the work directory's lock was lost; set by `claim`.
      class_weights: of the loss, where the run computes them from its labels; set by `claim`.
      given: what a caller in Python brings.
    """

    config: Config
    workdir: Path
    dataset: Dataset
    validation: Dataset
    plan: Plan
    mesh: Mesh
    model: DeepLabV3Plus
    begin: workdir_lib.Start
    is_asked: bool = False
    is_restart: bool = False
    notes: tuple[str, ...] = ()
    functions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    check_lock: Callable[[], None] = lambda: None
    class_weights: tuple[float, ...] = ()
    given: Given = _NOTHING

    @property
    def step_config(self) -> Config:
        """The configuration of the training step, with numbers for class weights."""
        return class_weights.resolved(self.config, self.class_weights)

    @property
    def step(self) -> int | None:
        """The saved step that is continued; None for a new run."""
        return self.begin.step

    @property
    def saved(self) -> checkpoint.Info | None:
        """The description of that step; None for a new run."""
        return self.begin.saved

    @property
    def start(self) -> int:
        """Optimiser steps done before."""
        return self.step or 0

    @property
    def is_evaluation_owed(self) -> bool:
        """Whether the run stopped or failed while evaluating its latest step."""
        is_evaluated = self.saved is None or self.saved.metrics is not None
        return not is_evaluated and (bool(self.stopped) or self.plan.is_eval_due(self.start))

    @property
    def stopped(self) -> str:
        """Why the run has ended before its plan; "" if not, or if the user names the step."""
        return self.saved.stopped if self.saved and not self.is_asked else ""

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        is_over = self.start >= self.plan.total or bool(self.stopped)
        return is_over and not self.is_evaluation_owed

    @property
    def info(self) -> checkpoint.Info:
        """The description of the steps that this run saves."""
        return checkpoint.Info(
            kind="run",
            config=self.config,
            class_names=self.dataset.class_names,
            palette=self.dataset.palette,
            counters=self.saved.counters if self.saved else {},
            data=self.dataset.fingerprint(),
            left_out=self.saved.left_out if self.saved else (),
            losses=self.saved.losses if self.saved else (),
            functions=dict(self.functions),
            class_weights=self.class_weights,
            evaluations=self.saved.evaluations if self.saved else (),
            given=self.given.names,
        )


def describe(setup: RunSetup) -> str:
    """Returns a run in one line: data, length, devices, class weights, work directory."""
    config, plan, weights = setup.config, setup.plan, ""
    if setup.class_weights:
        pairs = sorted(zip(setup.class_weights, setup.dataset.class_names, strict=True))
        ends = (f"{weight:.3g} ({name})" for weight, name in (pairs[0], pairs[-1]))
        weights = f" class weights {' to '.join(ends)},"
    return (
        f"{config.name}: {len(setup.dataset)} training and {len(setup.validation)} validation"
        f" images, {config.model.num_classes} classes, {plan.total} steps of"
        f" {config.train.batch_size}, {setup.mesh.size} x {jax.default_backend()},{weights}"
        f" work directory {setup.workdir}"
    )


def gather(
    config: Config | ConfigDict,
    workdir: str | Path,
    step: int | str | None = None,
    restart: bool = False,
    given: Given = _NOTHING,
) -> RunSetup:
    """Returns what a run in `workdir` is; leaves nothing there and reads no array.

    `step` and `restart` are those of `workdir.choose`.

    Raises:
      ConfigError: a value cannot be used, or differs from the continued run's or between hosts; or
        hosts do not see `workdir`, or it holds a link in place of a folder.
      DataError: a data set cannot be used.
      CheckpointError: the checkpoint or backbone that the run starts from cannot be used.
      ResourceError: a host cannot write to `workdir`.
    """
    with hosts.sync_errors():
        path = as_place(workdir)
        checkpoint.check_link(path)
    check_shared(path, [checkpoint.folder_of(path)])
    with hosts.agreement() as facts:
        facts |= hosts.software()
        frozen = freeze(config)
        facts |= {f"config.{k}": v for k, v in flatten(frozen).items() if not is_local(k)}
        setup = _look(frozen, path, step, restart, given)
        facts["given"] = given.names
        facts["training data"] = setup.dataset.fingerprint()
        facts["validation data"] = setup.validation.fingerprint()
        facts["transforms"] = dict(setup.functions)
        facts["last good step"] = setup.step
        facts["damaged steps"] = sorted(setup.begin.damaged)
        facts["later steps"] = setup.begin.replaced
    return setup


def _look(
    config: Config, workdir: Path, step: int | str | None, restart: bool, given: Given
) -> RunSetup:
    """Returns the setup as this host sees it."""
    check_curves(config.log, workdir)
    if given.loss is not None:
        check_unused(config)
    begin = workdir_lib.choose(workdir, config, step, restart)
    # Before the data are opened, which a run with its caller's own data does not have in files.
    changes = [] if begin.saved is None else given.check(workdir, begin.saved.given)
    dataset, validation = given.open(config)
    check_best(config.checkpoint.best, validation)
    mesh, model = mesh_lib.mesh_of(config), build_model(config.model)
    notes = warnings(config) + changes
    functions = check_transforms(dataset, config.data, given.transform)
    if begin.saved is not None:
        workdir_lib.check_same_functions(workdir, begin.saved.functions, functions)
    for name in (name for name, digest in functions.items() if not digest):
        note = f"the source of the transform {name} cannot be read, so a continued run cannot tell"
        notes.append(f"{note} whether it has changed")
    if begin.saved is None:
        notes += check_init(config, dataset.class_names)
    elif not config.data.max_bad_samples:  # otherwise `claim` does, without the bad samples
        workdir_lib.check_same_data(workdir, begin.saved, dataset)
    if jax.config.read("jax_enable_x64") and config.model.dtype != "float64":
        note = "JAX_ENABLE_X64 is set: what is drawn at random, such as dropout, is not what a run"
        notes.append(f"{note} without it draws. Unset it, unless config.model.dtype is float64.")
    plan = make_plan(config, len(dataset))
    return RunSetup(
        config, workdir, dataset, validation, plan, mesh, model, begin,
        step is not None, restart, tuple(notes), functions, given=given,
    )  # fmt: skip


def check_best(name: str, validation: Dataset, pixels: np.ndarray | None = None) -> None:
    """Refuses a `checkpoint.best` of a class that is not there, or has none of the `pixels`."""
    kind, _, wanted = name.partition("/")
    if kind != "iou":
        return
    names = validation.class_names
    if wanted not in names:
        near = difflib.get_close_matches(wanted, names, 1)
        what = f"there is no class {wanted!r} among {', '.join(map(clip, names[:10]))}"
        fix = f"did you mean iou/{near[0]}?" if near else f"name one, such as iou/{names[-1]}"
        raise ConfigError("config.checkpoint.best", what, fix)
    if pixels is not None and not pixels[names.index(wanted)]:
        what = f"class {wanted} has no pixel in the masks of split {validation.split}"
        raise ConfigError("config.checkpoint.best", what, "name another score, such as mean_iou")


@contextmanager
def claim(setup: RunSetup) -> Iterator[RunSetup]:
    """Holds the work directory while the block runs; yields the setup without bad samples.

    Bad samples are searched for and labels are counted here, which takes a while the first time;
    the directory then holds what was found.

    Raises:
      ConfigError: another process trains there.
      DataError: more samples are bad than may be, or a mask cannot be used.
      ResourceError: `config.json` cannot be written there.
    """
    limit = setup.config.data.max_bad_samples
    with ExitStack() as stack:
        with hosts.sync_errors():
            check_lock = stack.enter_context(workdir_lib.lock(setup.workdir))
            setup = dataclasses.replace(setup, check_lock=check_lock)
            _check_unchanged(setup)
        if limit:
            dataset = leave_out(setup.dataset, limit, setup.workdir, setup.step is not None)
            if setup.saved:
                workdir_lib.check_same_data(setup.workdir, setup.saved, dataset)
            plan = make_plan(setup.config, len(dataset))
            setup = dataclasses.replace(setup, dataset=dataset, plan=plan)
        with hosts.sync_errors():
            workdir_lib.write_config(setup.workdir, setup.config)
        if not setup.is_done:
            setup = with_counts(setup)
        yield setup


def _check_unchanged(setup: RunSetup) -> None:
    """Refuses to go on where another run, which held the lock, has saved meanwhile."""
    begin = setup.begin
    known = (begin.step, *begin.damaged, *begin.replaced)
    latest = max((step for step in known if step is not None), default=None)
    if checkpoint.latest_step(setup.workdir) != latest:
        what = "another process has trained here in the meantime"
        raise ConfigError(str(setup.workdir), what, "repeat the command to go on from there")


def note_start(setup: RunSetup, began: float) -> None:
    """Notes in `env.json` what a run goes on with, as restored, and that it `began`, Unix seconds.

    Raises:
      ResourceError: it cannot be written.
    """
    with hosts.sync_errors():
        if hosts.is_primary():
            workdir_lib.add_start(setup.workdir, start_entry(setup, began))


def start_entry(setup: RunSetup, began: float | None) -> dict[str, Any]:
    """Returns what `env.json` says of a start; `began`, Unix seconds, is now by default."""
    data = {"training": setup.dataset, "validation": setup.validation}
    return {
        "began": round(time.time() if began is None else began, 3),
        "step": setup.start,
        "code": hosts.code_version(),
        **environment.describe(),
        "devices": hosts.devices(),
        "data": {name: dataset.fingerprint() for name, dataset in data.items()},
        "init": init_fingerprint(setup.config) if setup.step is None else None,
        "transforms": dict(setup.functions),
        "given": setup.given.names,
    }


def with_counts(setup: RunSetup) -> RunSetup:
    """Returns the setup with what follows from the masks' counts: class weights, and notes.

    A continued run keeps the class weights it began with.
    """
    notes = list(setup.notes)
    weights: tuple[float, ...] = ()
    for dataset in dict.fromkeys((setup.dataset, setup.validation)):
        counts = label_counts.count_all(dataset, setup.workdir)
        is_training = dataset is setup.dataset
        if is_training and (kind := setup.config.loss.class_weighting) != "none":
            weights = class_weights.compute(kind, counts)
        pixels, data = counts.pixels, setup.config.data
        notes += label_counts.warnings(pixels, dataset, data, is_training)
        if dataset is setup.validation:
            check_best(setup.config.checkpoint.best, dataset, pixels)
    if weights and setup.saved and setup.saved.class_weights not in ((), weights):
        weights = setup.saved.class_weights
        notes.append(
            f"the masks of split {setup.dataset.split} have changed since the run began; it keeps"
            " its class weights. Restore the masks, or choose another --workdir"
        )
    return dataclasses.replace(setup, notes=tuple(notes), class_weights=weights)


def restore_or_init(setup: RunSetup) -> tuple[RunSetup, State]:
    """Returns the setup and its state: that of the step to continue, or a new run's initial one.

    Where that step's arrays are damaged, the newest older step that is good takes its place, unless
    the user asked for it. Damaged steps, and those that the user goes back behind, are renamed once
    a state is there.

    Raises:
      CheckpointError: a checkpoint does not fit, or no step is good.
      ConfigError: the run is to begin anew, and a step is good.
    """
    state = None
    while setup.step is not None and state is None:
        try:
            with hosts.sync_errors():
                state = restore_state(setup.workdir, setup.step, setup.config, setup.mesh)
        except DamagedError as error:
            if setup.is_asked:
                raise
            place = str(checkpoint.step_path(setup.workdir, setup.step))
            host = error.where.removeprefix(place)  # " on HOST" where not all have the error
            setup = _older(setup, clip(error.what, 140) + host)
    if state is None:
        state = _init(setup)
    elif setup.is_restart:
        what = f"step {setup.step} of {setup.workdir} is good, and would be lost"
        raise ConfigError("--restart", what, "leave it out, or choose another --workdir")
    with hosts.sync_errors():
        if hosts.is_primary():
            _set_aside(setup)
    return setup, state


def _older(setup: RunSetup, reason: str) -> RunSetup:
    """Returns the setup that continues the newest good step before the damaged one."""
    assert setup.step is not None
    damaged = {**setup.begin.damaged, setup.step: reason}
    with hosts.agreement() as facts:
        begin = workdir_lib.choose(
            setup.workdir, setup.config, restart=setup.is_restart, damaged=damaged
        )
        facts["last good step"] = begin.step
        if begin.saved is not None:
            workdir_lib.check_same_data(setup.workdir, begin.saved, setup.dataset)
        else:
            check_init(setup.config, setup.dataset.class_names)
    return dataclasses.replace(setup, begin=begin)


def _set_aside(setup: RunSetup) -> None:
    """Renames the steps after the one that is continued; prints a line for each."""
    then = "beginning anew" if setup.step is None else f"going on from step {setup.step}"
    for step, reason in setup.begin.damaged.items():
        place = checkpoint.set_aside(setup.workdir, step, "damaged")
        where = checkpoint.step_path(setup.workdir, step)
        print(f"warning: {where}: {reason}; it is now {place.name}, {then}", flush=True)
    for step in setup.begin.replaced:
        place = checkpoint.set_aside(setup.workdir, step, "replaced")
        print(f"step {step} is now {place}: {then}", flush=True)


def _init(setup: RunSetup) -> State:
    """Returns the initial state of a new run."""
    config = setup.config
    with hosts.sync_errors():
        state = draw_state(setup.model, config, setup.plan.total, setup.mesh)
        return with_average(load_init(state, config), config.train, mesh_lib.replicated(setup.mesh))
