"""The recipes of the table, made small."""

import json

import numpy as np
import pytest

from deeplab_jax import config
from deeplab_jax.config.recipe import load_recipe
from deeplab_jax.data import open_dataset

TABLE = [f"{name}_r{depth}_os{os}" for name, depth, os in config.PUBLISHED_MIOU]
SMALLER = "cityscapes_r50_os16"  # with ResNet-18
_SMALLER = pytest.mark.process("trains and evaluates; a tiny recipe does in the first tier")
_OTHERS = pytest.mark.slow("half a minute a row; one with ResNet-18 stands for the eleven")

# Makes a recipe of the table small; what it trains on and how is left alone.
SMALL = [
    "--config.model.width=8",
    "--config.model.head_channels=16",
    "--config.model.low_level_channels=4",
    "--config.model.aux_channels=8",
    "--config.data.crop_size=64,64",
    "--config.data.resize_base=128,64",
    "--config.data.num_workers=0",
    "--config.eval.resize_base=128,64",
    "--config.train.batch_size=8",
    "--config.train.steps=2",
    "--config.log.every_steps=1",
]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=_SMALLER if n == SMALLER else _OTHERS) for n in TABLE]
)
def test_table_recipe_trains_and_evaluates(repository, call, name, make_tree, tmp_path):
    dataset = name.split("_")[0]
    root = make_tree(dataset, num_train=9, num_val=1)
    recipe, workdir = repository / "configs" / f"{name}.py", tmp_path / "run"
    options = [*SMALL, "--config.init.backbone=none", f"--config.data.root={root}"]
    if name == SMALLER:
        options.append("--config.model.depth=18")
    assert call("train", "--config", recipe, "--workdir", workdir, *options).code == 0
    log = [json.loads(line) for line in (workdir / "log.jsonl").open()]
    log = [line for line in log if line["event"] != "time"]
    assert [(line["event"], line["step"]) for line in log] == [
        ("train", 1), ("train", 2), ("eval", 2), ("end", 2)
    ]  # fmt: skip
    assert all(np.isfinite(list(line.values())[2:]).all() for line in log[:2])
    assert call("evaluate", "--checkpoint", workdir).code == 0

    result = json.loads((workdir / "evaluation.json").read_text())
    c = load_recipe(recipe, options)
    validation = open_dataset(c.data, c.model.num_classes, "val")
    _, label = validation.read(0)
    counts = np.bincount(label[label != 255], minlength=c.model.num_classes)
    assert np.sum(result["confusion"], 1).tolist() == counts.tolist()
    assert result["mean_iou"] == log[2]["mean_iou"]
    assert result["class_names"] == list(validation.class_names)


def test_table_recipe_without_backbone_says_what_to_do_and_leaves_the_way_free(
    repository, call, make_tree, tmp_path
):
    root = make_tree("voc", num_train=9, num_val=1)
    workdir = tmp_path / "run"
    recipe = repository / "configs" / "voc_r50_os8.py"
    command = ["train", "--config", recipe, "--workdir", workdir, *SMALL]
    command.append(f"--config.data.root={root}")
    code, _, error = call(*command)
    assert code == 2
    assert "config.init.backbone" in error
    assert "--config.init.backbone=DIR" in error
    assert "=none" in error
    # The corrected command is not refused as another configuration: its own error comes next.
    outcome = call(*command, "--config.init.backbone=nowhere")
    assert outcome.code == 4
    assert "nowhere" in outcome.err
