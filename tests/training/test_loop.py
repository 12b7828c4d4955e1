"""Steps, saves and evaluations: stopped, continued, killed, and where numbers are not finite."""

import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from deeplab_jax import checkpoint
from deeplab_jax.checkpoint import saver
from deeplab_jax.data import SampleOrder, open_dataset
from deeplab_jax.distributed import mesh as mesh_lib
from deeplab_jax.errors import DataError
from deeplab_jax.models import build_model
from deeplab_jax.training import loop, validation
from deeplab_jax.training.log import peak_memory
from deeplab_jax.training.optimizer import build_optimizer
from deeplab_jax.training.setup import gather, restore_or_init
from deeplab_jax.training.state import init_state, tree_hash
from deeplab_jax.training.step import make_train_step

TOTAL = 14  # the tiny recipe's steps
MANY_RUNS = pytest.mark.process("trains several times; one kill is in the first tier")


@pytest.fixture
def interrupted(call, memo, tiny, tmp_path_factory, monkeypatch):
    """What became of a run that was stopped twice in mid-epoch and continued each time."""
    if "interrupted" not in memo:
        got = SimpleNamespace(workdir=tmp_path_factory.mktemp("interrupted"), stops=[], given=[])
        got.alive = 0  # arrays of the state that outlived the step they were given to

        def before(state):
            got.alive += sum(leaf.ndim and not leaf.is_deleted() for leaf in got.given)
            got.given = jax.tree.leaves(state)
            return state

        got.jitted = spy_on_steps(monkeypatch, before)
        command = [*tiny, "--workdir", got.workdir]
        # A step is logged once the next one runs; so stopping comes one step later.
        for number, logged in ((signal.SIGTERM, 4), (signal.SIGINT, 10)):
            with monkeypatch.context() as patch:
                signal_when_logged(patch, logged, number)
                outcome = call(*command)
            last = log_of(got.workdir)[-1]["step"]
            saved = checkpoint.latest_step(got.workdir)
            got.stops.append((outcome.code, saved, last, outcome.err))
            got.given = []
        got.code, got.out, _ = call(*command)
        memo["interrupted"] = got
    return memo["interrupted"]


def log_of(workdir):
    """Returns the lines of the log without what depends on the clock."""
    lines = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["event"] != "time"]
    clock = ("images_per_second", "data_wait")
    return [{key: line[key] for key in line if key not in clock} for line in lines]


def steps_on_disk(workdir):
    return sorted(int(entry.name) for entry in (workdir / "checkpoints").iterdir())


def on_one_device(tree):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def abstract_items(run_config):
    """Returns shapes and types of what a step of the run holds."""
    model = build_model(run_config.model)
    optimizer, _ = build_optimizer(run_config.train, TOTAL)
    state = jax.eval_shape(lambda: init_state(model, optimizer, 0))
    return on_one_device({name: state[name] for name in ("params", "batch_stats", "opt_state")})


def is_finite(tree):
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(tree)))


def signal_when_logged(monkeypatch, step, *numbers):
    """Sends this process signals once the log has a training step."""
    write = loop.JsonLog.write

    def write_then_signal(log, event, at, values):
        write(log, event, at, values)
        if (event, at) == ("train", step):
            for number in numbers:
                os.kill(os.getpid(), number)

    monkeypatch.setattr(loop.JsonLog, "write", write_then_signal)


def spy_on_steps(monkeypatch, before=lambda state: state):
    """Returns a list that will hold each run's jitted step; `before` may change its input."""
    jitted = []
    make = loop.make_train_step

    def make_spied(*args):
        train_step = make(*args)
        jitted.append(train_step)
        return lambda state, *batch: train_step(before(state), *batch)

    monkeypatch.setattr(loop, "make_train_step", make_spied)
    return jitted


# Going on


@MANY_RUNS
def test_stop_signal_saves_and_says_how_to_go_on(interrupted):
    for (code, saved, last, error), name, step in zip(
        interrupted.stops, ("SIGTERM", "SIGINT"), (5, 11), strict=True
    ):
        assert code == {"SIGTERM": 143, "SIGINT": 130}[name]
        assert saved == last == step
        assert error == (
            f"train: stopped by {name} and saved at step {step} of {TOTAL}"
            " - repeat the command to go on\n"
        )


@MANY_RUNS
def test_interrupted_run_ends_bit_for_bit_as_the_uninterrupted(interrupted, finished):
    assert interrupted.code == 0
    assert "continuing at step 11 of 14" in interrupted.out
    assert log_of(interrupted.workdir) == log_of(finished)
    steps = [line["step"] for line in log_of(finished) if line["event"] == "train"]
    assert steps == [*range(1, TOTAL + 1)]


