"""State dicts of width-reduced networks in every dialect."""

import functools

import jax
import numpy as np
import pytest

from convert import keymap
from convert.source import abstract_variables
from deeplab_jax import cli
from deeplab_jax.config import get_config

_STEMS = {name: dialect.stem for name, dialect in keymap.DIALECTS.items()}


@pytest.fixture
def call(capsys):
    """Returns call(*argv) -> (exit code, standard output, standard error) of `deeplab`."""

    def call(*argv):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in argv])
        return end.value.code, *capsys.readouterr()

    return call


@functools.cache
def _shapes(depth, stem, classes):
    config = get_config("folder", depth=depth).model
    config.width, config.stem, config.num_classes = 4, stem, classes
    config.head_channels, config.low_level_channels, config.aux_channels = 10, 3, 7
    return abstract_variables(config)


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
