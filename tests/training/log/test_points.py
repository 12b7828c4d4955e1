"""The points of curves, and `metrics.csv`."""

import csv
import json
import sys

import pytest

from deeplab_jax import config
from deeplab_jax.config.recipe import apply_overrides
from deeplab_jax.errors import ConfigError, ResourceError
from deeplab_jax.training.log import Curves
from deeplab_jax.training.log.curves import check_curves
from deeplab_jax.training.log.points import Point, points_of

LINES = [
    {"event": "loss", "step": 1, "loss": 3.5},
    {"event": "time", "step": 1, "at": "start"},
    {"event": "train", "step": 10, "loss": 2.0, "lr": 0.1},
    {"event": "eval", "step": 10, "mean_iou": 0.5, "iou": [0.5, None], "num_classes": 2},
    {"event": "train", "step": 20, "loss": 1.0, "lr": 0.05},
    {"event": "eval", "step": 20, "mean_iou": 0.6, "loss": 0.7, "iou": [0.5, 0.7]},
]


@pytest.fixture
def log_path(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES) + '{"event": "tr')
    return path


def test_points_are_those_of_the_log(log_path):
    points = [*points_of(log_path, ("road", "a,b"))]
    assert points[0] == Point(1, False, {"train/loss": 3.5})
    assert points[2] == Point(10, True, {"val/mean_iou": 0.5, "val/iou/road": 0.5})
    assert points[-1].values["val/iou/a,b"] == 0.7
    assert len(points) == 5


def test_table_has_a_row_a_step_and_a_column_a_name(log_path):
    c = config.freeze(config.get_config("folder"))
    Curves(c, log_path, ("road", "a,b"), 0, False, print).sync()
    with open(log_path.with_name("metrics.csv"), newline="") as file:
        rows = [*csv.DictReader(file)]
    assert list(rows[0]) == [
        "step", "train/loss", "train/lr", "val/mean_iou", "val/iou/road", "val/loss", "val/iou/a,b"
    ]  # fmt: skip
    assert [row["step"] for row in rows] == ["1", "10", "20"]
    assert [row["train/loss"] for row in rows] == ["3.5", "2.0", "1.0"]
    assert [row["val/loss"] for row in rows] == ["", "", "0.7"]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_logger_that_is_not_installed_is_one_line(name, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, name, None)
    value = {"tensorboard": "true", "wandb": "mine"}[name]
    c = apply_overrides(config.get_config("folder"), [f"--config.log.{name}={value}"])
    with pytest.raises(ResourceError) as caught:
        check_curves(c.log, tmp_path)
    assert str(caught.value) == (
        f"config.log.{name}: needs the package {name}, which is not installed"
        f" - pip install 'deeplab_jax[{name}]'"
    )


def test_a_folder_of_a_package_s_name_is_no_package(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (tmp_path / "wandb").mkdir()  # as wandb makes it where it runs
    c = apply_overrides(config.get_config("folder"), ["--config.log.wandb=mine"])
    with pytest.raises(ResourceError, match="needs the package wandb"):
        check_curves(c.log, tmp_path)


def test_event_files_in_a_bucket_are_refused():
    pytest.importorskip("tensorboard")
    c = apply_overrides(config.get_config("folder"), ["--config.log.tensorboard=true"])
    with pytest.raises(ConfigError, match=r"cannot be written to a bucket \(gs://a/b\)"):
        check_curves(c.log, "gs://a/b")
