"""Two processes on this machine stand in for two hosts, with two virtual devices each."""

import json
import shutil
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from deeplab_jax import checkpoint
from deeplab_jax.config.recipe import load_recipe
from deeplab_jax.data.classes import colormap
from deeplab_jax.models import build_model, init_variables
from deeplab_jax.report.checking import find_fault

TRAIN = [sys.executable, "-m", "deeplab_jax.train"]
SECONDS = 300  # by which any run here has ended
TOTAL = 20
_PAIR = pytest.mark.process(
    "starts two processes or more; one pair that trains is in the first tier"
)

# Losses of 4 groups; dropout that would show any change of rows; saved only when told to.
CHANGES = """
name = "tiny"
model.dropout_rate = 0.5
train.loss_groups = 2
train.steps = 20
eval.every_epochs = 9
checkpoint.every_steps = 50
mesh.check_every_steps = 4
"""

DEATH = "cluster.HEARTBEAT_SECONDS = 10; after_step(5, die_when_saved)"

# Trains after a change that is made on one host alone.
DRIVER = """
import os, signal, sys, time
from pathlib import Path
import jax, numpy as np
from deeplab_jax import checkpoint, cli
from deeplab_jax.checkpoint import reading, saver
from deeplab_jax.distributed import cluster, shared_dir
from deeplab_jax.evaluation import evaluator
from deeplab_jax.training import loop, plan, validation
from deeplab_jax.errors import DataError
from deeplab_jax.train import main

def after_step(step, change):
    make = loop.make_train_step
    def make_spied(*args):
        inner = make(*args)
        def train_step(state, *batch):
            at = int(state["step"]) + 1
            state, metrics = inner(state, *batch)
            if at == step and jax.process_index() == jax.process_count() - 1:
                change(state)
            return state, metrics
        return train_step
    loop.make_train_step = make_spied

def spike_at(step):
    make = loop.make_train_step
    def make_spied(*args):
        inner = make(*args)
        def train_step(state, *batch):
            factor = 100 if int(state["step"]) + 1 == step else 1
            state, metrics = inner(state, *batch)
            return state, metrics | {"loss": factor * metrics["loss"]}
        return train_step
    loop.make_train_step = make_spied

def corrupt_a_copy(state):
    name, leaf = next(iter(state["params"]["classifier"].items()))
    parts = [np.array(s.data) for s in leaf.addressable_shards]
    parts[1].flat[0] = np.nextafter(parts[1].flat[0], 9)
    devices = [s.device for s in leaf.addressable_shards]
    parts = [jax.device_put(p, d) for p, d in zip(parts, devices)]
    bad = jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, parts)
    state["params"]["classifier"][name] = bad

def stop(state):
    os.kill(os.getpid(), signal.SIGTERM)

def die_when_saved(state):
    workdir = sys.argv[sys.argv.index("--workdir") + 1]
    while checkpoint.latest_step(workdir) is None:
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)

def read_on_the_last(path):
    if sys.argv[-1] == "1":
        reading.step_path = lambda *_: Path(path)

def fail_to_read(batch):
    inner = plan.train_batches
    def batches(*args, **options):
        for k, item in enumerate(inner(*args, **options), 1):
            if k == batch and jax.process_index() == 1:
                raise DataError("x.jpg", "is cut", "restore it")
            yield item
    plan.train_batches = batches

def stop_while_evaluating():
    evaluator.IMAGES_A_ROUND = 1
    inner = validation.Evaluator.__call__
    def evaluate(*args, **options):
        if jax.process_index() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return inner(*args, **options)
    validation.Evaluator.__call__ = evaluate

exec(sys.argv[1])
cli.run(main, sys.argv[2:])
"""


@pytest.fixture(scope="module")
def root(make_tree, tiny_recipe):
    """The folder with the data and the recipe."""
    root = make_tree("folder", num_train=8, num_val=5)
    (root / "tiny.py").write_text(tiny_recipe(CHANGES))
    return root


@pytest.fixture
def environment(compile_quickly):
    return {k: v for k, v in compile_quickly.items() if k != "XLA_FLAGS"}


