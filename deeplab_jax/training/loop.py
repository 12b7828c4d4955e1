"""The training run: from a configuration to a work directory with checkpoints and a log."""

import dataclasses
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from deeplab_jax import checkpoint
from deeplab_jax.config import Config
from deeplab_jax.data import TrainBatch
from deeplab_jax.data.augment.functions import Function
from deeplab_jax.data.sources.given import GivenData
from deeplab_jax.distributed import compiler_faults, hosts, selftest_record
from deeplab_jax.distributed import mesh as mesh_lib
from deeplab_jax.distributed.replicas import Replicas
from deeplab_jax.errors import (
    BadStepError,
)
from deeplab_jax.training import bad_steps
from deeplab_jax.training.extend.events import Callback, Watch
from deeplab_jax.training.extend.given import Given
from deeplab_jax.training.log import (
    EARLY,
    Account,
    Curves,
    Display,
    JsonLog,
    Speed,
    peak_memory,
    read_log,
    smooth,
)
from deeplab_jax.training.losses import UserLoss
from deeplab_jax.training.plan import read_batches
from deeplab_jax.training.setup import (
    RunSetup,
    claim,
    describe,
    gather,
    note_start,
    restore_or_init,
)
from deeplab_jax.training.signals import Stop, interrupted, remembered
from deeplab_jax.training.state import (
    State,
    eval_variables,
    raw_variables,
    tree_hash,
    without_step,
)
from deeplab_jax.training.step import Metrics, make_train_step
from deeplab_jax.training.validation import Validation
from deeplab_jax.utils import compile_cache
from deeplab_jax.utils.progress import clock

_FAILED = 255  # vote of a host that cannot go on; other votes are numbers of signals


def train(
    config: Config | ConfigDict,
    workdir: str | Path,
    *,
    step: int | str | None = None,
    restart: bool = False,
    stop: Stop | None = None,
    began: float | None = None,
    train_data: GivenData | None = None,
    val_data: GivenData | None = None,
    loss: UserLoss | None = None,
    transform: Function | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, int | str]:
    """Trains until the plan is done, continuing what `workdir` already holds.

    Prints to standard output what `deeplab train` prints.

    A step's samples, augmentation and dropout are a function of (seed, step). So an interrupted run
    that is continued on the same topology ends with the same bits as an uninterrupted one.

    A step that is not what was saved is set aside as `N.damaged`, and the newest older one that is
    good is continued.

    Args:
      config: the run's configuration, of `load_recipe` or `get_config`.
      workdir: created if missing.
      step: the saved step to go back to, a number, "latest" or "best"; later ones are set aside as
        `N.replaced`. By default the latest that is good.
      restart: begin anew where steps were saved and none is good; otherwise that is an error.
      stop: what takes signals; by default SIGINT and SIGTERM are remembered from the first step on.
      began: Unix seconds from which on the run's account counts; now by default.
      train_data: data set in place of the one that `config.data` names; see `GivenData`.
      val_data: likewise for evaluations.
      loss: function in place of the recipe's loss; see `losses.build_loss`.
      transform: function of a sample, after the augmentation; see `data.augment`.
      callbacks: functions of an `Event`; see `extend.events.Callback`.

    Returns:
      {"step": the last step, "params_sha256": hash of the final parameters}, and "stopped": why,
      where the run ended before its plan.

    Raises:
      ConfigError: a value cannot be used, or differs from the continued run's; another process
        trains in `workdir`; `restart`, and a step is good; or the compiled step contains a known
        fault of this jaxlib.
      CheckpointError: what the run starts from cannot be used; or steps were saved, and none is
        good.
      DataError: a data set or sample cannot be used; the state was saved.
      NumericError: the loss, a gradient or the new state is not finite, or the loss is a spike,
        and the batch may not be left out; or devices hold different states; nothing was saved.
      TypeError: what a caller gives lacks a member, or cannot be called.
      ValueError: ids or colours of data are not as many as samples or classes.
      Interrupted: Ctrl-C, SIGTERM, or a closed pipe, as in `... | head`; the state was saved.
      ReaderError: a thread or process that reads samples died or hangs; the state was saved.
      ResourceError: a checkpoint could not be written, or another host is gone.
    """
    began = time.time() if began is None else began
    compile_cache.enable()
    given = Given(train_data, val_data, loss, transform, tuple(callbacks))
    with hosts.watched(workdir), claim(gather(config, workdir, step, restart, given)) as setup:
        for note in setup.notes:
            print(f"warning: {note}", flush=True)
        setup, state = restore_or_init(setup)
        if setup.step is not None and setup.start < setup.plan.total:
            print(f"continuing at step {setup.start} of {setup.plan.total}", flush=True)
        if setup.is_done:
            what = f"{setup.workdir} holds step {setup.start} of {setup.plan.total}"
            if setup.stopped:
                what += f", where it stopped ({setup.stopped}); --step latest goes on"
            print(f"already finished: {what}", flush=True)
            # A kill may have cut off the end of the log.
            left_out = setup.saved.left_out if setup.saved else ()
            with closing(JsonLog(_log_path(setup), setup.start, left_out)) as log:
                return log_end(log, state, setup.stopped)
        note_start(setup, began)
        notes = *given.limits(), *selftest_record.notes(setup.config), describe(setup)
        print(*notes, sep="\n", flush=True)
        with nullcontext(stop) if stop else remembered() as signals:
            return Run(setup, state, signals).go(began)


