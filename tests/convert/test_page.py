"""The commands of docs/convert.md, run in their order on small networks."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convert.pth import write_pth

ROOT = Path(__file__).parents[2]
# Appended to every command that names a recipe; the files are of such networks too.
SMALL = [
    "--config.model.depth=18",
    "--config.model.width=4",
    "--config.model.head_channels=10",
    "--config.model.low_level_channels=3",
    "--config.model.aux_channels=7",
]
TRAINING = [
    "--config.data.crop_size=64,64",
    "--config.data.resize_base=128,64",
    "--config.data.num_workers=0",
    "--config.eval.resize_base=128,64",
    "--config.train.batch_size=8",
    "--config.train.steps=2",
    "--config.train.lr=0.001",
]


def commands():
    page = (ROOT / "docs" / "convert.md").read_text()
    code = "".join(re.findall(r"```\n(.*?)```", page, re.S)).replace("\\\n", " ")
    return [shlex.split(line) for line in code.splitlines() if line and line[0] != "#"]


@pytest.fixture
def folder(make_tensors, make_tree, tmp_path, monkeypatch):
    """A directory that holds what the commands name, as the current one."""
    voc = make_tensors("sssegmentation", classes=21)
    rng = np.random.default_rng(0)
    batches = {
        "images": rng.standard_normal((2, 2, 33, 33, 3)).astype(np.float32),
        "labels": rng.integers(0, 21, (2, 2, 33, 33)).astype(np.int32),
    }
    write_pth(tmp_path / "resnet50_v1c-2cccc1ad.pth", make_tensors("v1c"))
    write_pth(tmp_path / "deeplabv3plus_resnet50os16_voc_train.pth", {"model": voc})
    write_pth(tmp_path / "mmseg_r101_d16mg124.pth", make_tensors("mmsegmentation", 50))
    np.savez(tmp_path / "batches.npz", **batches)
    (tmp_path / "data").symlink_to(make_tree("voc", num_train=16, num_val=2))
    for name in ("configs", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(call, folder, compile_quickly):
    """Returns run(words) -> standard output of a command of the page."""

    def run(words):
        words, is_script = list(words), words[0] == "python"
        if "--config" in words or is_script:
            words += SMALL
        if "--config" in words and "replay" not in words:  # whose batches say their size
            words += TRAINING
        if is_script:
            command = [sys.executable, *words[1:]]
            end = subprocess.run(command, env=compile_quickly, capture_output=True, text=True)
            # Drawn weights do not score what the table says: exit code 1, and a verdict.
            assert end.returncode == 1, end.stderr
            return end.stdout
        assert words[0] == "deeplab"
        code, out, err = call(*words[1:])
        assert code == 0, (words, err)
        return out

    return run


@pytest.mark.process("runs every command; each has tests of its own in the first tier")
def test_commands_of_the_page_run_in_their_order(run):
    outputs = [(words, run(words)) for words in commands()]
    assert len(outputs) == 12
    assert " tensors from weights/r50_v1c" in outputs[1][1]
    assert "mean IoU" in outputs[3][1]
    assert "momentum converted; iteration 2" in outputs[7][1]
    # The run that came back goes on where it was: with the evaluation of its last step.
    first, again = (re.findall(r"step 2: validation .*", outputs[i][1]) for i in (1, 9))
    assert first == again != []
    steps = [json.loads(line)["step"] for line in outputs[10][1].splitlines()]
    assert steps == list(range(5))
    assert " fail" in outputs[11][1]