class Run:
    """Processes of one command, on the same machine."""

    def __init__(self, commands, environment, devices=2):
        flags = f"--xla_force_host_platform_device_count={devices}"
        environment = environment | {"XLA_FLAGS": flags, "NPROC": "64"}
        self.processes = [
            subprocess.Popen(
                [str(part) for part in command],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for command in commands
        ]

    def end(self):
        """Returns (exit codes, standard outputs, standard errors)."""
        try:
            texts = [process.communicate(timeout=SECONDS) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        codes = [process.returncode for process in self.processes]
        return codes, [out for out, _ in texts], [err for _, err in texts]


def pair(command, environment, own=((), ()), before=((), ())):
    """Starts a command as two processes with arguments, and words before it, of their own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    joined = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", "2", "--process-id"]
    commands = [[*before[i], *command, *joined, i, *own[i]] for i in range(2)]
    return Run(commands, environment)


def train(root, workdir, *options, start=TRAIN):
    options = [f"--config.data.root={root}", *options]
    return [*start, "--config", root / "tiny.py", "--workdir", workdir, *options]


def drive(change):
    return [sys.executable, "-c", DRIVER, change]


def stopped_at(step):
    """A start of a run whose last process gets SIGTERM in a step."""
    return drive(f"after_step({step}, stop)")


def lines_of(workdir):
    """Returns the lines of the log but those of the account, which each process adds to."""
    lines = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] != "time"]


def damage(step, copy):
    """Returns a copy of a step whose largest file is cut."""
    shutil.copytree(step, copy)
    largest = max((p for p in copy.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
    return copy


def error_lines(errors):
    return [[s for s in text.splitlines() if s.startswith(("error:", "train:"))] for text in errors]


# One run on changing hosts and devices


@pytest.mark.slow("four minutes: four runs of one and two processes")
def test_run_goes_on_with_other_hosts_and_devices_and_ends_as_on_one(root, environment, tmp_path):
    wide = environment | {"JAX_ENABLE_X64": "1"}
    options = ["--config.model.dtype=float64"]
    alone, moved = tmp_path / "alone", tmp_path / "moved"
    codes, _, errors = Run([train(root, alone, *options)], wide, devices=1).end()
    assert codes == [0], errors

    command = train(root, moved, *options)
    codes, _, errors = pair(train(root, moved, *options, start=stopped_at(2)), wide).end()
    assert codes == [143, 143], errors
    assert error_lines(errors)[0] == error_lines(errors)[1]
    saved = checkpoint.latest_step(moved)
    assert 2 < saved <= 5
    assert f"stopped by SIGTERM and saved at step {saved} of {TOTAL}" in errors[0]

    for devices in (1, 4):
        stopped = train(root, moved, *options, start=stopped_at(saved + 2))
        codes, _, errors = Run([stopped], wide, devices).end()
        assert codes == [143], errors
        assert checkpoint.latest_step(moved) == saved + 2
        saved += 2
    # Each host holds bands of two images' rows then.
    codes, outputs, errors = pair([*command, "--config.mesh.spatial=2"], wide).end()
    assert codes == [0, 0], errors
    assert f"continuing at step {saved} of {TOTAL}" in outputs[0]
    assert [line for line in outputs[1].splitlines() if "[Gloo]" not in line] == []

    there, here = lines_of(alone), lines_of(moved)
    assert [line["event"] for line in there] == [line["event"] for line in here]
    losses = [[k["loss"] for k in log if k["event"] == "train"] for log in (here, there)]
    assert len(losses[0]) == TOTAL
    np.testing.assert_allclose(losses[0][0], losses[1][0], rtol=1e-12)
    np.testing.assert_allclose(losses[0][:10], losses[1][:10], rtol=1e-9)  # all four kinds
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-8)
    scores = [[line for line in log if line["event"] == "eval"] for log in (here, there)]
    assert scores[0] == scores[1]

    evaluate = [sys.executable, "-m", "deeplab_jax.evaluate", "--checkpoint", moved]
    numbers = tmp_path / "two.json"
    codes, outputs, errors = pair([*evaluate, "--json", numbers], wide).end()
    assert codes == [0, 0], errors
    assert [text.count("\nnext: ") for text in outputs] == [1, 0]
    two = json.loads(numbers.read_text())
    assert two["num_images"] == 5
    assert find_fault(two) == ""  # images' counts are the matrix's
    pixels = sum(part["pixels"] for part in two["calibration"]["bins"])
    assert pixels == np.sum(two["confusion"])
    assert two["loss"] > 0
    assert two["boundary_iou"] is not None
    assert {key: two[key] for key in ("mean_iou", "pixel_accuracy", "iou")} == {
        key: scores[1][-1][key] for key in ("mean_iou", "pixel_accuracy", "iou")
    }


@_PAIR
def test_death_of_a_host_ends_the_others_and_the_run_goes_on_where_it_saved(
    root, environment, tmp_path
):
    options = ["--config.checkpoint.every_steps=3", "--config.train.steps=8"]
    command = train(root, tmp_path, *options)
    killed = train(root, tmp_path, *options, start=drive(DEATH))
    codes, _, errors = pair(killed, environment).end()  # which is given SECONDS
    if codes[0] != -signal.SIGABRT:  # JAX may notice first, and ends the process
        assert codes[0] == 5, errors
        assert "a host of this run ended, failed or cannot be reached" in error_lines(errors)[0][0]
    assert codes[1] == -signal.SIGKILL
    saved = checkpoint.latest_step(tmp_path)
    assert saved == 3
    codes, outputs, errors = pair(command, environment).end()
    assert codes == [0, 0], errors
    assert f"continuing at step {saved} of 8" in outputs[0]
    assert [line["step"] for line in lines_of(tmp_path) if line["event"] == "train"] == [
        *range(1, 9)
    ]


@pytest.mark.slow("waits for a save that cannot be written")
def test_host_that_cannot_write_ends_all_and_the_run_goes_on(root, environment, tmp_path):
    start = drive("saver.WRITE_SECONDS = 10")
    command = train(root, tmp_path, "--config.checkpoint.every_steps=3", start=start)
    limit = ["bash", "-c", 'ulimit -f 100; exec "$@"', "x"]  # blocks of 1 KiB
    codes, _, errors = pair(command, environment, before=((), limit)).end()
    assert codes == [5, 5], errors
    assert "a host of this run ended, failed or cannot be reached" in error_lines(errors)[0][0]
    assert "cannot save a checkpoint: File too large" in error_lines(errors)[1][0]
    assert checkpoint.latest_step(tmp_path) is None
    codes, _, errors = pair(command, environment).end()
    assert codes == [0, 0], errors
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"18", str(TOTAL)}


# What one host has, all are told of


@pytest.mark.slow("two minutes: three runs of two processes")
def test_hosts_leave_out_the_same_batch_also_when_stopped_between(root, environment, tmp_path):
    options = ["--config.train.on_nonfinite=rollback", "--config.train.spike_factor=9"]
    options += ["--config.checkpoint.every_steps=3", "--config.train.steps=10"]
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    for workdir, change, code in (
        (whole, "spike_at(7)", 0), (parted, "spike_at(7); after_step(7, stop)", 143),
        (parted, "spike_at(7)", 0),
    ):  # fmt: skip
        command = train(root, workdir, *options, start=drive(change))
        codes, _, errors = pair(command, environment).end()
        assert codes == [code, code], errors
        assert checkpoint.read_info(workdir).left_out == (7,)
    assert lines_of(parted)[-1] == lines_of(whole)[-1]
    for workdir in (whole, parted):
        left_out = [line for line in lines_of(workdir) if line["event"] == "rollback"]
        assert [(line["step"], line["to"]) for line in left_out] == [(7, 6)]


@_PAIR
def test_sample_that_one_host_cannot_read_ends_all_with_the_same_line(root, environment, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(root, other)
    for path in sorted((other / "images" / "train").iterdir())[4:]:
        path.write_bytes(path.read_bytes()[:100])
    options = ["--config.train.batch_size=4", "--config.data.num_workers=0"]
    command = train(root, tmp_path / "run", *options)
    run = pair(command, environment, own=((), [f"--config.data.root={other}"]))
    codes, _, errors = run.end()
    assert codes == [3, 3], errors
    first, second = error_lines(errors)
    assert len(first) == 1
    assert first == second
    assert str(other) in first[0]
    assert "(process 1)" in first[0]


@pytest.mark.slow("a minute; a sample that cannot be read at the start is in the second tier")
def test_sample_that_one_host_cannot_read_later_ends_all_with_the_same_saved_step(
    root, environment, tmp_path
):
    command = train(root, tmp_path, start=drive("fail_to_read(batch=8)"))
    codes, _, errors = pair(command, environment).end()
    assert codes == [3, 3], errors
    first, second = error_lines(errors)
    assert first == second
    assert first[0].startswith("error: x.jpg on ")
    saved = checkpoint.latest_step(tmp_path)
    assert 5 <= saved <= 8

    damaged = damage(tmp_path / "checkpoints" / str(saved), tmp_path / "copy")
    command = train(root, tmp_path, start=drive(f"read_on_the_last({str(damaged)!r})"))
    codes, _, errors = pair(command, environment).end()
    assert codes == [4, 4], errors
    first, second = error_lines(errors)
    assert first == second
    assert first[0].startswith(f"error: {tmp_path}: no step is good: step {saved} is damaged: ")
    assert " on " in first[0]
    assert "(process 1)" in first[0]


@pytest.fixture
def save_weights(root):
    """Returns save_weights(directory, value): a network of the recipe, all of one value."""

    def save_weights(directory, value):
        config = load_recipe(str(root / "tiny.py"), [])
        shapes = jax.eval_shape(lambda: init_variables(build_model(config.model), 0))
        items = jax.tree.map(lambda leaf: np.full(leaf.shape, value, np.float32), shapes)
        names = tuple(f"c{k}" for k in range(config.model.num_classes))
        info = checkpoint.Info(
            kind="weights", config=config, class_names=names, palette=colormap(len(names))
        )
        checkpoint.save_once(directory, items, info)
        return directory

    return save_weights


@_PAIR
def test_checkpoint_that_one_host_cannot_read_ends_all_with_the_same_line(
    root, environment, tmp_path, save_weights
):
    path = save_weights(tmp_path / "weights", 0.5)
    copy = damage(path / "checkpoints" / "0", tmp_path / "copy")
    command = train(
        root,
        tmp_path / "run",
        f"--config.init.checkpoint={path}",
        start=drive(f"read_on_the_last({str(copy)!r})"),
    )
    codes, _, errors = pair(command, environment).end()
    assert codes == [4, 4], errors
    first, second = error_lines(errors)
    assert first == second
    assert f"{path}/checkpoints/0 on " in first[0]
    assert "(process 1): is damaged" in first[0]


@_PAIR
def test_evaluation_of_other_weights_on_one_host_is_refused_by_all(
    root, environment, tmp_path, save_weights
):
    own = [["--checkpoint", save_weights(tmp_path / str(value), value)] for value in (0.25, 0.5)]
    command = [sys.executable, "-m", "deeplab_jax.evaluate", f"--config.data.root={root}"]
    codes, _, errors = pair(command, environment, own=own).end()
    assert codes == [2, 2], errors
    first, second = error_lines(errors)
    assert first == second
    assert "hosts: differ in weights: " in first[0]


@pytest.mark.slow("two more processes; the death of a host and one process's signals are tested")
def test_stop_while_evaluating_is_common_and_leaves_the_evaluation_owed(
    root, environment, tmp_path
):
    options = ["--config.train.steps=4", "--config.eval.every_epochs=1"]
    command = train(root, tmp_path, *options, start=drive("stop_while_evaluating()"))
    codes, _, errors = pair(command, environment).end()
    assert codes == [143, 143], errors
    assert checkpoint.latest_step(tmp_path) == 2
    assert checkpoint.read_info(tmp_path).metrics is None
    assert not any(line["event"] == "eval" for line in lines_of(tmp_path))


@pytest.mark.slow("a minute; the comparison of copies is in test_replicas.py")
def test_copy_that_drifts_away_on_one_host_stops_all_and_is_never_saved(
    root, environment, tmp_path
):
    command = train(root, tmp_path, start=drive("after_step(6, corrupt_a_copy)"))
    codes, _, errors = pair(command, environment).end()
    assert codes == [6, 6], errors
    first, second = error_lines(errors)
    assert first == second
    assert "after step 8 devices hold different parameters: device " in first[0]
    assert "(process 1) has" in first[0]
    assert "3 of 4 have" in first[0]
    assert checkpoint.latest_step(tmp_path) is None


# What is refused at the start, by all hosts with one line and in seconds


REFUSED = {
    "another configuration": (
        [],
        ["--config.train.lr=0.02"],
        "differ in config.train.lr: 0.02 on ",
    ),
    "a batch that does not divide": (
        ["--config.train.batch_size=6"],
        [],
        "6 does not divide over 4 devices - use 8, config.mesh.spatial=2 (which keeps",
    ),
    "an address": (["--workdir=ftp://bucket/run"], [], "accepted are gs://BUCKET/NAME and s3://"),
}


@_PAIR
@pytest.mark.parametrize("name", REFUSED)
def test_all_hosts_refuse(name, root, environment, tmp_path):
    options, own, expected = REFUSED[name]
    workdir = tmp_path / "run"
    command = train(root, workdir, *options)
    codes, _, errors = pair(command, environment, own=((), own)).end()
    assert codes == [2, 2], errors
    first, second = error_lines(errors)
    assert first == second
    assert len(first) == 1
    assert expected in first[0]
    assert not workdir.exists()


@_PAIR
def test_work_directory_that_is_not_shared_is_refused_by_all(root, environment, tmp_path):
    start = drive("shared_dir.PATIENCE = 1")
    command = [*start, "--config", root / "tiny.py", f"--config.data.root={root}"]
    folders = [tmp_path / "a", tmp_path / "b"]
    own = [["--workdir", folder] for folder in folders]
    codes, _, errors = pair(command, environment, own=own).end()
    assert codes == [2, 2], errors
    first, second = error_lines(errors)
    assert "(process 0) writes here is not seen by " in first[0]
    assert f"it is {folders[0]} and {folders[1]} there" in first[0]
    assert "an absolute path that every host mounts" in second[0]
    assert not any(folder.exists() for folder in folders)