def _log_path(setup: RunSetup) -> Path | None:
    return setup.workdir / "log.jsonl" if hosts.is_primary() else None


class Run:
    """One process's part of a run, between its start and its exit.

    Attributes:
      state: state after the last finished step; None while a step, which it is donated to, runs.
      start: optimiser steps of the state that was restored last, or 0.
    """

    def __init__(self, setup: RunSetup, state: State, signals: Stop):
        """Compiles and opens nothing yet."""
        self.setup, self.config, self.plan = setup, setup.config, setup.plan
        self.state: State | None = state
        self.signals, self.stop = signals, signals.received
        signals.saved = setup.start
        self.train_step = make_train_step(
            setup.step_config, self.plan.total, setup.mesh, setup.given.loss
        )
        self.info = setup.info
        self.left_out = bad_steps.LeftOut(self.config.train, self.info.left_out, self.info.losses)
        self.start = setup.start
        self.first: int | None = None  # the first step that this process computes
        self.replicas = Replicas(setup.mesh)
        self.poll = hosts.Poll()
        self.failure: Exception | None = None  # while reading on this host
        self.agreed = 0  # vote that all hosts stop for: a signal's number, or _FAILED
        self.speed = Speed(self.config.train.batch_size)
        self.watch = Watch(
            self.config, self.plan.total, self.plan.steps_per_epoch, setup.given.callbacks,
            self.info.evaluations, setup.stopped,
        )  # fmt: skip
        self.loss: float | None = None  # smoothed
        self.values: dict[str, float] = {}  # of the last step that was read
        # (step, row ids, metrics), the metrics still on the device
        self.pending: deque[tuple[int, np.ndarray, Metrics]] = deque()

    def go(self, began: float) -> dict[str, int | str]:
        """Trains to the end, or to the first error, which is raised after the state is saved.

        `began`: Unix seconds from which on the process counts in the run's account.
        """
        # A closed pipe, as in `... | head`, stops the run as a signal does.
        on_gone = partial(self.stop.append, int(signal.SIGPIPE))
        plan = self.plan
        self.display = Display(plan.total, plan.steps_per_epoch, on_gone, peak_memory)
        setup, path = self.setup, _log_path(self.setup)
        with hosts.sync_errors():
            names, is_replaced = setup.dataset.class_names, bool(setup.begin.replaced)
            self.curves = Curves(  # before the log is cut
                self.config, path, names, self.start, is_replaced, self.display.say
            )
            self.log = JsonLog(path, self.start, self.left_out.steps)
            self.validation = Validation(setup, self.log, self.curves, self.display)
            if path is not None:  # the first host alone has the log, and writes the loss
                self.loss = self.display.recall(read_log(path))
            facts = {"batch_size": self.config.train.batch_size, "devices": hosts.devices()}
            self.account = Account(self.log, began, self.start, facts)
        self._keep(self.setup.step)
        with (
            closing(self.curves),  # after the log: metrics.csv holds its last lines
            closing(self.log),
            closing(self.account),
            self.display.live(),
            checkpoint.Saver(self.setup.workdir, self.config.checkpoint.keep) as self.saver,
        ):
            if self.config.mesh.check_every_steps:  # hosts may have read different files
                self._compare_devices(self.start)
            reason = None
            try:
                self._steps()
            except Exception as error:
                reason = error
            # Outside the handler: an error in saving must not have the reason as its cause.
            self._save_last(reason)
            self.account.close()
            at = self.start if self.state is None else int(self.state["step"])
            self.watch.ended(at, reason, self.display.say)
            if reason is not None:
                raise reason
            return log_end(self.log, self._whole(), self.watch.stopped)

    def _steps(self) -> None:
        """Runs the steps that are left, and goes back where a bad step may be left out."""
        self.account.trains()
        if self.setup.is_evaluation_owed:
            self.signals.is_orderly = True
            self._evaluate(self.start)
            self._agree()
            self._stop_if_agreed(self.start)
            self.signals.is_orderly = False
        while not self.watch.stopped:
            try:
                return self._steps_from(self.start)
            except BadStepError as bad:
                if not self.left_out.may_grow:
                    raise
                self._go_back(bad)
                self._stop_if_agreed(self.start)

    def _steps_from(self, start: int) -> None:
        """Runs the steps after `start`, each followed by the work due after it."""
        size = self.config.train.batch_size
        with closing(mesh_lib.to_devices(self._batches(start), self.setup.mesh, size)) as batches:
            for step in range(start + 1, self.plan.total + 1):
                with self.account.during("input"):
                    batch, on_device = self._next(batches, is_first=step == start + 1)
                state, self.state = self._whole(), None
                if step in self.left_out.steps:
                    self.state = without_step(state)
                else:
                    self.state, metrics = self._compute(step, state, on_device)
                    self.pending.append((step, batch.index, metrics))
                self.signals.begun(step, self.speed.step_seconds)
                # A step late, so that the device never waits; but the first is shown at once.
                self._read_metrics(keep=int(step != self.first))
                self._do_what_is_due(step)
                self._agree()
                if self.agreed:
                    self._read_metrics()
                self._stop_if_agreed(step)
                if self.watch.stopped:
                    return

    def _compute(self, step: int, state: State, on_device: Any) -> tuple[State, Metrics]:
        """Starts a step on the devices, and compiles it where it is the process's first."""
        if self.first is not None:
            return self.train_step(state, *on_device[1:])
        self.first = step
        what = "the training step"
        with (
            compiler_faults.refusing(self.setup.mesh, what),
            compile_cache.compiling(what, is_told=True),
        ):
            return self.train_step(state, *on_device[1:])

    def _keep(self, step: int | None) -> None:
        """Notes that a step is saved, or the run's start."""
        self.saved = bad_steps.Saved(step, self.loss, tuple(self.left_out.losses))

    def _go_back(self, bad: BadStepError) -> None:
        """Makes the last saved step the state, and leaves the batch of the bad one out."""
        self.saver.wait()
        step, self.loss, losses = self.saved
        self.state = None  # two states may not fit
        self.pending.clear()
        self.start = step or 0
        begin = self.setup.begin._replace(step=step, damaged={}, replaced=())
        setup = dataclasses.replace(self.setup, begin=begin, is_asked=True, is_restart=False)
        _, self.state = restore_or_init(setup)
        train, steps = self.config.train, (*self.left_out.steps, bad.step)
        with hosts.sync_errors():
            self.log.go_back(self.start, self.left_out.steps)
            self.curves.go_back(self.start)
        self.watch.go_back(self.start)
        self.left_out = bad_steps.LeftOut(train, steps, losses)
        self.log.write("rollback", bad.step, {"to": self.start, "reason": bad.reason})
        self.display.say(
            f"warning: {bad.what}; back to step {self.start}, to leave that batch out"
            f" ({len(steps)} of at most {train.max_rollbacks})"
        )
        self.speed.pause()

    def _whole(self) -> State:
        assert self.state is not None  # no step is under way
        return self.state

    def _stop_if_agreed(self, step: int) -> None:
        """Raises the error or signal that all hosts have agreed to stop for."""
        if self.agreed == _FAILED:
            common = hosts.synced_error(self.failure)
            assert common is not None  # a host has voted _FAILED
            raise common
        if self.agreed:
            raise interrupted(self.agreed, step, self.plan.total)

    def _next(
        self, batches: Iterator[tuple[TrainBatch, Any]], is_first: bool
    ) -> tuple[TrainBatch, Any]:
        """Returns the next batch, as it was read and on the devices."""
        began = time.perf_counter()
        if is_first:  # hosts cannot vote yet
            with hosts.sync_errors(), clock("reading the first batch"):
                got = next(batches, None)
                if self.failure is not None:
                    raise self.failure
            assert got is not None  # steps are left
        else:
            got = next(batches)
        self.speed.waited(time.perf_counter() - began)
        return got

    def _agree(self) -> None:
        """Votes on stopping; hosts learn the result a step later, for which batches are ahead."""
        if not self.agreed:
            own = self.stop[0] if self.stop else 0
            self.agreed = self.poll.ask(own if self.failure is None else _FAILED)

    def _batches(self, start: int) -> Iterator[TrainBatch]:
        """Yields this host's rows after `start` steps; with several hosts, a failure ends them."""
        config = self.config
        rows = mesh_lib.local_rows(self.setup.mesh, config.train.batch_size)
        steps = range(start, self.plan.total)
        workers, transform = config.data.num_workers, self.setup.given.transform
        try:
            yield from read_batches(
                config, self.setup.dataset, self.plan, steps, rows, workers, transform
            )
        except Exception as error:
            if not hosts.are_multiple():
                raise
            self.failure = error

    def _read_metrics(self, keep: int = 0) -> None:
        """Reads all but the newest `keep` steps' metrics, checks them, logs and shows them."""
        while len(self.pending) > keep:
            step, index, metrics = self.pending.popleft()
            is_first, is_last = step == self.first, step == self.plan.total
            with clock("running the first step") if is_first else nullcontext():
                values = {name: value.item() for name, value in jax.device_get(metrics).items()}
            if not values.pop("is_finite"):
                words = bad_steps.describe(
                    self._whole(), self.left_out, self.config, self.start, step, values
                )
                images = bad_steps.images(self.setup.dataset, index)
                raise self._bad_step(step, words.reason, f"{words.what}, {images}", words.fix)
            self.account.step = step
            self._look_for_spike(step, index, values["loss"])
            self.loss = values["loss_smoothed"] = smooth(self.loss, values["loss"])
            if not is_first:  # it compiled
                self.speed.finished_step()
            values |= self.speed.read()
            self.values = values
            is_logged = step % self.config.log.every_steps == 0 or is_last
            if is_logged or step <= EARLY:
                told = values if is_logged else {"loss": values["loss"]}
                self.log.write("train" if is_logged else "loss", step, told)
                self.curves.add(step, told)
            if is_logged or is_first:
                self.speed.pause()
            # A step's metrics are read before its evaluation.
            evaluations = self.plan.evaluations_from(step)
            left = self.speed.left(self.plan.total - step, evaluations)
            self.display.step(step, values, left, is_last)

    def _look_for_spike(self, step: int, index: np.ndarray, loss: float) -> None:
        """Warns of a loss far above those before; raises where its batch is to be left out."""
        usual = self.left_out.usual_loss(loss)
        if usual is not None:
            factor, count = self.config.train.spike_factor, len(self.left_out.losses)
            reason = f"loss {loss:.4g} is over {factor:g} x {usual:.4g}, the median of {count}"
            images = bad_steps.images(self.setup.dataset, index)
            what = f"step {step}: {reason} before, {images}"
            if self.config.train.on_nonfinite == "rollback":
                fix = "look at these images, or raise config.train.spike_factor"
                raise self._bad_step(step, reason, what, fix)
            self.log.write("spike", step, {"reason": reason})
            self.display.say(f"warning: {what}")
        self.left_out.finished_step(loss)

    def _bad_step(self, step: int, reason: str, what: str, fix: str) -> BadStepError:
        self.saver.wait()  # a save may be under way
        if count := len(self.left_out.steps):
            fix = f"{fix}; {count} batches were left out before"
        fix = f"{fix}; {self._kept()}"
        return BadStepError(str(self.setup.workdir), what, fix, step, reason)

    def _do_what_is_due(self, step: int) -> None:
        """Compares devices, evaluates and saves after some steps."""
        if self.watch.is_epoch_told(step):
            self._read_metrics()
            self.watch.epoch_ended(step, self.values)
        every = self.config.mesh.check_every_steps
        if not (self.plan.is_save_due(step) or self.watch.stopped):
            if every and step % every == 0:
                self._compare_devices(step)
            return
        self._read_metrics()  # a state that is not finite is never saved
        if self.plan.is_eval_due(step) or self.watch.stopped:
            self._evaluate(step)
        self._save(step)
        self.speed.pause()

    def _evaluate(self, step: int) -> None:
        """Evaluates, unless asked to stop; then the continued run does."""
        began, state = time.perf_counter(), self._whole()
        raw = raw_variables(state) if self.config.eval.both_weights else None
        with self.account.during("evaluation"):
            scores = self.validation.evaluate(
                step, eval_variables(state), lambda: bool(self.stop), raw
            )
        if scores is None:
            self.agreed = max(hosts.all_gather(self.stop[0] if self.stop else 0))
            return
        self.speed.evaluated(time.perf_counter() - began)
        self.watch.evaluated(step, *scores)

    def _compare_devices(self, step: int) -> None:
        """Raises if devices no longer hold the same state."""
        self.replicas.check(self._whole(), step, self._kept)

    def _kept(self) -> str:
        last = checkpoint.latest_step(self.setup.workdir)
        return f"the last saved step, {last}, is kept" if last else "nothing was saved before"

    def _save(self, step: int) -> None:
        if self.config.mesh.check_every_steps:
            self._compare_devices(step)
        with hosts.sync_errors():
            if hosts.is_primary():
                self.setup.check_lock()
                self.log.sync()
                self.curves.sync()
        items = {name: item for name, item in self._whole().items() if name != "step"}
        left_out, losses = self.left_out.steps, tuple(self.left_out.losses)
        info = dataclasses.replace(
            self.info, left_out=left_out, losses=losses, evaluations=self.watch.evaluations,
            stopped=self.watch.stopped,
        )  # fmt: skip
        self.signals.saving(step, partial(checkpoint.is_finished, self.setup.workdir, step))
        with self.account.during("saving"):
            is_new = self.saver.save(step, items, info, self.watch.metrics_of(step))
        if is_new:
            self.account.saved()
        self._keep(step)

    def _save_last(self, reason: Exception | None) -> None:
        """Saves the state of a run that ends for `reason`, if it can, and waits for the disk."""
        if self.state is not None and bad_steps.can_save(reason):
            self._read_metrics()
            step = int(self.state["step"])
            if step > self.start:
                self._save(step)
        with self.account.during("saving"):
            self.saver.wait()


def log_end(log: JsonLog, state: State, stopped: str) -> dict[str, int | str]:
    """Logs and prints the end of a run, and why it stopped; returns the result of `train`."""
    step, digest = int(state["step"]), tree_hash(state["params"])
    result = {"params_sha256": digest} | ({"stopped": stopped} if stopped else {})
    log.write("end", step, result)
    print(f"parameters {digest[:16]}", flush=True)
    return {"step": step, **result}
