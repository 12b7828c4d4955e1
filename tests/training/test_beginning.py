"""What is planned, warned of and refused before the first step."""

import errno
import fcntl
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from deeplab_jax import checkpoint, config
from deeplab_jax.config.recipe import apply_overrides
from deeplab_jax.errors import ConfigError, DataError
from deeplab_jax.models import build_model, init_variables
from deeplab_jax.training import workdir as workdir_lib
from deeplab_jax.training.plan import make_plan

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

    monkeypatch.setattr(workdir_lib.fcntl, "flock", fail)
    assert call(*tiny, "--workdir", finished).code == 0


# The plan, and what it warns of


def test_plan_says_what_is_due_when(tiny_config):
    plan = make_plan(tiny_config, 16)
    assert [s for s in range(1, 15) if plan.is_eval_due(s)] == [8, 14]
    assert [s for s in range(1, 15) if plan.is_save_due(s)] == [3, 6, 8, 9, 12, 14]


def test_plan_saves_once_an_epoch_by_default(tiny_config):
    changes = ["checkpoint.every_steps=0", "train.steps=0", "train.epochs=3"]
    changed = apply_overrides(tiny_config, [f"--config.{change}" for change in changes])
    plan = make_plan(changed, 18)
    assert (plan.total, plan.steps_per_epoch, plan.save_every) == (12, 4, 4)


def test_too_few_images_for_a_batch_are_refused(tiny_config):
    with pytest.raises(DataError, match="3 images do not fill one batch of 4"):
        make_plan(tiny_config, 3)


@pytest.mark.parametrize(
    ("output_stride", "crop", "size"),
    [
        (16, (288, 512), "18x32"),  # as large as the rate is not larger
        (16, (192, 256), "12x16"),
        (8, (280, 280), "35x35"),
    ],
)
def test_crop_too_small_for_the_largest_rate_is_warned_of(output_stride, crop, size):
    c = config.get_config("folder", output_stride=output_stride)
    c.data.crop_size = crop
    (warning,) = config.warnings(c)
    assert f"{size} feature map" in warning
    assert f"rate {18 if output_stride == 16 else 36}:" in warning


@pytest.mark.parametrize(
    ("output_stride", "crop"), [(16, (512, 512)), (16, (289, 289)), (8, (512, 1024))]
)
def test_crop_large_enough_is_not_warned_of(output_stride, crop):
    c = config.get_config("folder", output_stride=output_stride)
    c.data.crop_size = crop
    assert config.warnings(c) == []
