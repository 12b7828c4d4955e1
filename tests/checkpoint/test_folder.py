"""Steps are removed once a newer one is on the disk; what is not ours is left alone."""

import os
import shutil

import numpy as np
import pytest

from deeplab_jax import checkpoint
from deeplab_jax.checkpoint import Info, Saver, folder, reading
from deeplab_jax.errors import CheckpointError, ResourceError

ITEMS = {"params": {"w": np.ones(4, np.float32)}}
RUN = Info(kind="run")


def save(path, *steps, keep=2):
    with Saver(path, keep) as saver:
        for step in steps:
            saver.save(step, ITEMS, RUN)


def names(path):
    return sorted(entry.name for entry in (path / "checkpoints").iterdir())


@pytest.fixture
def strangers(tmp_path):
    """Names in the folder of steps that are no steps of ours, and what they point to."""
    inside, outside = tmp_path / "run" / "checkpoints", tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    for name in ("2", "3.removed", "notes", "4.orbax-checkpoint-tmp.old", "1.damaged"):
        (inside / name).mkdir(parents=True)
        (inside / name / "file").touch()
    for name in ("1", "5.removed", "5.orbax-checkpoint-tmp"):
        (inside / name).symlink_to(outside)
    (inside / "6.orbax-checkpoint-tmp").touch()
    return names(tmp_path / "run")


def test_what_is_not_ours_is_never_removed(tmp_path, strangers):
    path = tmp_path / "run"
    for leftover in ("7.orbax-checkpoint-tmp", "8.orbax-checkpoint-tmp-1234", "8.removed"):
        (path / "checkpoints" / leftover / "params").mkdir(parents=True)
    (path / "checkpoints" / "8.removed" / "_CHECKPOINT_METADATA").touch()
    (path / "checkpoints" / "9.removed").mkdir()  # a kill before its last operation
    save(path, 10, 11, 12, keep=1)
    assert names(path) == sorted([*strangers, "12"])
    assert (tmp_path / "outside" / "file").exists()


def test_kill_while_removing_leaves_what_the_next_run_removes(tmp_path, monkeypatch):
    save(tmp_path, 1, 2)
    count = 0

    def cut_off(*args, **options):
        nonlocal count
        count += 1
        raise KeyboardInterrupt  # as a kill: nothing after it runs

    with monkeypatch.context() as patch:
        patch.setattr(folder.shutil, "rmtree", cut_off)
        with pytest.raises(KeyboardInterrupt):
            folder.remove(tmp_path, 1)
    assert count == 1
    assert names(tmp_path) == ["1.removed", "2"]
    save(tmp_path, 3)
    assert names(tmp_path) == ["2", "3"]


def test_older_steps_go_once_all_of_the_new_one_is_on_the_disk(tmp_path, monkeypatch):
    synced, fsync = set(), os.fsync

    def record(descriptor):
        synced.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def remove(path, step):
        new = tmp_path / "checkpoints" / "2"
        assert synced >= {str(new), str(new.parent), *map(str, new.rglob("*"))}
        removed.append(step)

    removed = []
    save(tmp_path, 1)
    monkeypatch.setattr(folder.os, "fsync", record)
    monkeypatch.setattr(folder, "remove", remove)
    save(tmp_path, 2, keep=1)
    assert removed == [1]


def test_disk_that_loses_the_new_step_keeps_the_older_ones(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(5, "Input/output error")

    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(folder.os, "fsync", fail)
        saver = Saver(tmp_path, keep=1)
        saver.save(2, ITEMS, RUN)
        with pytest.raises(ResourceError, match=r"cannot save a checkpoint: .*Input/output error"):
            saver.close()
    assert names(tmp_path) == ["1", "2"]
    saver.save(3, ITEMS, RUN)
    saver.wait()
    assert names(tmp_path) == ["3"]


def test_damaged_and_foreign_steps_do_not_count_as_kept(tmp_path):
    save(tmp_path, 1, 2, 3, keep=3)
    (tmp_path / "checkpoints" / "2" / "_CHECKPOINT_METADATA").write_text("{")
    save(tmp_path, 4, keep=2)
    assert names(tmp_path) == ["2", "3", "4"]


def test_set_aside_keeps_all_that_was_set_aside_before(tmp_path):
    for _ in range(3):
        save(tmp_path, 5)
        folder.set_aside(tmp_path, 5, "damaged")
    assert names(tmp_path) == ["5.damaged", "5.damaged.2", "5.damaged.3"]
    assert checkpoint.set_aside_before(tmp_path) == names(tmp_path)
    assert checkpoint.latest_step(tmp_path) is None


@pytest.mark.parametrize("step", ["latest", "best"])
def test_step_that_a_run_removes_meanwhile_is_chosen_again(tmp_path, step):
    with Saver(tmp_path, keep=9) as saver:
        for number in range(1, 9):
            saver.save(number, ITEMS, RUN, {"mean_iou": number / 9})

    def read(number):
        if number > 5:
            shutil.rmtree(tmp_path / "checkpoints" / str(number))
        return checkpoint.read_info(tmp_path, number).step

    assert reading.with_step(tmp_path, step, read) == 5

    def vanish(number):
        shutil.rmtree(tmp_path / "checkpoints" / str(number))
        return checkpoint.read_info(tmp_path, number)

    for chosen in (step, 1):  # nothing is left in the end; and a number is the only choice
        with pytest.raises(CheckpointError):
            reading.with_step(tmp_path, chosen, vanish)
