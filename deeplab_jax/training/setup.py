"""The start of a run: its facts, gathered once, checked once, compared between all hosts once.

`gather` reads everything that decides a run and changes nothing. `claim` locks the work directory.
`restore_or_init` returns the state that training starts from.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from deeplab_jax import checkpoint
from deeplab_jax.config import Config, flatten, freeze, is_local, warnings
from deeplab_jax.data import Dataset, open_dataset
from deeplab_jax.distributed import hosts
from deeplab_jax.distributed import mesh as mesh_lib
from deeplab_jax.distributed.shared_dir import check_shared
from deeplab_jax.evaluation import label_counts
from deeplab_jax.models import DeepLabV3Plus, build_model
from deeplab_jax.training import workdir as workdir_lib
from deeplab_jax.training.bad_samples import leave_out
from deeplab_jax.training.init_weights import check_init, load_init
from deeplab_jax.training.optimizer import build_optimizer
from deeplab_jax.training.plan import Plan, make_plan
from deeplab_jax.training.state import State, init_state, restore_state
from deeplab_jax.utils import compile_cache
from deeplab_jax.utils.places import as_place


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
      step: the latest saved step; None for a new run.
      saved: the description of that step; None for a new run.
      notes: a line for each setting that is legal but probably a mistake.
      check_lock: raises ResourceError if the work directory's lock was lost; set by `claim`.
    """

    config: Config
    workdir: Path
    dataset: Dataset
    validation: Dataset
    plan: Plan
    mesh: Mesh
    model: DeepLabV3Plus
    step: int | None
    saved: checkpoint.Info | None
    notes: tuple[str, ...] = ()
    check_lock: Callable[[], None] = lambda: None

    @property
    def start(self) -> int:
        """Optimiser steps done before."""
        return self.step or 0

    @property
    def is_evaluation_owed(self) -> bool:
        """Whether the run stopped or failed while evaluating its latest step."""
        is_evaluated = self.saved is None or self.saved.metrics is not None
        return not is_evaluated and self.plan.is_eval_due(self.start)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return self.start >= self.plan.total and not self.is_evaluation_owed

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
        )


def gather(config: Config | ConfigDict, workdir: str | Path) -> RunSetup:
    """Returns what a run in `workdir` is; leaves nothing there and reads no array.

    Raises:
      ConfigError: a value cannot be used, or differs from the continued run's or between hosts; or
        hosts do not see `workdir`.
      DataError: a data set cannot be used.
      CheckpointError: the checkpoint or backbone that the run starts from cannot be used.
      ResourceError: a host cannot write to `workdir`.
    """
    with hosts.sync_errors():
        path = as_place(workdir)
    check_shared(path, [checkpoint.folder_of(path)])
    with hosts.agreement() as facts:
        facts |= hosts.software()
        frozen = freeze(config)
        facts |= {f"config.{k}": v for k, v in flatten(frozen).items() if not is_local(k)}
        setup = _look(frozen, path)
        facts["training data"] = setup.dataset.fingerprint()
        facts["validation data"] = setup.validation.fingerprint()
        facts["last saved step"] = setup.step
    return setup


def _look(config: Config, workdir: Path) -> RunSetup:
    """Returns the setup as this host sees it."""
    data, num_classes = config.data, config.model.num_classes
    dataset = open_dataset(data, num_classes, data.train_split)
    validation = open_dataset(data, num_classes, data.val_split)
    mesh, model = mesh_lib.mesh_of(config), build_model(config.model)
    notes, saved = warnings(config), None
    step = checkpoint.latest_step(workdir)
    if step is None:
        notes += check_init(config, dataset.class_names)
    else:
        saved = workdir_lib.read_run(workdir, step, config)
        if not data.max_bad_samples:  # otherwise `claim` does, without the bad samples
            workdir_lib.check_same_data(workdir, saved, dataset)
    if jax.config.read("jax_enable_x64") and config.model.dtype != "float64":
        note = "JAX_ENABLE_X64 is set: what is drawn at random, such as dropout, is not what a run"
        notes.append(f"{note} without it draws. Unset it, unless config.model.dtype is float64.")
    plan = make_plan(config, len(dataset))
    return RunSetup(
        config, workdir, dataset, validation, plan, mesh, model, step, saved, tuple(notes)
    )


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
        if limit:
            dataset = leave_out(setup.dataset, limit, setup.workdir, setup.step is not None)
            if setup.saved:
                workdir_lib.check_same_data(setup.workdir, setup.saved, dataset)
            plan = make_plan(setup.config, len(dataset))
            setup = dataclasses.replace(setup, dataset=dataset, plan=plan)
        with hosts.sync_errors():
            workdir_lib.write_config(setup.workdir, setup.config)
        if not setup.is_done:
            setup = dataclasses.replace(setup, notes=(*setup.notes, *_label_notes(setup)))
        yield setup


def _label_notes(setup: RunSetup) -> list[str]:
    """Returns what the masks' counts say against training or evaluating on them."""
    notes = []
    for dataset in dict.fromkeys((setup.dataset, setup.validation)):
        pixels = label_counts.count_labels(dataset, setup.workdir)
        is_training = dataset is setup.dataset
        notes += label_counts.warnings(pixels, dataset, setup.config.data, is_training)
    return notes


def restore_or_init(setup: RunSetup) -> State:
    """Returns the state of the latest saved step, or the initial state of a new run.

    Raises:
      CheckpointError: a checkpoint does not fit, or is damaged.
    """
    config, plan, mesh = setup.config, setup.plan, setup.mesh
    with hosts.sync_errors():
        if setup.step is not None:
            state = restore_state(setup.workdir, setup.step, config, mesh)
            if setup.step < plan.total:
                print(f"continuing at step {setup.step} of {plan.total}", flush=True)
            return state
        optimizer, _ = build_optimizer(config.train, plan.total)
        # On a processor, optimising these hundreds of small draws takes longer than running them.
        options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        init = jax.jit(
            lambda: init_state(setup.model, optimizer, config.seed),
            out_shardings=mesh_lib.replicated(mesh),
            compiler_options=options,
        )
        with compile_cache.without_alarms():
            state = init()
        return load_init(state, config)
