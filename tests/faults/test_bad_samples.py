"""Tolerance on request: bad training samples are left out, listed, and left out again."""

import fcntl
import json

import cv2
import numpy as np
import pytest

from deeplab_jax.config.recipe import load_recipe
from deeplab_jax.data import open_dataset
from deeplab_jax.errors import DataError
from deeplab_jax.training.bad_samples import leave_out

SEEDS = pytest.mark.parametrize("seed", range(3))


@pytest.fixture
def damaged(make_tree):
    """Returns damaged(seed) -> a root with 8 training samples, and the ids of two bad ones."""

    def damaged(seed):
        root = make_tree("folder", num_train=8, num_val=1)
        bad = sorted(f"{i:03d}" for i in np.random.default_rng(seed).permutation(8)[:2])
        path = root / "images" / "train" / f"{bad[0]}.jpg"
        path.write_bytes(path.read_bytes()[:900])
        (root / "labels" / "train" / f"{bad[1]}.png").write_text("<html>")
        return root, bad

    return damaged


def log(workdir):
    return [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]


@pytest.mark.process("trains; what is left out is checked below")
def test_bad_samples_are_left_out_and_listed(damaged, train, call, tmp_path):
    root, bad = damaged(0)
    code, out, err = call(*train(root, "max_bad_samples=2"))
    assert code == 0, err
    assert "2 bad samples are left out" in out
    assert "6 training" in out
    lines = (tmp_path / "run" / "bad_samples.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == bad
    assert "is damaged or cut short" in lines[0]
    assert "looks like an HTML page" in lines[1]


@pytest.mark.slow("three runs for each of three seeds")
@SEEDS
def test_a_run_is_as_if_bad_samples_never_were(damaged, train, call, tmp_path, seed):
    root, bad = damaged(seed)
    assert call(*train(root, "max_bad_samples=2"))[0] == 0
    assert call(*train(root, "max_bad_samples=2"))[0] == 0  # continues
    for name in bad:
        (root / "images" / "train" / f"{name}.jpg").unlink()
        (root / "labels" / "train" / f"{name}.png").unlink()
    (tmp_path / "run").rename(tmp_path / "first")
    assert call(*train(root))[0] == 0
    hashes = [log(tmp_path / name)[-1]["params_sha256"] for name in ("first", "run")]
    assert hashes[0] == hashes[1]


def test_continuation_reads_the_list_instead_of_the_samples(damaged, train, tmp_path, capsys):
    root, bad = damaged(0)
    argv = [str(argument) for argument in train(root)]
    dataset = open_dataset(load_recipe(argv[2], [argv[3]]).data, 4, "train")
    left = leave_out(dataset, 2, tmp_path / "run", False)
    assert left.ids == tuple(sorted({*dataset.ids} - {*bad}))
    for index, name in enumerate(left.ids):
        assert left.source.names(index)[0].endswith(f"{name}.jpg")
        left.read(index)
    assert "reading 8 training samples" in capsys.readouterr().out
    path = root / "images" / "train" / f"{bad[0]}.jpg"
    path.write_bytes((root / "images" / "val" / "000.jpg").read_bytes())  # mended
    assert leave_out(dataset, 2, tmp_path / "run", True).ids == left.ids
    assert "reading" not in capsys.readouterr().out
    with pytest.raises(DataError, match="lists 2 bad samples of 8"):
        leave_out(dataset, 1, tmp_path / "run", True)


def test_a_list_of_bad_samples_that_is_no_text_is_named(damaged, train, tmp_path):
    root, _ = damaged(0)
    argv = [str(argument) for argument in train(root)]
    dataset = open_dataset(load_recipe(argv[2], [argv[3]]).data, 4, "train")
    (tmp_path / "bad_samples.txt").write_bytes(b"\xff\xfe0\t")
    with pytest.raises(DataError, match=r"bad_samples\.txt: cannot be read .* - remove it"):
        leave_out(dataset, 2, tmp_path, True)


def test_nothing_is_read_where_another_process_trains(damaged, train, call, tmp_path):
    root, _ = damaged(0)
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code, out, err = call(*train(root, "max_bad_samples=2"))
    assert (code, out) == (2, "")
    assert "another process trains here" in err
    assert not (tmp_path / "run" / "bad_samples.txt").exists()


@SEEDS
def test_more_than_allowed_is_one_line(damaged, train, fails, tmp_path, seed):
    root, bad = damaged(seed)
    path = tmp_path / "run" / "bad_samples.txt"
    what = (
        f"{path}: lists 2 bad samples of 8, and config.data.max_bad_samples=1 ({bad[0]}, {bad[1]}; "
    )
    fails(train(root, "max_bad_samples=1"), what, "set config.data.max_bad_samples=2")
    assert not (path.parent / "config.json").exists()  # nothing was begun


@pytest.mark.slow("a whole run; unreadable validation images are in test_data_faults.py")
def test_validation_stays_strict(damaged, train, fails):
    root, _ = damaged(0)
    path = root / "images" / "val" / "000.jpg"
    path.write_bytes(path.read_bytes()[:900])
    fails(train(root, "max_bad_samples=3"), f"{path}: is damaged or cut short")


def test_nothing_is_read_unless_asked(damaged, train, tmp_path):
    root, _ = damaged(0)
    argv = [str(argument) for argument in train(root)]
    dataset = open_dataset(load_recipe(argv[2], [argv[3]]).data, 4, "train")
    assert leave_out(dataset, 0, tmp_path / "run", False) is dataset
    assert not (tmp_path / "run").exists()


def test_16_bits_without_a_range_are_no_bad_samples(damaged, train, tmp_path):
    root, _ = damaged(0)
    for path in (root / "images" / "train").iterdir():
        path.unlink()
        cv2.imwrite(str(path.with_suffix(".png")), np.full((65, 97, 3), 999, np.uint16))
    argv = [str(argument) for argument in train(root)]
    dataset = open_dataset(load_recipe(argv[2], [argv[3]]).data, 4, "train")
    with pytest.raises(DataError, match=r"16 bits .* - set --config.data.value_range=0,999"):
        leave_out(dataset, 8, tmp_path / "run", False)
    assert not (tmp_path / "run" / "bad_samples.txt").exists()
