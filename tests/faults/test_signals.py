"""Real runs that are asked to stop where the main thread answers no signal, and where it does."""

import re
import signal
import subprocess
import sys
import time

import pytest

from deeplab_jax import checkpoint
from deeplab_jax.errors import ConfigError, ResourceError
from deeplab_jax.training.signals import Stop
from deeplab_jax.utils import background

TERM, INT = signal.SIGTERM, signal.SIGINT
RUN = pytest.mark.process("starts a process that trains")

# Trains after a change; `block` stands for C++, which runs no handler of Python's.
DRIVER = """
import ctypes, sys
import jax
from deeplab_jax import checkpoint, cli
from deeplab_jax.train import main
from deeplab_jax.training import loop

sleep = ctypes.CDLL(None).sleep

def block(*args, **options):
    print("blocked", flush=True)
    while True:
        sleep(600)

def block_when_saved():
    workdir = sys.argv[sys.argv.index("--workdir") + 1]
    while checkpoint.latest_step(workdir) is None:
        sleep(1)
    block()

def block_at(number):
    make = loop.make_train_step
    def make_spied(*args):
        inner, count = make(*args), iter(range(1, 99))
        return lambda *args: inner(*args) if next(count) < number else block_when_saved()
    loop.make_train_step = make_spied

def save_slowly():
    save = checkpoint.Saver.save
    def slowly(*args):
        print("blocked", flush=True)
        sleep(2)
        return save(*args)
    loop.checkpoint.Saver.save = slowly

def take_long_steps():
    loop.Speed.step_seconds = property(lambda self: 40.0, lambda self, value: None)

exec(sys.argv[1])
cli.run(main, sys.argv[2:])
"""

# 4 steps an epoch.
CHANGES = """
name = "tiny"
train.steps = 20
eval.every_epochs = 2
checkpoint.every_steps = 3
"""


@pytest.fixture(scope="module")
def recipe_path(make_tree, tiny_recipe):
    root = make_tree("folder", num_train=16, num_val=2)
    (root / "tiny.py").write_text(tiny_recipe(CHANGES))
    return root / "tiny.py"


@pytest.fixture
def stopped(recipe_path, compile_quickly, tmp_path):
    """Returns stopped(change, *signals, flags=()) -> (code, last line, seconds, saved step).

    The first signal comes once the run says "blocked", others half a second after the one before.
    """

    def stopped(change, *signals, flags=()):
        command = [sys.executable, "-c", DRIVER, change, "--config", str(recipe_path)]
        command += [f"--config.data.root={recipe_path.parent}", "--workdir", str(tmp_path), *flags]
        process = subprocess.Popen(
            command,
            env=compile_quickly,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            for line in process.stdout:
                if line == "blocked\n":
                    break
            began = time.monotonic()
            for number in signals:
                process.send_signal(number)
                time.sleep(0.5)
            error = process.communicate(timeout=60)[1]
        finally:
            process.kill()
        seconds = time.monotonic() - began
        assert "Traceback" not in error, error
        last = error.splitlines()[-1] if error else ""
        return process.returncode, last, seconds, checkpoint.latest_step(tmp_path)

    return stopped


@RUN
@pytest.mark.parametrize(
    ("change", "number", "code"),
    [
        ("loop.make_train_step = lambda *args: block", TERM, 143),  # compiles
        ("loop.make_train_step = lambda *args: block", INT, 130),
        ("loop.restore_or_init = block", TERM, 143),
    ],
)
def test_where_nothing_is_unsaved_a_signal_ends_the_run_at_once(stopped, change, number, code):
    got, line, seconds, saved = stopped(change, number)
    told = f"train: stopped by {number.name} before a new step; nothing was unsaved"
    assert (got, line, saved) == (code, f"{told} - repeat the command to go on", None)
    assert seconds < 5


@RUN
def test_evaluation_that_compiles_is_left_for_the_steps_before_it(stopped):
    got, line, seconds, saved = stopped("jax.stages.Lowered.compile = block", TERM)
    told = "train: stopped by SIGTERM and saved at step 8 of 20 - repeat the command to go on"
    assert (got, line, saved) == (143, told, 8)
    assert seconds < 20


@RUN
def test_save_under_way_is_waited_for(stopped):
    got, line, seconds, saved = stopped("save_slowly()", TERM)
    assert (got, saved) == (143, 3)
    assert line.startswith("train: stopped by SIGTERM and saved at step 3 of 20 - ")
    assert seconds < 20


@RUN
def test_second_signal_leaves_at_once_with_the_last_save(stopped):
    got, line, seconds, saved = stopped("block_at(6)", TERM, INT)
    told = "train: stopped by SIGINT, asked twice: what was not saved before is lost - "
    assert (got, saved) == (130, 3)
    assert line.startswith(told)
    assert seconds < 5


@RUN
def test_run_is_gone_by_the_deadline_though_a_step_hangs(stopped):
    got, line, seconds, saved = stopped("block_at(6)", TERM, flags=("--save-within", "6"))
    what = "not saved within 6 s (--save-within); lost are the steps after 3, up to 5"
    told = f"train: stopped by SIGTERM, and {what} - repeat the command to go on"
    assert (got, line, saved) == (143, told, 3)
    assert 4 < seconds < 6


@RUN
def test_run_that_cannot_save_in_time_leaves_with_the_last_save(stopped):
    change = "take_long_steps(); block_at(6)"
    got, line, seconds, saved = stopped(change, TERM, flags=("--save-within", "30"))
    assert (got, saved) == (143, 3)
    what = (
        r"train: stopped by SIGTERM: a step takes 40\.0 s and a save \d+\.\d s, --save-within 30;"
        r" lost are the steps after 3, up to 5 - repeat the command to go on"
    )
    assert re.fullmatch(what, line), line
    assert seconds < 5


def test_time_to_save_counts_step_save_and_the_save_under_way():
    stop = Stop(20)
    stop.begun(3, None)
    assert stop.misfit() == ""  # nothing was measured yet
    stop.begun(4, 12.0)
    assert stop.misfit() == ""
    answers = iter([ResourceError("gs://b", "the bucket gives no answer", "wait"), False, True])

    def is_there():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    stop.saving(4, is_there)
    while stop.saved != 4:
        time.sleep(0.01)
    assert stop.misfit() == ""
    stop.begun(5, 18.2)
    assert stop.misfit() == ""
    stop.begun(5, 19.1)
    assert stop.misfit().startswith("a step takes 19.1 s and a save 0.")
    assert Stop().misfit() == ""


def test_time_to_save_that_is_too_short_names_the_least():
    for seconds in (2.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="--save-within: must be 5 or more"):
            Stop(seconds)


def test_work_is_done_or_left():
    assert background.unless(lambda: False, lambda: 7) == 7
    with pytest.raises(KeyError):
        background.unless(lambda: False, lambda: {}[1])
    is_over = []

    def work():
        while not is_over:
            time.sleep(0.01)

    with pytest.raises(background.Abandoned):
        background.unless(lambda: True, work)
    assert background.is_left()
    is_over.append(True)
    while background.is_left():
        time.sleep(0.01)
