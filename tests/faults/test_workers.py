"""Readers that die, hang or are slow; one sample of a made-up source does so by itself."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

import cloudpickle
import numpy as np
import pytest

from deeplab_jax import checkpoint
from deeplab_jax.data import eval_examples, open_dataset, train_batches
from deeplab_jax.data import workers as workers_lib
from deeplab_jax.errors import DataError, ReaderError
from deeplab_jax.training.bad_samples import leave_out

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # processes do not find this module

TEXT = {"capture_output": True, "text": True}
BAD = 5  # the sample that goes wrong
OPTIONS = {
    "seed": 3,
    "batch_size": 4,
    "steps_per_epoch": 3,
    "start": 0,
    "stop": 30,
    "rows": range(4),
    "crop_size": (48, 64),
    "resize_base": (96, 64),
    "scale_range": (0.5, 2.0),
}


@dataclasses.dataclass
class FaultySource:
    """Calls `fault` before the bad sample, or before every one."""

    source: object
    fault: object
    is_every: bool = False

    def read(self, index):
        if self.is_every or index == BAD:
            self.fault()
        return self.source.read(index)

    def names(self, index):
        return self.source.names(index)


@pytest.fixture
def dataset(make_tree, narrow_config):
    config = narrow_config(f"data.root={make_tree('folder', num_train=12)}")
    return open_dataset(config.data, 4, "train")


def with_fault(dataset, fault, **options):
    return dataclasses.replace(dataset, source=FaultySource(dataset.source, fault, **options))


def read(dataset, num_workers=0, **changes):
    return list(train_batches(dataset, num_workers=num_workers, **(OPTIONS | changes)))


def raised(function, seconds):
    """Returns the error of `function`, which must come within so many seconds."""
    began = time.monotonic()
    with pytest.raises(ReaderError) as caught:
        function()
    assert time.monotonic() - began < seconds
    return caught.value


def hang():
    threading.Event().wait()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def stop():
    os.kill(os.getpid(), signal.SIGSTOP)


# Threads


@pytest.mark.parametrize("is_training", [True, False])
def test_thread_that_hangs_is_told_with_its_sample_and_place(
    dataset, monkeypatch, capfd, is_training
):
    monkeypatch.setattr(workers_lib, "PATIENCE", 1.5)
    faulty = with_fault(dataset, hang)
    run = (
        (lambda: read(faulty))
        if is_training
        else lambda: list(eval_examples(faulty, range(12), ()))
    )
    error = raised(run, seconds=20)
    image, mask = dataset.source.names(BAD)
    assert error.where == image
    assert error.what.startswith(f"reading this and its mask {mask} has taken more than")
    told = capfd.readouterr().err
    assert f"reading {image} and {mask}" in told
    assert " in hang" in told


def test_slow_readers_that_go_on_are_no_failure(dataset, monkeypatch):
    monkeypatch.setattr(workers_lib, "PATIENCE", 1.5)
    faulty = with_fault(dataset, lambda: time.sleep(0.6), is_every=True)
    assert len(read(faulty, stop=1)) == 1  # 2.4 s


def test_sample_that_hangs_while_bad_ones_are_sought_is_told(dataset, monkeypatch, tmp_path):
    monkeypatch.setattr(workers_lib, "PATIENCE", 1.5)
    faulty = with_fault(dataset, hang)
    error = raised(lambda: leave_out(faulty, 1, tmp_path, False), seconds=20)
    assert error.where == dataset.source.names(BAD)[0]
    assert not list(tmp_path.iterdir())


def test_thread_that_hangs_does_not_keep_the_process(tmp_path):
    (tmp_path / "hang.py").write_text(
        "import os, sys\n"
        "from deeplab_jax import cli\n"
        "from deeplab_jax.data import workers\n"
        "workers.PATIENCE = 1\n"
        "def read(item):\n"
        "    with workers.reading(item):\n"
        "        return os.read(os.pipe()[0], 1) if item == 5 else item\n"
        "def main(argv):\n"
        "    names = lambda index: (f'{index}.jpg', f'{index}.png')\n"
        "    for item in workers.in_threads(read, range(9), 2, names):\n"
        "        print(item, flush=True)\n"
        "cli.run(main, [])\n"
    )
    got = subprocess.run([sys.executable, tmp_path / "hang.py"], timeout=30, **TEXT)
    assert got.returncode == 5
    assert got.stdout.split() == ["0", "1", "2", "3", "4"]
    assert got.stderr.splitlines()[-1].startswith(
        "error: 5.jpg: reading this and its mask 5.png has"
    )


def test_threads_end_with_the_batches(dataset):
    before = threading.active_count()
    batches = train_batches(dataset, num_workers=0, **OPTIONS)
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


def test_pipe_in_place_of_an_image_is_refused_at_once(dataset):
    path = dataset.source.names(BAD)[0]
    os.remove(path)
    os.mkfifo(path)
    began = time.monotonic()
    with pytest.raises(DataError) as caught:
        read(dataset)
    assert caught.value.where == path
    assert time.monotonic() - began < 10


# Processes


@pytest.mark.parametrize(
    ("fault", "num_workers", "what"),
    [
        (die, 2, "died while reading this and its mask"),
        (stop, 2, "reading this and its mask"),
        (hang, 1, "reading this and its mask"),
    ],
)
def test_process_that_dies_or_hangs_is_told_with_its_sample(
    dataset, monkeypatch, capfd, fault, num_workers, what
):
    monkeypatch.setattr(workers_lib, "PATIENCE", 3)
    error = raised(lambda: read(with_fault(dataset, fault), num_workers), seconds=60)
    assert error.where == dataset.source.names(BAD)[0]
    assert what in error.what
    assert dataset.source.names(BAD)[1] in error.what
    told = capfd.readouterr().err
    assert ("in hang" in told) == (fault is hang)
    assert workers_lib._children() == []


@pytest.mark.process("waits ten seconds for a process that is stopped")
def test_process_that_is_stopped_between_samples_is_told_by_its_last(dataset, monkeypatch):
    monkeypatch.setattr(workers_lib, "SILENCE", 8)  # starved, it also misses beats
    batches = train_batches(dataset, num_workers=1, **OPTIONS)
    next(batches)
    time.sleep(1)  # until it has filled its buffer
    os.kill(workers_lib._children()[0], signal.SIGSTOP)
    time.sleep(10)  # nobody waits
    error = raised(lambda: next(batches), seconds=6)  # less than another 8
    assert error.where in [dataset.source.names(index)[0] for index in range(len(dataset))]
    assert error.what.startswith("going on after this and its mask")
    batches.close()
    assert workers_lib._children() == []


def test_process_that_dies_as_it_starts_is_told(dataset, monkeypatch):
    monkeypatch.setattr(
        workers_lib, "_start_process", lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    )
    error = raised(lambda: read(dataset, num_workers=1), seconds=60)
    assert str(error).startswith("a reading process: died before its first sample - ")


def test_process_that_does_not_start_is_told(dataset, monkeypatch):
    monkeypatch.setattr(workers_lib, "START_PATIENCE", 0.5)
    monkeypatch.setattr(workers_lib, "PATIENCE", 1)
    error = raised(lambda: read(dataset, num_workers=1), seconds=60)
    assert "1 of 1 did not start in 0 s" in str(error)


# Training

TIMES = ("images_per_second", "data_wait")
_WHOLE_RUN = pytest.mark.process(
    "trains with reading processes; their deaths are in the first tier"
)
_RUNS = pytest.mark.slow("minutes of whole runs with reading processes")

CHANGES = """
name = "tiny"
data.num_workers = 2
train.steps = 100
eval.every_epochs = 100
checkpoint.every_steps = 100
"""


@pytest.fixture(scope="module")
def environment(compile_quickly):
    """The environment of training commands, which see one device."""
    return compile_quickly | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}


@pytest.fixture(scope="module")
def memo():
    """The log of the uninterrupted run, once there was one."""
    return []


@pytest.fixture
def start(environment, make_tree, tiny_recipe, tmp_path):
    """Returns start(name) -> a training process that leads its own group, in its workdir."""
    root = make_tree("folder", num_train=16, num_val=2)
    (root / "tiny.py").write_text(tiny_recipe(CHANGES))
    started = []

    def make(name="run"):
        command = [sys.executable, "-m", "deeplab_jax.train", "--config", f"{root}/tiny.py"]
        command += [f"--config.data.root={root}", "--workdir", str(tmp_path / name)]
        process = subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        process.workdir, process.root = tmp_path / name, root
        started.append(process)
        return process

    yield make
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def wait_for_step(process, step):
    log = process.workdir / "log.jsonl"
    while not (log.exists() and f'"step": {step},' in log.read_text()):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


def workers(process):
    """Returns the processes that read for a training process."""
    found = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "spawn_main"], **TEXT)
    return [int(pid) for pid in found.stdout.split()]


def all_ended(process):
    """Tells whether every process of its group ends within ten seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        listed = subprocess.run(["ps", "-eo", "pgid=,stat="], **TEXT).stdout.splitlines()
        states = [state for pgid, state in map(str.split, listed) if int(pgid) == process.pid]
        if all(state.startswith("Z") for state in states):  # none may be there to collect them
            return True
        time.sleep(0.1)
    return False


