"""The training run: from a configuration to a work directory with checkpoints and a log.

<workdir>/config.json    the resolved configuration, for people
<workdir>/log.jsonl      see `progress.JsonLog`
<workdir>/checkpoints/   the latest and the best step
"""

import hashlib
import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from deeplab_jax import checkpoint
from deeplab_jax.config import Config
from deeplab_jax.data import Dataset, open_dataset
from deeplab_jax.distributed import hosts
from deeplab_jax.distributed import mesh as mesh_lib
from deeplab_jax.distributed.replicas import Replicas
from deeplab_jax.errors import DataError, Interrupted, NumericError, ReaderError, ResourceError
from deeplab_jax.evaluation.evaluator import Evaluator
from deeplab_jax.inference.protocol import read_protocol
from deeplab_jax.models import build_model
from deeplab_jax.training import workdir as workdir_lib
from deeplab_jax.training.bad_samples import leave_out
from deeplab_jax.training.init_weights import check_init, load_init
from deeplab_jax.training.log import Display, JsonLog, Speed
from deeplab_jax.training.optimizer import build_optimizer
from deeplab_jax.training.plan import Plan, make_plan, read_batches
from deeplab_jax.training.signals import interrupted, stop_signals
from deeplab_jax.training.state import State, eval_variables, init_state
from deeplab_jax.training.step import make_train_step

_FAILED = 255  # a host's vote to save and end, as it cannot go on; others are signals' numbers


def train(config: Config, workdir: str | Path) -> dict[str, Any]:
    """Trains until the plan is done, continuing what `workdir` already holds.

    Which samples, augmentation and dropout a step sees is a function of (seed, step); so an
    interrupted run that is continued on the same topology ends bit for bit where an uninterrupted
    one does.

    Args:
      config: the run's configuration.
      workdir: created if missing.

    Returns:
      {"step": of the plan's end, "params_sha256": of the final parameters}.

    Raises:
      ConfigError: a value cannot be used, or differs from the run's that is being continued; or
        another process trains in `workdir`.
      DataError: a data set or sample cannot be used; the state was saved.
      NumericError: the loss or a gradient is not finite, or devices no longer hold the same state;
        nothing was saved since.
      Interrupted: Ctrl-C, SIGTERM, or the reader of the output has gone; the state was saved.
      ReaderError: a thread or process that reads samples died or hangs; the state was saved.
      ResourceError: a checkpoint could not be written, or another host is gone.
    """
    with ExitStack() as held:
        held.enter_context(hosts.watched(workdir))
        run, state = _begin(config, workdir, held)
        if run.is_done:
            print(
                f"already finished: {run.workdir} holds step {run.start} of {run.plan.total}",
                flush=True,
            )
            # A kill may have cut the end of the log off.
            return log_end(JsonLog(run.log_path, run.start), state)
        with stop_signals() as stop:
            return run.go(state, stop)


def _begin(config: Config, workdir: str | Path, held: ExitStack) -> tuple["Run", State]:
    """Returns the run and its state where it starts; what is wrong with either is raised here.

    Args:
      config: as of `train`.
      workdir: as of `train`.
      held: takes the lock.
    """
    workdir = workdir_lib.agree(config, workdir)
    dataset, validation, is_begun = _open_data(config, workdir)
    max_bad_samples = config.data.max_bad_samples
    if max_bad_samples:  # what it finds is written there
        with hosts.sync_errors():
            held.enter_context(workdir_lib.lock(workdir))
        dataset = leave_out(dataset, max_bad_samples, workdir, is_begun)
    with hosts.sync_errors():
        plan = make_plan(config, len(dataset))
        mesh = mesh_lib.mesh_of(config)
        notes = warnings(config)
        if is_begun:
            workdir_lib.check_continuation(workdir, config, dataset)
        else:
            notes += check_init(config, dataset.class_names)
        if not max_bad_samples:  # a start that is refused leaves no folder behind
            held.enter_context(workdir_lib.lock(workdir))
        workdir_lib.write_config(
            workdir, config
        )  # an unusable place shows before anything compiles
    for warning in notes:
        print(f"warning: {warning}", flush=True)
    with hosts.sync_errors():
        state = restore_or_init(config, workdir, plan, mesh)
        run = Run(config, workdir, plan, mesh, dataset, validation, int(state["step"]))
    if not run.is_done:
        print(
            f"{config.name}: {len(dataset)} training and {len(validation)} validation images, "
            f"{config.model.num_classes} classes, {plan.total} steps of {config.train.batch_size}, "
            f"{mesh.size} x {jax.default_backend()}, work directory {workdir}",
            flush=True,
        )
    return run, state


