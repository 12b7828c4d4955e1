"""A tiny run of `deeplab train`, and what became of it uninterrupted."""

import pytest

from deeplab_jax.config.recipe import load_recipe

# 4 steps an epoch; saved after 3, 6, 9, 12 and evaluated after 8; so most saves are in mid-epoch.
CHANGES = """
name = "tiny"
train.steps = 14
eval.every_epochs = 2
checkpoint.every_steps = 3
"""


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly(compile_quickly):
    """Every module here trains."""


@pytest.fixture(scope="package")
def memo():
    """Runs that the tests share; `call` cannot be asked from a wider scope."""
    return {}


@pytest.fixture(scope="package")
def tiny(make_tree, tiny_recipe):
    """The command that trains the tiny recipe, without its work directory."""
    root = make_tree("folder", num_train=16, num_val=2)
    (root / "tiny.py").write_text(tiny_recipe(CHANGES))
    return ["train", "--config", f"{root}/tiny.py", f"--config.data.root={root}"]


@pytest.fixture
def tiny_config(tiny):
    return load_recipe(tiny[2], tiny[3:])


@pytest.fixture
def finished(call, memo, tiny, tmp_path_factory):
    """The work directory of the uninterrupted run; not to be changed."""
    if "finished" not in memo:
        workdir = tmp_path_factory.mktemp("finished")
        assert call(*tiny, "--workdir", workdir).code == 0
        memo["finished"] = workdir
    return memo["finished"]