def finish(process, code):
    """Returns the last line of what a process told before it ended with `code`."""
    error = process.communicate(timeout=120)[1]
    assert process.returncode == code, error
    return (error.strip().splitlines() or [""])[-1]


def log_of(process):
    """Returns what a run logged, without times."""
    lines = [json.loads(line) for line in (process.workdir / "log.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["event"] != "time"]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def check_names_a_sample(line, process, seconds):
    assert seconds < 30
    assert line.startswith(f"error: {process.root}/images/train/")
    assert f"its mask {process.root}/labels/train/" in line


@_WHOLE_RUN
def test_run_whose_reader_is_killed_names_the_sample_and_saves(start):
    process = start()
    wait_for_step(process, 3)
    began = time.monotonic()
    os.kill(workers(process)[0], signal.SIGKILL)
    check_names_a_sample(finish(process, 5), process, time.monotonic() - began)
    assert all_ended(process)
    assert checkpoint.latest_step(process.workdir) >= 3


@_RUNS
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_run_continued_after_a_lost_reader_equals_an_uninterrupted_one(start, memo, number, seed):
    rng = np.random.default_rng(seed)
    process = start()
    wait_for_step(process, rng.integers(1, 40))
    began = time.monotonic()
    os.kill(rng.choice(workers(process)), number)
    line = finish(process, 5)
    check_names_a_sample(line, process, time.monotonic() - began)
    assert all_ended(process)
    finish(start(), 0)
    if not memo:
        control = start("control")
        finish(control, 0)
        memo.extend(log_of(control))
    assert log_of(process) == memo


@_RUNS
@pytest.mark.parametrize("seed", range(3))
def test_signal_to_the_whole_group_saves_and_ends_the_readers(start, seed):
    process = start()
    wait_for_step(process, 1 + 5 * seed)
    os.killpg(process.pid, signal.SIGTERM)
    assert finish(process, 143).startswith("train: stopped by SIGTERM and saved at step ")
    assert all_ended(process)
    assert checkpoint.latest_step(process.workdir) > 5 * seed


@_RUNS
def test_signal_to_the_group_while_the_readers_start_ends_all_at_once(start):
    process = start()
    while len(workers(process)) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    assert finish(process, 143).startswith("train: stopped by SIGTERM before a new step; nothing ")
    assert all_ended(process)


@_RUNS
@pytest.mark.parametrize("seed", range(3))
def test_readers_of_a_killed_run_end(start, seed):
    process = start()
    wait_for_step(process, 1 + 5 * seed)
    assert len(workers(process)) == 2
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert all_ended(process)


@_RUNS
def test_readers_that_start_as_the_run_is_killed_end(start):
    process = start()
    while len(workers(process)) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(10)  # until they would have started
    assert all_ended(process)


@_RUNS
def test_pipe_in_place_of_a_mask_ends_a_run(start):
    process = start()
    wait_for_step(process, 1)
    for path in (process.root / "labels" / "train").iterdir():
        path.unlink()
        os.mkfifo(path)
    began = time.monotonic()
    assert finish(process, 3).startswith(f"error: {process.root}/labels/train/")
    assert time.monotonic() - began < 20
    assert checkpoint.latest_step(process.workdir) >= 1
