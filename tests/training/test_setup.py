"""A run is looked at, claimed and refused before its first step."""

import errno
import fcntl
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from deeplab_jax import checkpoint
from deeplab_jax.errors import ConfigError
from deeplab_jax.models import build_model, init_variables
from deeplab_jax.training import workdir as workdir_lib
from deeplab_jax.training.setup import gather
from deeplab_jax.utils import locks

_FINISHED = pytest.mark.process("trains first; differences are unit tests of config and workdir")


@_FINISHED
def test_other_configuration_is_refused_with_the_difference(call, tiny, finished):
    log = (finished / "log.jsonl").read_text()
    changes = ["--config.train.lr=0.02", "--config.data.crop_size=64,128"]
    code, _, error = call(*tiny, "--workdir", finished, *changes)
    assert code == 2
    assert "train.lr: 0.01 -> 0.02" in error
    assert "data.crop_size: (64, 64) -> (64, 128)" in error
    assert str(finished) in error
    assert (finished / "log.jsonl").read_text() == log


@_FINISHED
def test_place_workers_and_logging_may_change(call, tiny, finished, tmp_path):
    root = Path(tiny[2]).parent
    shutil.copytree(root, tmp_path / "moved")
    changes = [
        f"--config.data.root={tmp_path / 'moved'}",
        "--config.data.num_workers=1",
        "--config.log.every_steps=5",
    ]
    assert call(*tiny, "--workdir", finished, *changes).code == 0


@_FINISHED
def test_added_images_are_not_continued_over(call, tiny, finished, tmp_path):
    root = Path(tiny[2]).parent
    shutil.copytree(root, tmp_path / "more")
    for folder, suffix in (("images", "jpg"), ("labels", "png")):
        first = next((tmp_path / "more" / folder / "train").iterdir())
        shutil.copy(first, first.with_name(f"added.{suffix}"))
    changes = [f"--config.data.root={tmp_path / 'more'}"]
    outcome = call(*tiny, "--workdir", finished, *changes)
    assert outcome.code == 2
    assert "trained on 16 images" in outcome.err


def test_weights_are_not_continued_as_a_run(tiny_config, tmp_path):
    shapes = jax.eval_shape(lambda: init_variables(build_model(tiny_config.model), 0))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    checkpoint.save_once(tmp_path, variables, checkpoint.Info(kind="weights", config=tiny_config))
    with pytest.raises(ConfigError, match="of kind weights, not a run"):
        workdir_lib.read_run(tmp_path, 0, tiny_config)


# One process at a time


@_FINISHED
def test_second_process_in_a_work_directory_is_refused(call, tiny, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    with (tmp_path / "run" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("pid 12 on elsewhere")
        file.flush()
        before = (tmp_path / "run" / "config.json").stat().st_mtime_ns
        outcome = call(*tiny, "--workdir", tmp_path / "run")
        assert outcome.code == 2
        assert "another process trains here (pid 12 on elsewhere)" in outcome.err
        assert (tmp_path / "run" / "config.json").stat().st_mtime_ns == before
    assert call(*tiny, "--workdir", tmp_path / "run").code == 0
    assert (tmp_path / "run" / ".lock").read_text().startswith(f"pid {os.getpid()} on ")


@_FINISHED
def test_file_system_without_locks_is_used_without(call, tiny, finished, monkeypatch):
    def fail(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", fail)
    assert call(*tiny, "--workdir", finished).code == 0


def test_double_precision_that_changes_random_draws_is_said(tiny_config, tmp_path):
    assert not gather(tiny_config, tmp_path).notes
    with jax.enable_x64(True):
        (note,) = gather(tiny_config, tmp_path).notes
    assert note.startswith("JAX_ENABLE_X64 is set")