def _open_data(config: Config, workdir: Path) -> tuple[Dataset, Dataset, bool]:
    """Returns both splits, and whether the run has begun: the same on all hosts."""
    data, num_classes = config.data, config.model.num_classes
    with hosts.sync_errors():
        dataset = open_dataset(data, num_classes, data.train_split)
        validation = open_dataset(data, num_classes, data.val_split)
        latest = checkpoint.latest_step(workdir)
    hosts.require_equal(
        {
            "training data": dataset.fingerprint(),
            "validation data": validation.fingerprint(),
            "last saved step": latest,
        }
    )
    return dataset, validation, latest is not None


class Run:
    """One process's part of a run, between its start and its exit."""

    def __init__(
        self,
        config: Config,
        workdir: Path,
        plan: Plan,
        mesh: Mesh,
        dataset: Dataset,
        validation: Dataset,
        start: int,
    ):
        self.config, self.workdir, self.plan, self.mesh = config, workdir, plan, mesh
        self.dataset, self.start = dataset, start
        self.is_evaluation_owed = is_evaluation_owed(workdir, plan, start)  # the run stopped in it
        self.is_done = start >= plan.total and not self.is_evaluation_owed
        self.log_path = workdir / "log.jsonl" if hosts.is_primary() else None
        model = build_model(config.model)
        self.train_step = make_train_step(config, plan.total, mesh)
        protocol = read_protocol(config.eval)
        self.evaluate = Evaluator(model, validation, config.eval.resize_base, protocol)
        is_begun = checkpoint.latest_step(workdir) is not None
        self.info = checkpoint.Info(
            kind="run",
            config=config,
            class_names=dataset.class_names,
            palette=dataset.palette,
            counters=checkpoint.read_info(workdir).counters if is_begun else {},
            data=dataset.fingerprint(),
        )
        self.replicas = Replicas(mesh)
        self.poll = hosts.Poll()
        self.failure: Exception | None = None  # of this host's reading
        self.agreed = 0  # what all hosts stop for: a signal's number, or _FAILED
        self.speed = Speed(config.train.batch_size)
        self.pending: deque = deque()  # (step, row ids, metrics) whose values are not yet read

    def go(self, state: State, stop: list[int]) -> dict[str, Any]:
        """Trains to the end or to the first reason to stop; both leave by `_finish`."""
        with hosts.sync_errors():
            self.log = JsonLog(self.log_path, self.start)
        # A reader that leaves, as in `... | head`, stops the run as a signal does.
        on_gone = partial(stop.append, int(signal.SIGPIPE))
        self.display = Display(self.plan.total, self.start, on_gone)
        with self.display.live(), checkpoint.Saver(self.workdir) as self.saver:
            try:
                if self.config.mesh.check_every_steps:  # they may have read different files
                    self._compare_devices(self.start, state)
                state, reason = self._steps(state, stop)
                return self._finish(state, reason)
            finally:
                self.log.close()

    def _steps(self, state: State, stop: list[int]) -> tuple[State, Exception | None]:
        """Runs steps; returns the state after the last one and why it was the last."""
        batches = mesh_lib.to_devices(self._batches(), self.mesh, self.config.train.batch_size)
        if self.is_evaluation_owed:
            try:
                self._evaluate(self.start, state, stop)
            except Exception as error:
                return state, error
            if self.agreed:
                return state, interrupted(self.agreed, self.start, self.plan.total)
        for step in range(self.start + 1, self.plan.total + 1):
            try:
                batch, on_device = self._next(batches, is_first=step == self.start + 1)
            except Exception as error:  # ours or not: the state is whole
                return state, error
            state, metrics = self.train_step(state, *on_device[1:])
            self.pending.append((step, batch.index, metrics))
            try:
                self._read_metrics(keep=1)  # one step late: the device is never kept waiting
                self._do_what_is_due(step, state, stop)
            except Exception as error:
                return state, error
            self._agree(stop)
            if self.agreed == _FAILED:
                return state, hosts.synced_error(self.failure)
            if self.agreed:
                return state, interrupted(self.agreed, step, self.plan.total)
        return state, None

    def _next(self, batches: Iterator, is_first: bool) -> tuple[Any, Any]:
        """Returns the next batch, as it was read and on the devices."""
        began = time.perf_counter()
        if is_first:  # hosts cannot vote yet
            with hosts.sync_errors():
                got: Any = next(batches, None)
                if self.failure is not None:
                    raise self.failure
        else:
            got = next(batches)
        self.speed.waited(time.perf_counter() - began)
        return got

    def _agree(self, stop: list[int]) -> None:
        """Lets all hosts know what one of them must stop for; they learn it a step later.

        The batches that are read ahead last until then when reading is what failed.
        """
        if not self.agreed:
            own = stop[0] if stop else 0
            self.agreed = self.poll.ask(own if self.failure is None else _FAILED)

    def _batches(self) -> Iterator:
        """Yields batches of this host's rows; of several hosts, a failure only ends them."""
        config = self.config
        rows = mesh_lib.local_rows(self.mesh, config.train.batch_size)
        steps = range(self.start, self.plan.total)
        workers = config.data.num_workers
        try:
            yield from read_batches(config, self.dataset, self.plan, steps, rows, workers)
        except Exception as error:
            if not hosts.are_multiple():
                raise
            self.failure = error

    def _read_metrics(self, keep: int = 0) -> None:
        """Reads all but the newest `keep` steps' metrics, logs them, and checks them."""
        while len(self.pending) > keep:
            step, index, metrics = self.pending.popleft()
            values = {name: value.item() for name, value in jax.device_get(metrics).items()}
            self.speed.finished_step()
            if not values.pop("is_finite"):
                raise self._not_finite(step, index, values)
            is_last = step == self.plan.total
            if step % self.config.log.every_steps == 0 or is_last:
                values |= self.speed.read()
                self.log.write("train", step, values)
                self.display.step(step, values, is_last)

    def _not_finite(self, step: int, index: np.ndarray, values: dict[str, float]) -> NumericError:
        told = hosts.all_gather([self.dataset.ids[i] for i in index])
        ids = ", ".join(list(dict.fromkeys(name for own in told for name in own))[:8])
        self.saver.wait()  # a save may be under way
        return NumericError(
            str(self.workdir),
            f"step {step} is not finite: loss {values['loss']}, gradient norm "
            f"{values['grad_norm']}, else the new weights; lr {values['lr']:.3g}, images {ids}",
            f"lower config.train.lr or look at these images; {self._kept()}",
        )

    def _do_what_is_due(self, step: int, state: State, stop: list[int]) -> None:
        """Compares devices, evaluates and saves after some steps."""
        every = self.config.mesh.check_every_steps
        if not self.plan.is_save_due(step):
            if every and step % every == 0:
                self._compare_devices(step, state)
            return
        self._read_metrics()  # a state that is not finite is never saved
        metrics = self._evaluate(step, state, stop) if self.plan.is_eval_due(step) else None
        self._save(step, state, metrics)
        self.speed.pause()

    def _evaluate(self, step: int, state: State, stop: list[int]) -> dict[str, float] | None:
        """Evaluates and logs; None when asked to stop, in which case the continuation does it."""
        result = self.evaluate(eval_variables(state), should_stop=lambda: bool(stop))
        if result is None:
            self.agreed = max(hosts.all_gather(stop[0] if stop else 0))
            return None
        summary = result.summary()
        scores = {key: summary[key] for key in ("mean_iou", "pixel_accuracy", "iou")}
        self.log.write("eval", step, scores)
        self.display.say(f"step {step}: validation mean IoU {100 * result.mean_iou:.2f} %")
        return {"mean_iou": result.mean_iou}

    def _compare_devices(self, step: int, state: State) -> None:
        """Refuses to go on, or to save, when devices no longer hold the same state."""
        self.replicas.check(state, step, self._kept())

    def _kept(self) -> str:
        last = checkpoint.latest_step(self.workdir)
        return f"the last saved step, {last}, is kept" if last else "nothing was saved before"

    def _save(self, step: int, state: State, metrics: dict[str, float] | None = None) -> None:
        if self.config.mesh.check_every_steps:
            self._compare_devices(step, state)
        items = {name: item for name, item in state.items() if name != "step"}
        self.saver.save(step, items, self.info, metrics)

    def _finish(self, state: State, reason: Exception | None) -> dict[str, Any]:
        """The one exit: saves what is worth saving, waits for the disk, then says why."""
        if _can_save(reason):
            self._read_metrics()
            step = int(state["step"])
            if step > self.start:
                self._save(step, state)
        self.saver.wait()
        if reason is not None:
            raise reason
        self.display.say(f"done: {self.plan.total} steps")
        return log_end(self.log, state)


