import shutil
import subprocess
import sys

import pytest

from deeplab_jax.config.recipe import load_recipe
from deeplab_jax.data import open_dataset
from deeplab_jax.doctor import layouts, recipe
from deeplab_jax.doctor.recipe import split
from deeplab_jax.errors import ConfigError

_GOOGLE = '--config=lint.pydocstyle.convention="google"'


def test_recipe_is_formatted_and_says_why(make_tree, recipe_of, tmp_path):
    recipe_of(make_tree("folder", num_classes=40))
    path = str(tmp_path / "mine.py")
    for check in (["check", "--isolated", "--select=E,F,I,D", _GOOGLE],
                  ["format", "--isolated", "--check"]):  # fmt: skip
        command = [sys.executable, "-m", "ruff", *check, "--line-length=100", path]
        got = subprocess.run(command, capture_output=True, text=True)
        assert got.returncode == 0, got.stdout
    lines = (tmp_path / "mine.py").read_text().splitlines()
    for number, line in enumerate(lines):
        if line.startswith("    c.") and "resolve" not in lines[number - 1]:
            assert lines[number - 1].startswith("    # ")


def test_split_by_fraction_is_written_and_can_be_moved(make_tree, recipe_of, tmp_path):
    root = make_tree("folder")
    for kind in ("images", "labels"):
        shutil.rmtree(root / kind / "val")
    shutil.copy(root / "images/train/000.jpg", root / "images/train/zzz.jpg")
    shutil.copy(root / "labels/train/000.png", root / "labels/train/zzz.png")
    recipe_of(root)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in tmp_path.glob("mine*"):
        path.rename(moved / path.name)
    config = load_recipe(str(moved / "mine.py"))
    train, val = (set(open_dataset(config.data, 4, s).ids) for s in ("train", "val"))
    assert train | val == {f"{i:03d}" for i in range(12)} | {"zzz"}
    assert not train & val
    assert 3 <= len(val) <= 4
    assert {"000", "zzz"} <= train or {"000", "zzz"} <= val  # one picture, never in both


def test_split_has_something_on_both_sides_and_depends_on_the_seed_alone():
    groups = [[str(i)] for i in range(20)]
    assert split(groups, 0.2, 0) == split(groups, 0.2, 0) != split(groups, 0.2, 1)
    assert [len(part) for part in split(groups, 0.2, 0)] == [16, 4]
    assert [len(part) for part in split(groups[:2], 0.01, 0)] == [1, 1]
    assert [len(part) for part in split(groups[:2], 0.99, 0)] == [1, 1]


def test_nothing_is_written_over(make_tree, tmp_path):
    layout = layouts.guess(make_tree("folder"))
    path = tmp_path / "mine.py"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="exists"):
        recipe.check_free(str(path), layout)
    for name in ("mine.txt", "nowhere/mine.py"):
        with pytest.raises(ConfigError, match="--write-config"):
            recipe.check_free(str(tmp_path / name), layout)
