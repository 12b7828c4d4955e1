"""State dicts of width-reduced networks in every dialect, their recipe, and the commands."""

import dataclasses
import functools
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from convert import keymap
from convert.pth import write_pth
from convert.source import abstract_variables
from deeplab_jax.config import freeze, get_config

sys.path.insert(0, str(Path(__file__).parent))
import pth_files  # also by test modules

_RECIPE = """
from deeplab_jax import config


def get_config():
    c = config.get_config("{dataset}", depth=18, output_stride=16)
    c.model.num_classes = {classes}
    c.model.width, c.model.head_channels = 4, 10
    c.model.low_level_channels, c.model.aux_channels = 3, 7
{changes}    return c
"""
_STEMS = {name: dialect.stem for name, dialect in keymap.DIALECTS.items()}


@pytest.fixture
def convert(call, tmp_path):
    """Returns convert(obj or path, *flags) -> (exit code, output, error, the checkpoint's path)."""

    def convert(obj, *flags):
        path = obj
        if isinstance(obj, dict):
            path = tmp_path / "weights.pth"
            write_pth(path, obj)
        out = tmp_path / "out"
        argv = ["--checkpoint", path, "--output", out, *flags]
        return *call("convert", "from-pytorch", *argv), out

    return convert


@pytest.fixture
def export(call, tmp_path):
    """Returns export(checkpoint, *flags, name="back.pth") -> (code, output, error, the file)."""

    def export(directory, *flags, name="back.pth"):
        path = tmp_path / name
        argv = ["--checkpoint", directory, "--output", path, *flags]
        return *call("convert", "to-pytorch", *argv), path

    return export


@pytest.fixture(scope="session")
def make_recipe(tmp_path_factory):
    """Returns make_recipe(*changes, dataset="folder", classes=5) -> the file of a recipe.

    Its network is that of `make_variables`; a change is like "train.steps = 2".
    """

    def make(*changes, dataset="folder", classes=5):
        path = tmp_path_factory.mktemp("recipe") / "small.py"
        lines = "".join(f"    c.{change}\n" for change in changes)
        path.write_text(_RECIPE.format(dataset=dataset, classes=classes, changes=lines))
        return path

    return make


@pytest.fixture(scope="session")
def run_recipe(make_recipe):
    """The recipe of `make_run`; with test_replay.py's step, so that it is compiled once."""
    return make_recipe(
        "model.atrous_rates = (1, 2, 3)",
        "data.crop_size = (64, 64)",
        "data.resize_base = (97, 65)",
        "train.batch_size = 4",
        f"train.steps = {pth_files.TOTAL}",
        "eval.every_epochs = 2",
        "log.every_steps = 1",
    )


@pytest.fixture
def make_run(make_tensors, tmp_path):
    """Returns make_run(dialect="sssegmentation", iteration=7, **top) -> (path, its object).

    It is PyTorch's file of a run. Momenta are random; `top` replaces or adds to the top level.
    """

    def make(dialect="sssegmentation", iteration=7, **top):
        tensors = make_tensors(dialect)
        optimizer = pth_files.sgd_state(tensors, iteration)
        if dialect == "sssegmentation":
            obj = {"cur_epoch": 0, "cur_iter": iteration, "optimizer": optimizer, "model": tensors}
        else:
            meta = {"epoch": 0, "iter": iteration, "CLASSES": list("abcde")}
            obj = {"meta": meta, "state_dict": tensors, "optimizer": optimizer}
        path = tmp_path / "x.pth"
        write_pth(path, obj | top)
        return path, obj | top

    return make


@pytest.fixture
def import_run(convert, run_recipe):
    """Returns import_run(path, *flags) -> (exit code, output, error, the run's directory)."""
    return lambda path, *flags: convert(path, "--optimizer", "--config", run_recipe, *flags)


@functools.cache
def _shapes(depth, stem, classes):
    model = freeze(get_config("folder", depth=depth)).model
    widths = {"width": 4, "head_channels": 10, "low_level_channels": 3, "aux_channels": 7}
    # Not checked: some tests want class counts that a configuration refuses.
    return abstract_variables(dataclasses.replace(model, stem=stem, num_classes=classes, **widths))


@pytest.fixture
def make_variables():
    """Returns make_variables(depth=18, stem="deep", classes=5, dtype="float32", seed=0).

    That is a network's {"params", "batch_stats"} with widths 4, 10, 3 and 7 and random values.
    """

    def make(depth=18, stem="deep", classes=5, dtype="float32", seed=0):
        rng = np.random.default_rng(seed)

        def draw(path, leaf):
            is_positive = path[-1].key in ("var", "scale")
            value = rng.uniform(0.5, 1.5, leaf.shape) if is_positive else 0
            return (value if is_positive else 0.3 * rng.standard_normal(leaf.shape)).astype(dtype)

        return jax.tree_util.tree_map_with_path(draw, _shapes(depth, stem, classes))

    return make


@pytest.fixture
def make_tensors(make_variables):
    """Returns make_tensors(dialect, depth=18, **options of make_variables) -> a state dict.

    Counters are 0, 1, 2, ...; a backbone has the classifier that is dropped.
    """

    def make(dialect, depth=18, **options):
        variables = make_variables(depth, _STEMS[dialect], **options)
        names = keymap.DIALECTS[dialect]
        if not names.heads:
            variables = {name: tree["backbone"] for name, tree in variables.items()}
        norms = [path for kind, path, _ in keymap.leaves(depth, dialect) if kind == "counters"]
        counters = {path: i for i, path in enumerate(norms)}
        tensors = keymap.to_tensors(variables, counters, depth, dialect)
        return tensors | dict(zip(names.drops, (np.ones((9, 32)), np.ones(9)), strict=False))

    return make