def _can_save(reason: Exception | None) -> bool:
    """Tells whether the state is whole, and all hosts are here to save it."""
    if reason is None or isinstance(reason, Interrupted | DataError | ReaderError):
        return True  # hosts have agreed in these
    lost = NumericError | ResourceError | jax.errors.JaxRuntimeError
    return not hosts.are_multiple() and not isinstance(reason, lost)


def is_evaluation_owed(workdir: Path, plan: Plan, start: int) -> bool:
    """Tells whether the run stopped in, or failed in, the evaluation of its latest step."""
    is_due = start > 0 and plan.is_eval_due(start)
    return is_due and checkpoint.read_info(workdir).metrics is None


def restore_or_init(config: Config, workdir: Path, plan: Plan, mesh: Mesh) -> State:
    """Returns the state of the latest saved step, or that before the first.

    Raises:
      CheckpointError: a checkpoint does not fit.
    """
    model = build_model(config.model)
    optimizer, _ = build_optimizer(config.train, plan.total)
    whole = mesh_lib.replicated(mesh)

    def init() -> State:
        return init_state(model, optimizer, config.seed)

    step = checkpoint.latest_step(workdir)
    if step is not None:
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
            jax.eval_shape(init),
        )
        del abstract["step"]
        state = checkpoint.restore(workdir, step, abstract)
        if step < plan.total:
            print(f"continuing at step {step} of {plan.total}", flush=True)
        # Not `device_put`, which compares the value over all hosts: one may have failed before.
        first = jax.make_array_from_callback((), whole, lambda _: np.int32(step))
        return {"step": first, **state}
    # Hundreds of small draws: optimising them takes a processor longer than running them.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    state = jax.jit(init, out_shardings=whole, compiler_options=options)()
    return load_init(state, config)


def warnings(config: Config) -> list[str]:
    """Returns what is legal but probably not meant."""
    stride = config.model.output_stride
    height, width = (-(-side // stride) for side in config.data.crop_size)
    rate = max(config.model.atrous_rates)
    if min(height, width) > rate:
        return []
    crop = "x".join(map(str, config.data.crop_size))
    return [
        f"crop {crop} gives a {height}x{width} feature map, not larger than the atrous rate {rate}:"
        " some taps of that rate never train, and images larger than the crop would use them at"
        f" random. Use crops above {rate * stride} pixels a side, or config.eval.resize_base no"
        " larger than the crop."
    ]


def log_end(log: JsonLog, state: State) -> dict[str, Any]:
    """Logs and prints the end of a run, and returns what `train` does."""
    step, digest = int(state["step"]), tree_hash(state["params"])
    log.write("end", step, {"params_sha256": digest})
    print(f"parameters {digest[:16]}", flush=True)
    return {"step": step, "params_sha256": digest}


def tree_hash(tree: Any) -> str:
    """Returns the SHA-256 of all leaves' names and bytes."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return digest.hexdigest()
