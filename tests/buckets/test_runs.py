"""Checkpoints and runs in a bucket."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax import checkpoint
from deeplab_jax.config.recipe import load_recipe
from deeplab_jax.errors import DamagedError
from deeplab_jax.training.log import JsonLog
from deeplab_jax.training.loop import train
from deeplab_jax.utils.places import as_place

pytestmark = pytest.mark.process("starts servers, trains, kills")
CHANGES = """
name = "tiny"
train.steps = 6
eval.every_epochs = 2
checkpoint.every_steps = 2
"""
ITEMS = {"params": {"w": jnp.arange(2000.0)}, "batch_stats": {"m": jnp.ones(4)}}
# Arrays go another way than other files; here that way alone leads nowhere.
LOST = """
import sys
import numpy as np
from deeplab_jax import checkpoint, cli
from deeplab_jax.checkpoint import bucket

def save(argv):
    with checkpoint.Saver(argv[0]) as saver:
        saver.save(2, {"params": {"w": np.ones(9)}}, checkpoint.Info(kind="weights"))

def read(argv):
    checkpoint.read_arrays(argv[0], 1, ["params"])

bucket.RETRIES |= {"max_retries": 1}
spec = bucket.s3_spec
bucket.s3_spec = lambda path: spec(path) | {"endpoint": "http://127.0.0.1:9"}
cli.run({"save": save, "read": read}[sys.argv.pop()])
"""


# Saves without end; an array of step N holds N alone.
SAVING = """
import sys
import numpy as np
from deeplab_jax import checkpoint

with checkpoint.Saver(sys.argv[1]) as saver:
    for step in range((checkpoint.latest_step(sys.argv[1]) or 0) + 1, 10**6):
        items = {name: {"a": np.full(2000, step)} for name in ("params", "batch_stats")}
        saver.save(step, items, checkpoint.Info(kind="weights"))
        print(step, flush=True)
