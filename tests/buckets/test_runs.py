"""Runs whose work directory lies in a bucket, of real servers on this machine."""

import json
import signal
import subprocess
import sys
import time

import pytest

from deeplab_jax import checkpoint
from deeplab_jax.utils.places import as_place

CHANGES = """
name = "tiny"
train.steps = 6
eval.every_epochs = 2
checkpoint.every_steps = 2
"""


def log_of(workdir):
    timed = ("images_per_second", "data_wait")
    lines = (as_place(workdir) / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly(compile_quickly):
    """This module trains."""


@pytest.fixture(scope="module")
def tiny(make_tree, tiny_recipe):
    """The command that trains, without its work directory."""
    root = make_tree("folder", num_train=8, num_val=2)
    (root / "tiny.py").write_text(tiny_recipe(CHANGES))
    return ["train", "--config", f"{root}/tiny.py", f"--config.data.root={root}"]


def test_x(call, tiny, bucket, tmp_path):
    got = call(*tiny, "--workdir", f"{bucket}/run")
    print(got.out, got.err)
    assert got.code == 0
    got = call(*tiny, "--workdir", tmp_path)
    assert log_of(tmp_path) == log_of(f"{bucket}/run")
    for args in (("evaluate", "--checkpoint", f"{bucket}/run"), ("report", f"{bucket}/run"), ("predict", "--checkpoint", f"{bucket}/run", tiny[2].replace("tiny.py","images/val"), "--output", f"{bucket}/out"),
      ("convert", "to-pytorch", "--checkpoint", f"{bucket}/run", "--output", tmp_path/"x.pth"),("train",*tiny[1:], "--workdir", f"{bucket}/run2", f"--config.init.checkpoint={bucket}/run", "--config.train.steps=1"),
      ("train",*tiny[1:], "--workdir", f"{bucket}/run"),
      ("train",*tiny[1:], "--workdir", f"{bucket}/run", "--dry-run"),
      ("convert", "from-pytorch", "--checkpoint", tmp_path/"x.pth", "--output-stride", "16", "--atrous-rates", "1,2,3", "--output", f"{bucket}/conv")):
        got = call(*args)
        print(args, got.code, got.out, got.err)
    for p in ("run","out","run2","conv"):
        print(p, [q.name for q in as_place(f"{bucket}/{p}").iterdir()])
    assert 0
