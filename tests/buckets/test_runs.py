"""Runs whose work directory lies in a bucket."""

import json
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax import checkpoint
from deeplab_jax.utils.places import as_place

pytestmark = pytest.mark.process("starts servers, trains, kills")
CHANGES = """
name = "tiny"
train.steps = 6
eval.every_epochs = 2
checkpoint.every_steps = 2
"""
ITEMS = {"params": {"w": jnp.arange(2000.0)}, "batch_stats": {"m": jnp.ones(4)}}


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly(compile_quickly):
    """This module trains."""


@pytest.fixture(scope="module")
def root(make_tree, tiny_recipe):
    root = make_tree("folder", num_train=8, num_val=2)
    (root / "tiny.py").write_text(tiny_recipe(CHANGES))
    return root


@pytest.fixture(scope="module")
def tiny(root):
    """The command that trains, without its work directory."""
    return ["train", "--config", f"{root}/tiny.py", f"--config.data.root={root}"]


@pytest.fixture(scope="module")
def local(tiny, tmp_path_factory):
    """The log of the same run on a disk."""
    workdir = tmp_path_factory.mktemp("local")
    command = [sys.executable, "-m", "deeplab_jax", *tiny, "--workdir", str(workdir)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return log_of(workdir)


def log_of(workdir):
    timed = ("images_per_second", "data_wait")
    lines = (as_place(workdir) / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def test_step_is_saved_and_restored(top):
    with checkpoint.Saver(top) as saver:
        for step in (1, 2, 3):
            saver.save(step, ITEMS, checkpoint.Info(kind="weights"), {"mean_iou": 1 / step})
    assert checkpoint.find_step(top) == 3
    assert checkpoint.find_step(top, "best") == 1
    assert sorted(place.name for place in (as_place(top) / "checkpoints").iterdir()) == ["1", "3"]
    assert checkpoint.read_info(top).metrics == {"mean_iou": 1 / 3}
    got = checkpoint.read_arrays(top, "latest", ["params"])
    np.testing.assert_array_equal(got["params"]["w"], ITEMS["params"]["w"])


def test_step_whose_last_file_is_missing_is_none(top):
    with checkpoint.Saver(top) as saver:
        for step in (1, 2):
            saver.save(step, ITEMS, checkpoint.Info(kind="weights"), {"mean_iou": 1 / step})
    (as_place(top) / "checkpoints" / "2" / "commit_success.txt").unlink()
    assert checkpoint.find_step(top) == 1
    with checkpoint.Saver(top) as saver:
        saver.save(2, ITEMS, checkpoint.Info(kind="weights"))
    assert checkpoint.find_step(top) == 2


def test_killed_run_goes_on_and_ends_as_one_on_a_disk(call, tiny, local, top):
    command = [sys.executable, "-m", "deeplab_jax", *tiny, "--workdir", top]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while checkpoint.latest_step(top) is None:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGSTOP)
    second = call(*tiny, "--workdir", top)
    assert second.code == 2
    assert f"{top}: another process trains here (pid {process.pid} on " in second.err
    process.kill()
    process.communicate()
    got = call(*tiny, "--workdir", top)
    assert (got.code, log_of(top)) == (0, local)
    assert "continuing at step" in got.out
    names = {place.name for place in as_place(top).iterdir()}
    assert names >= {"config.json", "progress.png", "label_counts.json", "checkpoints"}
