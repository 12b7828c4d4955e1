"""`deeplab checkpoint`: what is listed, read, removed, exported and compared."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from jax._src import xla_bridge

from deeplab_jax import checkpoint
from deeplab_jax.checkpoint import Info, Saver
from deeplab_jax.utils.locks import hold


def items_of(seed):
    rng = np.random.default_rng(seed)
    kernel, mean = (rng.normal(size=size).astype(np.float32) for size in ((40, 60), 4))
    stats = {"backbone": {"norm": {"mean": mean}}}
    momentum = {"trace": {"backbone": {"kernel": kernel * 2}}}
    return {"params": {"backbone": {"kernel": kernel}}, "batch_stats": stats, "opt_state": momentum}


@pytest.fixture(scope="module")
def original(narrow_config, tmp_path_factory):
    info = Info(
        kind="run",
        config=narrow_config(),
        class_names=tuple("abcde"),
        palette=np.eye(5, 3, dtype=np.uint8),
        counters={"backbone/norm": 5},
        left_out=(4, 15),
    )
    path = tmp_path_factory.mktemp("original") / "run"
    with Saver(path, keep=3) as saver:
        for step, score in ((10, 0.5), (20, None), (30, 0.25)):
            saver.save(step, items_of(step), info, score and {"mean_iou": score})
    return path


@pytest.fixture
def run(original, tmp_path):
    """A work directory with steps 10, 20 and 30."""
    return shutil.copytree(original, tmp_path / "run")


def flip(run, step, item="params"):
    """Changes one bit of the largest file of an item."""
    files = [path for path in (run / "checkpoints" / str(step) / item).rglob("*") if path.is_file()]
    file = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def names_of(run):
    return sorted(entry.name for entry in (run / "checkpoints").iterdir())


def entry(run, name):
    """Makes an entry that looks like a step of this name."""
    return shutil.copytree(run / "checkpoints" / "10", run / "checkpoints" / name)


def as_old(run, step):
    """Makes a step one of a version without checksums."""
    file = run / "checkpoints" / str(step) / "_CHECKPOINT_METADATA"
    tree = json.loads(file.read_text())
    for name in ("arrays", "drawn", "left_out", "losses", "sha256"):
        del tree["custom_metadata"][name]
    tree["custom_metadata"]["format"] = 1
    file.write_text(json.dumps(tree))


def test_ls_names_all_that_lies_there_and_starts_no_device(run, call, monkeypatch, tmp_path):
    def fail(*args, **options):
        raise AssertionError("a device is started")

    monkeypatch.setattr(xla_bridge, "backends", fail)
    monkeypatch.setattr(xla_bridge, "_get_backend_uncached", fail)
    as_old(run, 20)
    for name in ("5.damaged", "7.replaced.2", "40.orbax-checkpoint-tmp"):
        entry(run, name)
    (run / "checkpoints" / "notes.txt").write_text("mine")
    (run / "checkpoints" / "50.damaged").symlink_to(tmp_path)
    code, out, err = call("checkpoint", "ls", run, "--json", tmp_path / "steps.json")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[:6] for line in lines[1:4]] == [
        ["10", "run", "0.0", "MB", "50.00", "%"],
        ["20", "run", "0.0", "MB", "no", lines[2].split()[5]],
        ["30", "run", "0.0", "MB", "25.00", "%"],
    ]
    assert lines[4:] == [
        "5.damaged: set aside, 0.0 MB",
        "7.replaced.2: set aside, 0.0 MB",
        "40.orbax-checkpoint-tmp: an unfinished save or removal, 0.0 MB",
        "50.damaged: not of this program",
        "notes.txt: not of this program",
    ]
    rows = json.loads((tmp_path / "steps.json").read_text())
    assert [row["name"] for row in rows if row["role"] == "step"] == ["10", "20", "30"]
    assert [row["checksums"] for row in rows[:3]] == [True, False, True]
    file = run / "checkpoints" / "30" / "_CHECKPOINT_METADATA"
    file.write_text(file.read_text().replace('"run"', '"RUN"'))
    code, out, err = call("checkpoint", "ls", run)
    assert code == 4
    assert "\n30: damaged: its description does not have the checksum" in out
    assert err.startswith(f"error: {run}: a step is damaged: 30 - ")
    assert f"deeplab checkpoint rm {run} 30" in err


def test_ls_of_a_directory_without_steps(call, tmp_path):
    code, _, err = call("checkpoint", "ls", tmp_path)
    assert (code, err.count("\n")) == (4, 1)
    assert "holds no finished checkpoint" in err


def test_verify_reads_every_array(run, call):
    as_old(run, 10)
    code, out, err = call("checkpoint", "verify", run)
    assert (code, err) == (0, "")
    assert "step 10: 3 arrays can be read; no checksums were saved\n" in out
    assert out.endswith("step 20: 3 arrays are as saved\nstep 30: 3 arrays are as saved\n")
    flip(run, 30, "opt_state")
    code, out, err = call("checkpoint", "verify", run)
    assert code == 4
    assert "step 30: is damaged: opt_state/trace/backbone/kernel: its checksum is" in out
    assert err.startswith(f"error: {run}: a step is damaged: 30 - ")
    assert call("checkpoint", "verify", run, "--step", "20").code == 0
    assert call("checkpoint", "verify", run, "--step", "25").code == 4


def test_rm_keeps_the_last_good_step(run, call):
    flip(run, 10)
    entry(run, "40.damaged")
    code, out, _ = call("checkpoint", "rm", run, "20", "40.damaged")
    assert (code, names_of(run)) == (0, ["10", "30"])
    assert out.endswith(f"removed {run}/checkpoints/20\nremoved {run}/checkpoints/40.damaged\n")
    code, _, err = call("checkpoint", "rm", run, "30")  # step 10 has a good description alone
    assert (code, names_of(run)) == (4, ["10", "30"])
    assert "step 30 is the last that is good - add --force" in err
    assert call("checkpoint", "rm", run, "10").code == 0
    assert call("checkpoint", "rm", run, "30", "--force").code == 0
    assert names_of(run) == []
    assert call("checkpoint", "ls", run).code == 0


def test_rm_removes_nothing_that_is_not_ours(run, call, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "photo.jpg").write_text("mine")
    root = run / "checkpoints"
    (root / "40").symlink_to(outside)
    shutil.copytree(outside, root / "50")
    (root / "60").mkdir()
    shutil.copytree(outside, root / "70.damaged")
    before = names_of(run)
    for name in ("40", "50", "60", "70.damaged", "..", "../../outside", "80", "10/params"):
        code, _, err = call("checkpoint", "rm", run, "10", name, "--force")
        assert (code, err.count("\n"), names_of(run)) == (4, 1, before), name
    with hold(run):
        code, _, err = call("checkpoint", "rm", run, "10")
    assert code == 2
    assert f"another process trains here (pid {os.getpid()} on " in err
    (run / "linked").mkdir()
    (run / "linked" / "checkpoints").symlink_to(root)
    code, _, err = call("checkpoint", "rm", run / "linked", "10")
    assert code == 2
    assert "is a symbolic link" in err
    assert names_of(run) == before
    assert (outside / "photo.jpg").read_text() == "mine"


def test_export_leaves_the_optimisers_state_out(run, call, tmp_path):
    output = tmp_path / "weights"
    code, out, _ = call("checkpoint", "export", run, "--step", "best", "--output", output)
    assert code == 0
    assert f"next: deeplab evaluate --checkpoint {output}" in out
    info = checkpoint.read_info(output)
    assert (info.kind, info.step, info.class_names) == ("weights", 10, tuple("abcde"))
    assert info.counters == {"backbone/norm": 14}  # 9 batches after the run's first step
    items = [entry.name for entry in (output / "checkpoints" / "10").iterdir() if entry.is_dir()]
    assert sorted(items) == ["batch_stats", "params"]
    code, out, _ = call("checkpoint", "diff", run, output, "--step", "10")
    assert code == 0
    assert out.splitlines() == ["kind: run -> weights", "opt_state: only in A"]
    code, _, err = call("checkpoint", "export", run, "--output", output)
    assert (code, "already holds a checkpoint (step 10)" in err) == (4, True)
    flip(run, 30)
    code, _, err = call("checkpoint", "export", run, "--output", tmp_path / "other")
    assert (code, "params/backbone/kernel" in err) == (4, True)
    assert not (tmp_path / "other").exists()


def test_diff_tells_configuration_and_arrays(run, narrow_config, call, tmp_path):
    assert call("checkpoint", "diff", run, run).out == "nothing differs\n"
    items = items_of(30)
    items["params"]["backbone"]["kernel"][3, 4] += 0.5
    items["batch_stats"]["backbone"]["norm"]["mean"] = np.ones(3, np.float32)
    items["params"]["head"] = {"bias": np.ones(2, np.float32)}
    config = narrow_config("train.lr=0.5")
    info = Info(kind="run", config=config, class_names=("a", "b", "c", "d", "x"), step=40)
    checkpoint.save_once(tmp_path / "other", items, info)
    code, out, _ = call("checkpoint", "diff", run, tmp_path / "other")
    assert code == 0
    assert out.splitlines() == [
        "step: 30 -> 40",
        "train.lr: 0.01 -> 0.5",
        "class names: 5 -> 5 (e -> x)",
        "palette: differs",
        "batch_stats/backbone/norm/mean: float32 (4,) -> float32 (3,)",
        "params/head/bias: only in B",
        "params/backbone/kernel: largest difference 0.5",
    ]
    code, out, _ = call("checkpoint", "diff", run, run, "--step", "10,20")
    assert out.splitlines()[0] == "step: 10 -> 20"
    assert len(out.splitlines()) == 4


@pytest.mark.process("starts a process whose accelerator is not there")
def test_no_accelerator_is_started(run):
    command = [sys.executable, "-m", "deeplab_jax", "checkpoint", "verify", str(run)]
    got = subprocess.run(
        command, env=os.environ | {"JAX_PLATFORMS": "cuda"}, capture_output=True, text=True
    )
    assert (got.returncode, got.stderr) == (0, "")
