"""A run with a function of the user's among its transforms."""

import sys
from types import SimpleNamespace

import pytest

from deeplab_jax import checkpoint
from deeplab_jax.config import transforms
from deeplab_jax.config.recipe import load_recipe
from deeplab_jax.dry_run.gather import find_inputs
from deeplab_jax.errors import ConfigError
from deeplab_jax.training.setup import gather, start_entry
from deeplab_jax.training.workdir import check_same_functions

FUNCTION = """
def darken(image, label, rng):
    image[: rng.integers(1, 9)] = 0
    return image, label
"""
CHANGES = """
train.steps = 2
data.transforms = ("scale", "crop", "flip", "own_run:darken")
"""


@pytest.fixture
def own(make_tree, tiny_recipe, monkeypatch, tmp_path):
    """A recipe, whose function lies beside it; `write(text)` gives that another source."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(transforms, "FOLDERS", [])
    monkeypatch.chdir(tmp_path)  # the function does not lie here
    root = make_tree("folder", num_val=1)
    (root / "own.py").write_text(tiny_recipe(CHANGES))

    def write(text):
        sys.modules.pop("own_run", None)
        (root / "own_run.py").write_text(text)

    write(FUNCTION)
    config = load_recipe(str(root / "own.py"), [f"--config.data.root={root}"])
    yield SimpleNamespace(config=config, write=write, workdir=tmp_path / "run")
    sys.modules.pop("own_run", None)


def test_a_continued_run_refuses_a_function_that_has_changed(own, draw_variables):
    setup = gather(own.config, own.workdir)
    assert [*setup.functions] == ["own_run:darken"]
    digest = setup.functions["own_run:darken"]
    assert start_entry(setup, None)["transforms"] == {"own_run:darken": digest}
    with checkpoint.Saver(own.workdir) as saver:
        saver.save(1, draw_variables(setup.model), setup.info)
    assert checkpoint.read_info(own.workdir).functions == {"own_run:darken": digest}
    assert gather(own.config, own.workdir).step == 1
    assert not find_inputs(own.config, own.workdir).errors

    own.write(f"SHARE = 0.5\n{FUNCTION}")
    with pytest.raises(ConfigError) as caught:
        gather(own.config, own.workdir)
    told = f"trained with the transform own_run:darken of source {digest}, and it is now "
    assert told in str(caught.value)
    assert f"--config.init.checkpoint={own.workdir}" in caught.value.fix
    assert told in str(find_inputs(own.config, own.workdir).errors[0])


def test_a_function_at_fault_stops_a_run_before_it_begins(own):
    own.write(FUNCTION.replace("return image,", "return image / 1,"))
    with pytest.raises(ConfigError) as caught:
        gather(own.config, own.workdir)
    told = "its image is float64 (64, 64, 3), not uint8 (h, w, 3)"
    assert told in str(caught.value)
    assert not own.workdir.exists()
    inputs = find_inputs(own.config, own.workdir)
    assert told in str(inputs.errors[0])
    assert (len(inputs.errors), inputs.first) == (1, None)


def test_functions_that_are_added_dropped_or_changed_are_refused(tmp_path):
    check_same_functions(tmp_path, {}, {})
    check_same_functions(tmp_path, {"a:f": "1", "g": ""}, {"g": "", "a:f": "1"})
    for before, now, told in (
        ({"a:f": "1"}, {"a:f": "2"}, "a:f of source 1, and it is now 2"),
        ({"a:f": "1"}, {}, "a:f of source 1, and it is now no such transform"),
        ({}, {"a:f": "1"}, "a:f of source no such transform, and it is now 1"),
        ({"f": "1"}, {"f": ""}, "f of source 1, and it is now unknown"),
    ):
        with pytest.raises(ConfigError) as caught:
            check_same_functions(tmp_path, before, now)
        assert told in str(caught.value)
