import json

import pytest


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Returns the path of a small recipe, mine.py, in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from deeplab_jax import config\n\n\ndef get_config():\n"
        '    c = config.get_config("folder", depth=18)\n    c.train.lr = 0.02\n    return c\n'
    )
    return "mine.py"


def test_fields_are_listed_by_word(call):
    code, out, err = call("config", "fields", "crop_size")
    assert (code, err) == (0, "")
    assert "data.crop_size  512,512  pixels: 2 positive integers\n    (height, width)" in out
    assert call("config", "fields", "zzz")[::2] == (
        2, "error: zzz: no field is about this - see all: deeplab config fields\n"
    )  # fmt: skip


def test_values_are_shown_with_their_origin(call, recipe):
    code, out, _ = call("config", "show", recipe, "--config.seed=3")
    lines = {line.strip("* ").split()[0]: line for line in out.splitlines()[3:]}
    assert code == 0
    assert lines["train.lr"].split() == ["*", "train.lr", "0.02", "recipe", "(default", "0.01)"]
    assert lines["model.depth"].split()[:4] == ["*", "model.depth", "18", "template"]
    assert lines["seed"].split()[:4] == ["*", "seed", "3", "flag"]
    assert lines["train.momentum"].split() == ["train.momentum", "0.9", "default"]
    _, out, _ = call("config", "show", "voc_r101_os8")
    assert "ResNet-101, output stride 8, published mean IoU 79.19 %" in out
    assert "* model.num_classes 21 table (default 2)" in " ".join(out.split())


def test_two_recipes_are_compared_one_of_them_by_its_run(call, recipe, tmp_path):
    from deeplab_jax import config
    from deeplab_jax.config.recipe import load_recipe

    (tmp_path / "run").mkdir()
    same = load_recipe(recipe, ["--config.train.epochs=7"])
    (tmp_path / "run" / "config.json").write_text(config.to_json(same))
    assert call("config", "diff", recipe, "run") == (0, "train.epochs: 60 -> 7\n", "")
    assert call("config", "diff", recipe, recipe) == (0, "no field differs\n", "")
    tree = json.loads(config.to_json(same)) | {"extra": 1}
    (tmp_path / "run" / "config.json").write_text(json.dumps(tree))
    code, _, err = call("config", "diff", recipe, "run")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: run/config.json: config.extra: there is no such field - ")
