import sys

import numpy as np
import pytest

from deeplab_jax.config import transforms
from deeplab_jax.config.recipe import load_recipe
from deeplab_jax.data.augment import functions
from deeplab_jax.errors import ConfigError, DataError

RECIPE = """
from deeplab_jax.config import get_config as template

def get_config():
    c = template("folder")
    c.data.transforms = ("own_transforms.inner:flip",)
    return c
"""
FLIP = "def flip(image, label, rng):\n    return image[::-1], label[::-1]\n"


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """A folder of modules that a recipe may name; nothing of it stays imported."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(transforms, "FOLDERS", [])
    before = set(sys.modules)
    yield tmp_path
    for name in [*sys.modules]:
        if name not in before and name.startswith("own_"):
            del sys.modules[name]


def test_a_function_is_found_beside_the_recipe_and_in_the_current_folder(modules, monkeypatch):
    (modules / "own_transforms").mkdir()
    (modules / "own_transforms" / "inner.py").write_text(FLIP)
    (modules / "recipe.py").write_text(RECIPE)
    with pytest.raises(ConfigError, match=r"there is no module own_transforms in .* nor installed"):
        functions.find("own_transforms.inner:flip")
    config = load_recipe(str(modules / "recipe.py"))
    function = functions.find(config.data.transforms[0])
    assert function(np.arange(3), np.arange(3), None)[0].tolist() == [2, 1, 0]
    (modules / "here").mkdir()
    (modules / "here" / "own_here.py").write_text(FLIP)
    monkeypatch.chdir(modules / "here")
    assert functions.find("own_here:flip")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("own_a:flop", "own_a has no function flop - did you mean own_a:flip?"),
        ("own_a:number", "own_a has no function number: that is int - define it as"),
        ("own_b:f", "importing own_b fails with ModuleNotFoundError: No module named 'nowhere_'"),
        ("own_a.c:f", "there is no module own_a.c in "),
        ("own_c:f", "there is no module own_c in "),
        ("json:loads", "own/json.py is hidden by another module of its name"),
    ],
)
def test_a_function_that_is_not_there_is_one_line(modules, monkeypatch, text, told):
    folder = modules / "own"
    folder.mkdir()
    (folder / "own_a.py").write_text(f"{FLIP}number = 3\n")
    (folder / "own_b.py").write_text("import nowhere_\n")
    (folder / "json.py").touch()
    monkeypatch.setattr(transforms, "FOLDERS", [str(folder)])
    with pytest.raises(ConfigError) as caught:
        functions.find(text)
    assert str(caught.value).startswith(f"config.data.transforms, {text}: ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


IMAGE, LABEL = np.zeros((6, 8, 3), np.uint8), np.full((6, 8), 255, np.uint8)
ABOUT = "config.data.transforms, own:f", 3, "a.png"


GLOBAL = np.random.default_rng()


def boom(image, label, rng):
    return image[9], label


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (boom, "fails on a.png with IndexError: index 9 is out of bounds"),
        (lambda image, label: 0, "with TypeError: <lambda>() takes 2 positional arguments but 3"),
        (lambda image, label, rng: image, "it returns uint8 (6, 8, 3), not (image, label)"),
        (lambda image, label, rng: None, "it returns NoneType, not (image, label)"),
        (lambda image, label, rng: (image / 1, label), "its image is float64 (6, 8, 3), not uint8"),
        (lambda image, label, rng: (image[..., :1], label), "its image is uint8 (6, 8, 1), not"),
        (lambda image, label, rng: (image[:0], label[:0]), "its image is uint8 (0, 8, 3), not"),
        (lambda image, label, rng: (image, label[..., None]), "its label is uint8 (6, 8, 1), not"),
        (lambda image, label, rng: (image, label.tolist()), "its label is list of 6, not uint8"),
        (lambda image, label, rng: (image[1:], label), "and its label uint8 (6, 8): their sizes"),
        (lambda image, label, rng: (image, label * 0 + 3), "the value 3; accepted are 0 to 2 and"),
        (lambda image, label, rng: (image + GLOBAL.integers(0, 9, IMAGE.shape, np.uint8), label),
         "two calls with the same sample and random numbers return different samples"),
    ],
)  # fmt: skip
def test_a_function_that_returns_something_else_is_one_line(function, told):
    with pytest.raises(ConfigError) as caught:
        functions.check(function, "own:f", (IMAGE, LABEL), *ABOUT[1:])
    assert str(caught.value).startswith(f"{ABOUT[0]}: ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_function_gets_copies_and_may_return_views():
    def turn(image, label, rng):
        image[:], label[0] = rng.integers(0, 256, image.shape), 2
        return image.swapaxes(0, 1)[::-1], label.T[::-1]

    functions.check(turn, "own:f", (IMAGE, LABEL), *ABOUT[1:])
    rng = np.random.default_rng(0)
    image, label = functions.apply(turn, "own:f", (IMAGE, LABEL), rng, *ABOUT[1:])
    assert image.shape == (8, 6, 3)
    assert image.flags.c_contiguous
    assert label.flags.c_contiguous
    assert label[0].tolist() == [2, *[255] * 5]
    assert not IMAGE.any()
    assert (LABEL == 255).all()


def test_an_error_in_mid_run_names_the_sample_and_is_one_of_the_data():
    with pytest.raises(DataError, match=r"^transform boom: fails on a.png with IndexError") as got:
        functions.apply(boom, "boom", (IMAGE, LABEL), None, *ABOUT[1:])
    assert isinstance(got.value.__cause__, IndexError)  # for DEEPLAB_DEBUG


def test_fingerprint_changes_with_the_file(modules, monkeypatch):
    monkeypatch.chdir(modules)
    digests = []
    for number, text in enumerate((FLIP, FLIP, f"SHARE = 2\n{FLIP}")):
        (modules / f"own_{number}.py").write_text(text)
        digests.append(functions.fingerprint(functions.find(f"own_{number}:flip")))
    assert digests[0] == digests[1] != digests[2]
    assert len(digests[2]) == 12
    assert functions.fingerprint(len) == ""
    namespace: dict = {}
    exec(FLIP, namespace)
    assert functions.fingerprint(namespace["flip"]) == ""
