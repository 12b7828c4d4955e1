import re

import pytest

from deeplab_jax import config
from deeplab_jax.config.recipe import apply_overrides, load_recipe
from deeplab_jax.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    """Returns write(body of the file) -> its path."""

    def write(text):
        path = tmp_path / "mine.py"
        path.write_text("from deeplab_jax import config\n" + text)
        return path

    return write


def override(*texts):
    return apply_overrides(config.get_config("folder"), [f"--config.{text}" for text in texts])


def test_recipe_loads_from_any_directory(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    c = load_recipe(str(repository / "configs" / "voc_r101_os8.py"), ["--config.seed=5"])
    assert (c.name, c.model.depth, c.seed) == ("voc_r101_os8", 101, 5)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("train.lr=2e-3", "train.lr", 0.002),
        ("train.lr=1", "train.lr", 1.0),
        ("train.batch_size=4", "train.batch_size", 4),
        ("model.freeze_batch_norm=true", "model.freeze_batch_norm", True),
        ("model.freeze_batch_norm=False", "model.freeze_batch_norm", False),
        ("model.freeze_batch_norm=1", "model.freeze_batch_norm", True),
        ("data.crop_size=64,96", "data.crop_size", (64, 96)),
        ("data.crop_size=(64, 96)", "data.crop_size", (64, 96)),
        ("eval.resize_base=240,180", "eval.resize_base", (240, 180)),
        ("data.scale_range=1,1.5", "data.scale_range", (1, 1.5)),
        ("data.class_names=sky,'road'", "data.class_names", ("sky", "road")),
        ("data.root=a=b", "data.root", "a=b"),
        ("init.backbone=", "init.backbone", ""),
    ],
)
def test_override_is_typed_like_its_field(text, key, value):
    got = config.flatten(override(text))[key]
    assert got == value
    assert type(got) is type(value)


def test_empty_tuple_can_be_given():
    assert override("eval.resize_base=240,180", "eval.resize_base=").eval.resize_base == ()


def test_last_override_wins():
    assert override("seed=1", "seed=2").seed == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.lrr=1", "config.train.lrr: there is no such field - did you mean config.train.lr?"),
        ("train.lr=abc", "--config.train.lr: 'abc' is not a number - give one such as 0.01"),
        (
            "train.steps=1.5",
            "--config.train.steps: '1.5' is not a whole number - give one such as 16",
        ),
        ("model.freeze_batch_norm=yes", "'yes' is not true or false - give one such as true"),
        ("data.crop_size=64,x", "must be 2 positive integers, got (64, 'x')"),
        ("train", "config.train: is a group of fields, not a value"),
        ("train.lr", "--config.train.lr: has no value - write --config.train.lr=VALUE"),
        ("train.batch_size=1", "config.train.batch_size: must be at least 2"),
    ],
)
def test_override_that_cannot_be_used_is_refused(text, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        override(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise RuntimeError('one\\ntwo')", "fails with RuntimeError: one - "),
        ("def get_config(:", "fails with SyntaxError"),
        ("import no_such_module", "fails with ModuleNotFoundError"),
        ("x = 1", "mine.py: defines no get_config()"),
        ("def get_config(): return {}", "get_config() returns dict"),
        (
            "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict()",
            "its configuration lacks checkpoint.best, checkpoint.every_steps, checkpoint.keep",
        ),
        (
            "def get_config():\n    c = config.get_config('voc')\n    c.train.lrr = 1\n    "
            "return c",
            "mine.py, line 4: config.train.lrr: there is no such field - did you mean config.train",
        ),
        (
            "def get_config():\n    c = config.get_config('voc')\n    c.seed = 'x'\n    return c",
            "mine.py, line 4: config.seed: must be a whole number (0 to 4294967295), got 'x'",
        ),
        ("def get_config(): return config.get_config('coco')", "dataset: 'coco' is unknown"),
    ],
)
def test_recipe_that_fails_is_told_in_one_line(write, text, message):
    path = write(text)
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        load_recipe(str(path))
    assert "\n" not in str(error.value)