@pytest.mark.process("trains once more; the display and the picture have tests of their own")
def test_numbers_shown_are_those_of_the_log(call, tiny, finished, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    assert Image.open(finished / "progress.png").format == "PNG"
    monkeypatch.setattr(validation.picture, "write", fail)
    got = call(*tiny, "--workdir", tmp_path, "--config.log.every_steps=7")
    assert got.code == 0
    assert f"warning: {tmp_path}/progress.png was not written: No space left on device" in got.out
    assert "compiling the training step 0:00, once per shape; " in got.out
    steps = [
        {line["step"]: line for line in log_of(workdir) if line["event"] == "train"}
        for workdir in (tmp_path, finished)
    ]
    # The smoothed loss takes every step, whatever is logged.
    assert steps[0] == {step: steps[1][step] for step in (7, 14)}
    told = re.findall(r"^step (\d+)/14 .*? loss ([\d.]+) \(smoothed ([\d.]+)\)", got.out, re.M)
    assert told[0][0] == "1"  # at once, though it is not logged
    last = steps[0][14]
    assert told[-1] == ("14", f"{last['loss']:.3f}", f"{last['loss_smoothed']:.3f}")


@pytest.mark.process("trains a run of its own; the command's is among the faults")
def test_second_ctrl_c_leaves_at_once_and_leaves_the_callers_process(
    tiny_config, tmp_path, monkeypatch
):
    signal_when_logged(monkeypatch, 4, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        loop.train(tiny_config, tmp_path)
    assert checkpoint.latest_step(tmp_path) == 3


@pytest.mark.process("trains a run of its own")
def test_save_that_fails_after_a_signal_is_told_with_its_own_cause(
    call, tiny, tmp_path, monkeypatch
):
    def fail(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saver.ocp, "save_checkpointables_async", fail)
    signal_when_logged(monkeypatch, 2, signal.SIGTERM)
    got = call(*tiny, "--workdir", tmp_path, "--config.checkpoint.every_steps=50")
    assert got.code == 5
    assert "cannot save a checkpoint: [Errno 28] No space left on device" in got.err


def test_signals_are_as_before_after_a_run(finished):
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_finished_run_says_so(call, tiny, finished):
    log, steps = log_of(finished), steps_on_disk(finished)
    outcome = call(*tiny, "--workdir", finished)
    assert outcome.code == 0
    assert "already finished" in outcome.out
    assert (log_of(finished), steps_on_disk(finished)) == (log, steps)


def test_run_killed_after_its_last_save_still_tells_its_hash(call, tiny, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    log = tmp_path / "run" / "log.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    outcome = call(*tiny, "--workdir", tmp_path / "run")
    assert outcome.code == 0
    assert log_of(tmp_path / "run") == log_of(finished)
    assert log_of(finished)[-1]["params_sha256"][:16] in outcome.out


def kill_while_training(command, workdir, environment, rng, lines):
    """Starts the command and kills it at a random moment, once `lines` steps were logged."""
    log = workdir / "log.jsonl"
    old = log.stat().st_ino if log.exists() else None
    arguments = [sys.executable, "-m", "deeplab_jax.train", *command[1:]]
    process = subprocess.Popen(
        [*arguments, "--workdir", str(workdir)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 300
        first = None
        while True:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            if log.exists() and log.stat().st_ino != old:
                count = log.read_text().count('"train"')
                first = count if first is None else first
                if count >= first + lines:
                    break
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.process("kills a process, and trains three times")
def test_killed_run_ends_bit_for_bit_as_the_uninterrupted(
    call, tiny, finished, tmp_path, compile_quickly
):
    kill_while_training(tiny, tmp_path, compile_quickly, np.random.default_rng(0), lines=4)
    assert call(*tiny, "--workdir", tmp_path).code == 0
    assert log_of(tmp_path) == log_of(finished)


@pytest.mark.slow("three kills for each of three seeds")
@pytest.mark.parametrize("seed", range(3))
def test_run_killed_three_times_ends_bit_for_bit_as_the_uninterrupted(
    call, seed, tiny, finished, tmp_path, compile_quickly
):
    rng = np.random.default_rng(seed)
    for _ in range(3):
        kill_while_training(tiny, tmp_path, compile_quickly, rng, lines=rng.integers(1, 4))
    assert call(*tiny, "--workdir", tmp_path).code == 0
    assert log_of(tmp_path) == log_of(finished)


@pytest.mark.slow("a whole run with reading processes")
def test_ctrl_c_with_reading_processes_saves(tiny, tmp_path, compile_quickly):
    """A terminal sends Ctrl-C to the processes that read as well."""
    arguments = [*tiny[1:], "--workdir", str(tmp_path), "--config.data.num_workers=2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "deeplab_jax.train", *arguments],
        env=compile_quickly,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        log = tmp_path / "log.jsonl"
        while process.poll() is None and not (log.exists() and '"step": 2' in log.read_text()):
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGINT)
        error = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert process.returncode == 130, error
    first, last = error.strip().splitlines()
    assert first == "stopping after this step; again to quit at once"
    assert last.startswith("train: stopped by SIGINT and saved at step ")


@MANY_RUNS
@pytest.mark.parametrize(
    "redirection", ["", pytest.param("2>&1", marks=pytest.mark.slow("as the other"))]
)
def test_reader_of_the_output_that_leaves_stops_the_run_as_a_signal_does(
    call, tiny, finished, tmp_path, compile_quickly, redirection
):
    command = shlex.join([sys.executable, "-m", "deeplab_jax.train", *tiny[1:]])
    workdir = tmp_path / "run"
    pipe = f"{command} --workdir {workdir} {redirection} | head -2; exit ${{PIPESTATUS[0]}}"
    got = subprocess.run(["bash", "-c", pipe], env=compile_quickly, capture_output=True, text=True)
    assert got.returncode == 141
    compiling = "compiling the training step 0:00, once per shape; cached afterwards"
    assert got.stdout.splitlines()[1] == compiling
    # The first step is told at once.
    assert checkpoint.latest_step(workdir) == 1
    told = f"train: stopped by SIGPIPE and saved at step 1 of {TOTAL} - repeat the command to go on"
    assert got.stderr.strip() == ("" if redirection else told)
    assert call(*tiny, "--workdir", workdir).code == 0
    assert log_of(workdir) == log_of(finished)


@pytest.mark.slow("starts six processes; the cache has tests of its own")
def test_second_start_compiles_nothing(tiny, tmp_path, compile_quickly):
    environment = compile_quickly | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs")}
    folder, steps = tiny[-1].split("=")[1], "--config.train.steps=2"
    image = next(path for path in Path(folder, "images").rglob("*.*") if path.is_file())

    def start(verb, *flags):
        command = [sys.executable, "-m", "deeplab_jax", verb, *flags]
        got = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert got.returncode == 0, got.stderr
        return got.stdout, {path.name for path in (tmp_path / "programs").glob("*-cache")}

    first = start(*tiny, steps, "--workdir", tmp_path / "a")
    second = start(*tiny, steps, "--workdir", tmp_path / "b")
    assert "the training step: compiled in " in first[0]
    assert "the training step: from the cache in " in second[0]
    assert second[1] == first[1]
    evaluate = ["evaluate", "--checkpoint", tmp_path / "a"]
    assert start(*evaluate)[1] == start(*evaluate)[1]
    predict = ["predict", "--checkpoint", tmp_path / "a", "--output"]
    once, again = (start(*predict, tmp_path / name, image)[1] for name in "cd")
    assert once == again


@MANY_RUNS
def test_failed_evaluation_saves_the_state_and_is_made_up_for(
    call, tiny, finished, tmp_path, monkeypatch
):
    original = validation.Evaluator.__call__

    def fail(*args, **options):
        raise DataError("mask", "is damaged", "replace it")

    monkeypatch.setattr(validation.Evaluator, "__call__", fail)
    assert call(*tiny, "--workdir", tmp_path).code == 3
    assert checkpoint.latest_step(tmp_path) == 8  # where the first evaluation is due
    monkeypatch.setattr(validation.Evaluator, "__call__", original)
    assert call(*tiny, "--workdir", tmp_path).code == 0
    assert log_of(tmp_path) == log_of(finished)


@MANY_RUNS
def test_stop_during_evaluation_leaves_it_owed_until_it_is_done(
    call, tiny, finished, tmp_path, monkeypatch
):
    original = validation.Evaluator.__call__

    def stop(*args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **options)

    monkeypatch.setattr(validation.Evaluator, "__call__", stop)
    for _ in range(2):  # in the evaluation that is due, then in the one that is made up for
        assert call(*tiny, "--workdir", tmp_path).code == 143
        assert checkpoint.latest_step(tmp_path) == 8
    monkeypatch.setattr(validation.Evaluator, "__call__", original)
    assert call(*tiny, "--workdir", tmp_path).code == 0
    assert log_of(tmp_path) == log_of(finished)


# The step


@MANY_RUNS
def test_step_compiles_once_from_a_new_state_and_from_a_restored_one(interrupted):
    assert [train_step._cache_size() for train_step in interrupted.jitted] == [1, 1, 1]


@MANY_RUNS
def test_state_is_donated(interrupted):
    assert interrupted.alive == 0


@MANY_RUNS
def test_step_moves_nothing_between_host_and_devices(tiny_config, finished):
    setup = gather(tiny_config, finished)
    state, mesh = restore_or_init(setup)[1], setup.mesh
    train_step = make_train_step(tiny_config, setup.plan.total, mesh)
    batch = (np.zeros((4, 64, 64, 3), "u1"), np.zeros((4, 64, 64), "u1"), np.full((4, 4), 64, "i4"))
    on_device = mesh_lib.put_batch(batch, mesh, 4)
    with jax.transfer_guard("disallow"):
        state, _ = train_step(state, *on_device)
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            train_step(state, *batch)  # so the guard does notice


# What is not finite


def ids_of(run_config, step):
    dataset = open_dataset(run_config.data, run_config.model.num_classes, "train")
    order = SampleOrder(len(dataset), run_config.seed, 4, 4)
    return ", ".join(dataset.ids[order.locate(step - 1, row)[0]] for row in range(4))


def overwrite(monkeypatch, step, item, name, value):
    """Fills the arrays of that name in an item of the state, before a step."""

    def fill(path, leaf):
        if path[-1].key != name:
            return leaf
        return jax.device_put(np.full(leaf.shape, value, leaf.dtype), leaf.sharding)

    def before(state):
        if int(state["step"]) != step - 1:
            return state
        return state | {item: jax.tree_util.tree_map_with_path(fill, state[item])}

    spy_on_steps(monkeypatch, before)


def test_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_step(
    call, tiny, tiny_config, tmp_path, monkeypatch
):
    overwrite(monkeypatch, 5, "params", "kernel", np.nan)
    code, _, error = call(*tiny, "--workdir", tmp_path)
    assert code == 6
    assert error.count("\n") == 1
    assert "step 5 is not finite: loss nan" in error
    assert f"images {ids_of(tiny_config, 5)} " in error
    assert "the last saved step, 3, is kept" in error
    assert steps_on_disk(tmp_path) == [3]
    assert is_finite(checkpoint.restore(tmp_path, 3, abstract_items(tiny_config)))


@MANY_RUNS
def test_statistics_that_are_not_finite_are_not_saved_though_the_loss_is_finite(
    call, tiny, tmp_path, monkeypatch
):
    overwrite(monkeypatch, 3, "batch_stats", "var", np.inf)  # training does not read it
    code, _, error = call(*tiny, "--workdir", tmp_path)
    assert code == 6
    assert np.isfinite(float(error.split("step 3 is not finite: loss ")[1].split(",")[0]))
    assert "nothing was saved" in error
    assert steps_on_disk(tmp_path) == []


@MANY_RUNS
def test_far_too_large_rate_stops_the_run_and_saves_nothing_that_is_not_finite(
    call, tiny, tiny_config, tmp_path
):
    extreme = ["--config.train.lr=1e30", "--config.checkpoint.every_steps=1"]
    code, _, error = call(*tiny, "--workdir", tmp_path, *extreme)
    assert code == 6
    assert error.count("\n") == 1
    step = int(error.split(": step ")[1].split(" ")[0])
    assert step <= 4
    assert ids_of(tiny_config, step) in error
    for kept in steps_on_disk(tmp_path):
        assert kept < step
        assert is_finite(checkpoint.restore(tmp_path, kept, abstract_items(tiny_config)))


# The hash that a run ends with


def test_hash_depends_on_names_and_on_each_bit():
    tree = {"a": np.ones(3, np.float32), "b": np.zeros(2, np.float32)}
    assert tree_hash(tree) == tree_hash(jax.tree.map(jax.numpy.asarray, tree))
    assert tree_hash({"a": tree["a"], "c": tree["b"]}) != tree_hash(tree)
    tree["b"][1] = -0.0
    assert tree_hash(tree) != tree_hash({"a": tree["a"], "b": np.zeros(2, "f4")})


def test_device_that_does_not_tell_its_memory_disturbs_no_one(monkeypatch):
    def fail():
        raise jax.errors.JaxRuntimeError("UNAVAILABLE: the device is gone")

    monkeypatch.setattr(jax, "local_devices", lambda: [SimpleNamespace(memory_stats=fail)])
    assert peak_memory() is None
    monkeypatch.setattr(jax, "local_devices", lambda: [SimpleNamespace(memory_stats=lambda: None)])
    assert peak_memory() is None
