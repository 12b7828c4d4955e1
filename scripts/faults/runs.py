"""Rows about runs: stopped, killed, doubled, on other devices; numbers, readers and memory."""

import dataclasses
import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np

from deeplab_jax.utils import steps
from faults.harness import (
    EVERY,
    STEPS,
    TRAIN,
    Box,
    check,
    children,
    kill,
    last_logged,
    losses,
    refused,
    row,
    tool,
)

_KILLS = 7  # a seed: twenty and more with three
_DEVICES = 2, 4


@row(1)
def crash_while_training(box: Box) -> None:
    """Crash while training."""
    for _ in range(_KILLS):
        before = steps.latest_step(box.workdir) or 0
        if before >= STEPS:
            break
        process = box.start(box.continued())
        box.until_logged(process, before + 1)
        time.sleep(box.rng.uniform(0, 0.5))
        kill(process)
        saved, logged = steps.latest_step(box.workdir) or 0, last_logged(box.workdir)
        # The save before the last one may be under way as well.
        check(logged - saved <= 2 * EVERY, f"saved step {saved}, killed after step {logged}")
        check_steps(box)
    box.same()


@row(3)
def preemption(box: Box) -> None:
    """SIGTERM while training."""
    process = box.start(box.continued())
    box.until_logged(process, box.rng.randint(2, STEPS // 2))
    process.send_signal(signal.SIGTERM)
    done = box.finish(process, 60)
    check(done.code == 143, f"exit {done.code} instead of 143: {done.last}")
    saved, logged = steps.latest_step(box.workdir), last_logged(box.workdir)
    check(saved == logged, f"saved step {saved}, logged step {logged}")
    check(f"saved at step {saved} of {STEPS}" in done.last, done.last)
    box.same()


@row(4)
def ctrl_c(box: Box) -> None:
    """Ctrl-C once, and twice."""
    process = box.start(box.continued())
    box.until_logged(process, box.rng.randint(2, STEPS // 4))
    process.send_signal(signal.SIGINT)
    done = box.finish(process, 60)
    check(done.code == 130, f"exit {done.code} instead of 130: {done.last}")
    check("repeat the command to go on" in done.last, done.last)
    process = box.start(box.continued())
    box.until_logged(process, STEPS // 2)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    done = box.finish(process, 60)
    check(done.code == 130, f"exit {done.code} instead of 130: {done.last}")
    check_steps(box)
    box.same()


@row(14)
def two_runs_in_one_folder(box: Box) -> None:
    """Two runs in one folder."""
    first = box.start(box.continued())
    box.until(first, (box.workdir / "config.json").exists)
    first.send_signal(signal.SIGSTOP)  # so that it is not done before the second one starts
    try:
        box.refuses(box.continued(), 2, f"another process trains here (pid {first.pid} on ")
    finally:
        first.send_signal(signal.SIGCONT)
    done = box.finish(first)
    check(done.code == 0, f"the first ended with {done.code}: {done.last}")
    box.same()


@row(15)
def configuration_changed(box: Box) -> None:
    """Another configuration on resuming."""
    box.half()
    for name, value, saved in (("train.lr", "0.02", "0.01"), ("model.num_classes", "7", "5")):
        parts = f"{name}: {saved} -> {value}", f"--config.{name}={saved}"
        box.refuses([*box.continued(), f"--config.{name}={value}"], 2, *parts)
    box.same()


@row(16)
def other_number_of_devices(box: Box) -> None:
    """Continued on other devices, 2 then 4."""
    flags = ["--config.train.steps=8", "--config.checkpoint.every_steps=3"]
    flags += ["--config.checkpoint.keep=9"]
    flags += ["--config.train.lr=0.001"]  # larger ones let rounding grow tenfold in three steps
    for dtype, limit in (("float64", 1e-9), ("float32", 1e-4)):
        env = {"JAX_ENABLE_X64": "1"} if dtype == "float64" else {}
        found = []
        for count in _DEVICES:
            back = ["--step", "3"] if found else []
            flag, workdir = f"--config.model.dtype={dtype}", box.folder / dtype
            command = box.train(*flags, flag, *back, workdir=workdir, own=False)
            box.succeeds(command, devices=count, **env)
            found.append(losses(box.folder / dtype))
        for step, loss in found[0].items():
            error = abs(found[1][step] - loss) / abs(loss)
            check(error < limit, f"{dtype}: losses of step {step} differ by {error:.1e}")


@row(17)
def not_finite(box: Box) -> None:
    """A loss that is not finite."""
    done = box.run(box.train("--config.train.lr=1e30", own=False))
    refused(done, 6)
    check(re.search(r"step \d+", done.last), f"no step in: {done.last}")
    check(re.search(r"\b0\d\d\b", done.last), f"no sample in: {done.last}")
    check_finite(box)
    box.workdir.rename(box.folder / "first")
    done = box.run(box.train(f"--config.init.checkpoint={_poisoned(box)}", own=False))
    refused(done, 4 if done.code == 4 else 6)
    if box.workdir.exists():
        check_finite(box)


def _poisoned(box: Box) -> Path:
    """Returns a checkpoint of weights, one of which is not a number."""
    from deeplab_jax import checkpoint

    items = checkpoint.read_arrays(box.control, "latest", checkpoint.EVAL_ITEMS.values())
    info = checkpoint.read_info(box.control)
    kernel = items["params"]["backbone"]["stem"]
    while isinstance(kernel, dict):
        kernel = kernel[min(kernel)]
    kernel[...] = np.nan
    path = box.folder / "poisoned"
    checkpoint.save_once(path, items, dataclasses.replace(info, kind="weights"))
    return path


def check_finite(box: Box) -> None:
    """Checks that every array of every step is finite."""
    from deeplab_jax import checkpoint
    from deeplab_jax.checkpoint.listing import items_of
    from deeplab_jax.utils.trees import by_path

    for step in checkpoint.finished(box.workdir):
        items = checkpoint.read_arrays(box.workdir, step, items_of(box.workdir, step))
        for name, array in by_path(items).items():
            check(np.isfinite(array).all(), f"{name} of step {step} is not finite")


def check_steps(box: Box) -> None:
    """Checks that what lies under the name of a step is a step."""
    for step in steps.finished(box.workdir):
        check(steps.is_good(box.workdir, step), f"step {step} is not whole")


@row(27)
def reader_dies(box: Box) -> None:
    """A reading process dies."""
    command = [*box.continued(), "--config.data.num_workers=2"]
    process = box.start(command)
    box.until_logged(process, box.rng.randint(2, STEPS // 4))
    workers = children(process)
    check(len(workers) == 2, f"{len(workers)} reading processes")
    began = time.monotonic()
    os.kill(box.rng.choice(workers), signal.SIGKILL)
    done = box.finish(process, 60)
    check(time.monotonic() - began < 30, "took more than 30 s")
    refused(done, 5, f"{box.shared / 'data'}/images/train/")
    box.same()


@row(28)
def reader_hangs(box: Box) -> None:
    """A pipe in place of an image."""
    for workers in (0, 2):
        workdir = box.folder / f"run{workers}"
        flags = f"--config.data.num_workers={workers}", f"--config.train.steps={STEPS * 100}"
        process = box.start(box.train(*flags, workdir=workdir))
        log = workdir / "log.jsonl"
        box.until(process, lambda log=log: log.exists() and '"step": 2,' in log.read_text())
        for index in range(TRAIN):
            box.image(index).unlink()
            os.mkfifo(box.image(index))
        began = time.monotonic()
        done = box.finish(process, 60)
        check(time.monotonic() - began < 35, "took more than 35 s")
        refused(done, done.code, f"{box.data}/images/train/")
        check(done.code in (3, 5), f"exit {done.code} instead of 3 or 5")
        box.refuses(box.train(workdir=box.folder / "new"), 3, f"{box.data}/images/train/")
        shutil.rmtree(box.data)  # which is copied anew


@row(29)
def out_of_memory(box: Box) -> None:
    """Memory runs out."""
    for index in range(TRAIN, 4096):
        for path in (box.image, box.mask):
            os.link(path(index % TRAIN), path(index))
    flags = "--config.train.batch_size=4096", "--config.data.crop_size=512,512"
    limit = tool("bash", "-c", 'ulimit -v 10485760; exec "$0" "$@"')
    done = box.run(box.train(*flags), prefix=limit)
    refused(done, 5)
    check(len(done.err.splitlines()) <= 5, f"{len(done.err.splitlines())} lines")
    check(re.search(r"\d+(\.\d+)? ?([GM]i?B|bytes)", done.last), f"no size in: {done.last}")
    for knob in ("gradient_accumulation", "crop_size", "remat"):
        check(knob in done.last, f"{knob} is not named in: {done.last}")