def test_recipe_is_found_by_name_unless_a_file_is_there(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()  # no file
    assert load_recipe("quickstart", ["--config.seed=5"]).seed == 5
    assert load_recipe("voc_r101_os8").model.depth == 101
    (tmp_path / "voc_r101_os8").write_text("")
    with pytest.raises(ConfigError, match="voc_r101_os8: is not a Python file"):
        load_recipe("voc_r101_os8")


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("voc_r101_os", "voc_r101_os8"),
        ("no_such_folder/voc_r101_os8", "voc_r101_os8"),
        ("configs/camvid_r18_os16.py", "camvid_r18_os16"),
        ("quikstart", "quickstart"),
        ("own", "own.py"),
    ],
)
def test_missing_recipe_proposes_the_nearest_name(monkeypatch, tmp_path, wrong, near):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text("")
    with pytest.raises(ConfigError, match=f"recipe file - name one, such as {near}; deeplab"):
        load_recipe(wrong)


def test_missing_recipe_names_one_that_is_there(write):
    path = write("")
    with pytest.raises(ConfigError, match=f"no such recipe file - name one, such as {path}"):
        load_recipe(str(path.with_name("other.py")))


def test_file_that_is_not_python_is_no_recipe(tmp_path):
    (tmp_path / "recipe.yaml").write_text("a: 1")
    with pytest.raises(ConfigError, match="is not a Python file"):
        load_recipe(str(tmp_path / "recipe.yaml"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("c.train.learning_rate = 1", "config.train.learning_rate: there is no such field - did you"
         " mean config.train.lr?"),
        ("c.train.update(lrr=1)", "config.train.lrr: there is no such field"),
        ("t = c.log; t.every = 1", "config.log.every: there is no such field"),
        ("c.optimizer.lr = 1", "config.optimizer.lr: there is no such field - did you mean"
         " config.train.lr?"),
        ("c.train = 3", "config.train: is a group of fields, not a value"),
        ("c.train.epochs = 2.5", "config.train.epochs: must be a whole number (1 or more)"),
        ("1 / 0", "fails with ZeroDivisionError: division by zero - correct it"),
        ("x = [1", "fails with SyntaxError: "),
    ],
)  # fmt: skip
def test_wrong_line_of_a_recipe_is_told_with_its_number(write, line, message):
    path = write(f"def get_config():\n    c = config.get_config('voc')\n    {line}\n    return c\n")
    with pytest.raises(ConfigError, match=re.escape(f"mine.py, line 4: {message}")):
        load_recipe(str(path))


def test_type_that_slipped_through_is_refused():
    c = config.get_config("folder")
    with c.ignore_type():
        c.train.epochs = "3"
    with pytest.raises(ConfigError, match=r"must be a whole number .1 or more., got 3"):
        config.freeze(c)


def test_fix_proposes_the_value_of_the_recipe():
    c = config.get_config("folder", 18)
    for depth, value in ((18, "recipe's: --config.model.depth=18"), (35, "default: .*=50")):
        c.model.depth = depth
        with pytest.raises(ConfigError, match=f"use a value such as the {value}"):
            apply_overrides(c, ["--config.model.depth=35"])


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("train.schedule=cos", "train.schedule=cosine"),
        ("train.optimizer=AdamW", "train.optimizer=adamw"),
        ("loss.class_weighting=inverse_frequency", "loss.class_weighting=inverse"),
        ("checkpoint.best=miou", "checkpoint.best=mean_iou"),
    ],
)
def test_fix_proposes_the_name_that_is_near(wrong, near):
    with pytest.raises(ConfigError, match=rf"did you mean --config\.{near}\?"):
        apply_overrides(config.get_config("folder", 18), [f"--config.{wrong}"])