"""


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly(compile_quickly):
    """This module trains."""


@pytest.fixture(scope="module")
def tiny(make_tree, tiny_recipe):
    """The command that trains, without its work directory."""
    root = make_tree("folder", num_train=8, num_val=2)
    (root / "tiny.py").write_text(tiny_recipe(CHANGES))
    return ["train", "--config", f"{root}/tiny.py", f"--config.data.root={root}"]


@pytest.fixture(scope="module")
def local(tiny, tmp_path_factory):
    """The log of the same run on a disk."""
    workdir = tmp_path_factory.mktemp("local")
    train(load_recipe(tiny[2], tiny[3:]), workdir)
    return log_of(workdir)


def log_of(workdir):
    timed = ("images_per_second", "data_wait")
    lines = map(json.loads, (as_place(workdir) / "log.jsonl").read_text().splitlines())
    return [
        {k: v for k, v in line.items() if k not in timed}
        for line in lines
        if line["event"] != "time"
    ]


def save(top, *steps):
    with checkpoint.Saver(top) as saver:
        for step in steps:
            saver.save(step, ITEMS, checkpoint.Info(kind="weights"), {"mean_iou": 1 / step})


def files_below(place):
    return [
        file
        for entry in place.iterdir()
        for file in (files_below(entry) if entry.is_dir() else [entry])
    ]


def test_steps_are_saved_kept_and_restored(top):
    save(top, 1, 2, 3, 4)
    assert checkpoint.find_step(top) == 4
    assert checkpoint.find_step(top, "best") == 1
    steps = (as_place(top) / "checkpoints").iterdir()
    assert sorted(place.name for place in steps) == ["1", "3", "4"]
    assert checkpoint.read_info(top).metrics == {"mean_iou": 1 / 4}
    got = checkpoint.read_arrays(top, "latest", ["params"])
    np.testing.assert_array_equal(got["params"]["w"], ITEMS["params"]["w"])


def test_unfinished_step_is_none_and_gives_way(top):
    save(top, 1, 2)
    steps = as_place(top) / "checkpoints"
    (steps / "2" / "commit_success.txt").unlink()
    (steps / "7" / "of somebody").write_bytes(b"else")
    assert checkpoint.find_step(top) == 1
    save(top, 2)
    assert checkpoint.finished(top) == [1, 2]
    assert [file.name for file in files_below(steps / "7")] == ["of somebody"]


def test_flipped_bit_is_refused_or_changes_nothing(top):
    rng = np.random.default_rng(0)
    save(top, 1)
    refused = set()
    for file in files_below(as_place(top) / "checkpoints" / "1"):
        if not (good := file.read_bytes()):
            continue
        bad = bytearray(good)
        bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        file.write_bytes(bytes(bad))
        try:
            got = checkpoint.read_arrays(top, 1, ITEMS)
            assert all(map(np.array_equal, jax.tree.leaves(got), jax.tree.leaves(ITEMS)))
        except DamagedError:
            refused.add(file.name)
        file.write_bytes(good)
    assert refused >= {"_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt"}
    assert checkpoint.read_arrays(top, 1, ITEMS).keys() == ITEMS.keys()


def test_best_step_is_not_chosen_among_steps_of_which_one_is_damaged(top):
    save(top, 1, 2, 3)
    (as_place(top) / "checkpoints" / "1" / "_CHECKPOINT_METADATA").write_bytes(b"{")
    with pytest.raises(DamagedError, match="checkpoints/1: is damaged: "):
        checkpoint.find_step(top, "best")


def test_damaged_step_is_set_aside_and_its_number_is_free(top):
    save(top, 1, 2)
    steps = as_place(top) / "checkpoints"
    before = len(files_below(steps / "2"))
    assert checkpoint.set_aside(top, 2, "damaged") == steps / "2.damaged"
    assert len(files_below(steps / "2.damaged")) == before
    assert (checkpoint.finished(top), checkpoint.set_aside_before(top)) == ([1], ["2.damaged"])
    save(top, 2)
    assert checkpoint.finished(top) == [1, 2]


def test_checkpoint_verbs_take_addresses(call, top, tmp_path):
    save(top, 1, 2)
    steps = as_place(top) / "checkpoints"
    (steps / "2" / "commit_success.txt").unlink()
    (steps / "7" / "of somebody").write_bytes(b"else")
    code, out, err = call("checkpoint", "ls", top)
    assert (code, err) == (0, "")
    assert out.splitlines()[1].startswith("1     weights  0.0 MB  100.00 %  yes        20")
    assert out.splitlines()[2].startswith("2: an unfinished save or removal, 0.0 MB")
    assert out.splitlines()[3] == "7: not of this program"
    assert call("checkpoint", "verify", top).out == "step 1: 2 arrays are as saved\n"
    assert call("checkpoint", "rm", top, "1").code == 4
    assert call("checkpoint", "rm", top, "7").code == 4
    assert call("checkpoint", "rm", top, "2").code == 0
    assert sorted(place.name for place in steps.iterdir()) == ["1", "7"]
    assert call("checkpoint", "export", top, "--output", tmp_path / "here").code == 0
    assert call("checkpoint", "diff", top, tmp_path / "here").out == "nothing differs\n"


@pytest.mark.parametrize(
    ("verb", "what"),
    [("save", "cannot save a checkpoint"), ("read", "the bucket cannot be read")],
)
def test_lost_connection_ends_in_one_line_and_is_no_damage(top, verb, what):
    save(top, 1)
    got = subprocess.run(
        [sys.executable, "-c", LOST, top, verb],
        env=os.environ | {"TENSORSTORE_GCS_HTTP_URL": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert got.returncode == 5, got.stderr
    last = got.stderr.splitlines()[-1]
    assert f"{what}: All 1 retry attempts failed: CURL error" in last
    assert "Traceback" not in got.stderr
    assert checkpoint.finished(top) == [1]


def terminate_at(step, patch):
    """Sends SIGTERM to this process when a step is logged."""
    write = JsonLog.write

    def spy(log, event, number, values):
        write(log, event, number, values)
        if (event, number) == ("train", step):
            os.kill(os.getpid(), signal.SIGTERM)

    patch.setattr(JsonLog, "write", spy)


@pytest.mark.parametrize(
    "server", ["gs", pytest.param("s3", marks=pytest.mark.slow("as on gs"))], indirect=True
)
def test_killed_run_goes_on_and_ends_as_one_on_a_disk(
    call, tiny, local, top, server, compile_quickly, monkeypatch
):
    process = subprocess.Popen(
        [sys.executable, "-m", "deeplab_jax", *tiny, "--workdir", top],
        env=compile_quickly | server.environment,
        stdout=subprocess.DEVNULL,
    )
    while checkpoint.latest_step(top) is None:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGSTOP)
    second = call(*tiny, "--workdir", top)
    assert second.code == 2
    assert f"{top}: another process trains here (pid {process.pid} on " in second.err
    process.kill()
    process.wait()
    with monkeypatch.context() as patch:
        terminate_at(checkpoint.latest_step(top) + 1, patch)
        assert call(*tiny, "--workdir", top).code == 143
    assert log_of(top)[-1]["step"] == checkpoint.latest_step(top)
    got = call(*tiny, "--workdir", top)
    assert (got.code, log_of(top)) == (0, local)
    assert "continuing at step" in got.out
    names = {place.name for place in as_place(top).iterdir()}
    assert names >= {"config.json", "progress.png", "label_counts.json", "checkpoints"}


@pytest.mark.slow("starts ten processes in turn")
def test_of_processes_killed_while_saving_each_leaves_whole_steps(top):
    rng, last = np.random.default_rng(0), 0
    for _ in range(10):
        command = [sys.executable, "-c", SAVING, top]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert int(process.stdout.readline()) == last + 1
        time.sleep(rng.uniform(0, 1))
        process.kill()
        process.communicate()
        last = checkpoint.latest_step(top) or 0
        for step in checkpoint.finished(top):
            items = checkpoint.read_arrays(top, step, ["params", "batch_stats"])
            assert [set(item["a"].tolist()) for item in items.values()] == [{step}] * 2
    assert last > 1


@pytest.mark.parametrize("server", ["gs"], indirect=True)
def test_every_verb_takes_addresses(call, tiny, top, tmp_path):
    images = f"{tiny[2].rpartition('/')[0]}/images/val"
    weights, start = tmp_path / "x.pth", [*tiny, "--config.train.steps=1", "--workdir"]
    run = ("--checkpoint", f"{top}/run")
    structure = ("--output-stride", 16, "--atrous-rates", "1,2,3")
    for command in (
        [*start, f"{top}/run"],
        ["evaluate", *run],
        ["report", f"{top}/run"],
        ["predict", *run, images, "--output", f"{top}/predictions"],
        ["convert", "to-pytorch", *run, "--output", weights],
        ["convert", "from-pytorch", "--checkpoint", weights, *structure, "--output", f"{top}/new"],
        [*start, f"{top}/second", f"--config.init.checkpoint={top}/new"],
        [*start, f"{top}/second", f"--config.init.checkpoint={top}/new", "--dry-run"],
        ["goodput", f"{top}/run"],
        ["reproduce", f"{top}/run", "--steps", "1"],
        ["config", "diff", f"{top}/run", f"{top}/second"],
    ):
        got = call(*command)
        assert (command, got.code, got.err) == (command, 0, "")
    names = {place.name for place in as_place(top).iterdir()}
    assert names == {"run", "second", "predictions", "new"}
    assert (as_place(top) / "run" / "report.html").read_text().startswith("<!DOCTYPE html>")
    got = call(*start, f"{top}/run", "--config.train.lr=0.5")
    assert (got.code, got.err.startswith(f"error: {top}/run: holds a run with another")) == (
        2,
        True,
    )
    got = call(*command[:2], f"{top}/none", f"{top}/second")
    assert got.code == 2
    got = call("evaluate", "--checkpoint", f"{top}/none")
    assert (got.code, got.err.count("\n")) == (4, 1)
