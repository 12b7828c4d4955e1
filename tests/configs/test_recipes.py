import re

import pytest

from deeplab_jax import config
from deeplab_jax.config.recipe import load_recipe

ROWS = {f"{name}_r{depth}_os{os}": (name, depth, os) for name, depth, os in config.PUBLISHED_MIOU}
OTHERS = ["camvid_r18_os16", "camvid_r18_os16_tuned", "camvid_r50_os16", "camvid_r50_os16_short",
          "quickstart"]  # fmt: skip

# What a column of the table may decide; nothing else may differ between two of its rows.
BY_DATASET = {
    "data.dataset",
    "model.num_classes",
    "data.train_split",
    "data.resize_base",
    "data.crop_size",
    "train.batch_size",
    "train.epochs",
    "eval.resize_base",
}
BY_OUTPUT_STRIDE = {"model.output_stride", "model.atrous_rates"}


@pytest.fixture
def load(load_script):
    """Returns load(name) -> the recipe's module."""
    return lambda name: load_script(name, "configs")


def test_there_is_a_recipe_for_each_row_and_no_stray_file(repository):
    assert len(ROWS) == 12
    assert {path.stem for path in (repository / "configs").glob("*.py")} == {*ROWS, *OTHERS}


@pytest.mark.parametrize("name", [*ROWS, *OTHERS])
def test_recipe_is_valid_and_locked(load, name):
    c = load(name).get_config()
    config.validate(c)
    assert c.is_locked


@pytest.mark.parametrize("name", [*ROWS, *OTHERS])
def test_name_and_path_are_the_same_recipe(repository, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert load_recipe(name) == load_recipe(str(repository / "configs" / f"{name}.py"))
    assert load_recipe(name).name == name


@pytest.mark.parametrize("name", [*ROWS, *OTHERS])
def test_recipe_survives_json(load, name):
    c = load(name).get_config()
    assert config.from_dict(c.to_dict()) == config.freeze(c)


@pytest.mark.parametrize(("name", "row"), ROWS.items())
def test_docstring_tells_the_row_and_its_command(load, name, row):
    text, c = load(name).__doc__, load(name).get_config()
    assert f"ResNet-{row[1]}, output stride {row[2]}" in text
    assert f"mean IoU {config.PUBLISHED_MIOU[row]:.2f} %" in text
    assert f"deeplab train --config {name} --config.init.backbone=DIR" in text
    numbers = [int(n) for n in re.findall(r"\d+", re.search(r"Recipe:([^,]*,){3}[^,]*", text)[0])]
    expected = [c.model.num_classes, c.train.batch_size, c.train.epochs, *c.data.crop_size]
    assert numbers == expected
    assert "Hardware and hours: not measured." in text


@pytest.mark.parametrize(("name", "row"), ROWS.items())
def test_rows_differ_only_in_what_the_table_says(load, name, row):
    ours = config.flatten(load(name).get_config())
    for other, (dataset, depth, output_stride) in ROWS.items():
        theirs = config.flatten(load(other).get_config())
        allowed = {"name"}
        allowed |= BY_DATASET if dataset != row[0] else set()
        allowed |= {"model.depth"} if depth != row[1] else set()
        allowed |= BY_OUTPUT_STRIDE if output_stride != row[2] else set()
        assert {key for key in ours if ours[key] != theirs[key]} <= allowed


@pytest.mark.parametrize("name", ROWS)
def test_table_recipe_does_not_choose_random_weights_by_itself(load, name):
    assert load(name).get_config().init.backbone == ""


@pytest.mark.parametrize("name", OTHERS)
def test_every_tap_of_the_largest_rate_is_trained_or_never_used(load, name):
    c = load(name).get_config()
    reach = max(c.model.atrous_rates) * c.model.output_stride  # pixels from a tap to the centre
    if name == "camvid_r50_os16_short":  # its crop is too small, and so are the evaluated images
        assert max(*c.data.crop_size, *c.eval.resize_base) <= reach
    else:
        assert min(c.data.crop_size) > reach
