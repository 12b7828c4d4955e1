"""The command of scripts/crosscheck_table.py, and what makes its networks small."""

import pytest

from deeplab_jax import cli


@pytest.fixture(scope="session")
def crosscheck_table(load_script):
    return load_script("crosscheck_table")


@pytest.fixture
def crosscheck(crosscheck_table, call):
    """Returns crosscheck(*argv) -> Outcome of the script."""
    return lambda *argv: call(*argv, command=lambda argv: cli.run(crosscheck_table.main, argv))


@pytest.fixture(scope="session")
def small():
    """Overrides for a narrow ResNet-18."""
    return [
        "--config.model.depth=18",
        "--config.model.width=4",
        "--config.model.head_channels=32",
        "--config.model.low_level_channels=8",
        "--config.model.aux_channels=7",
    ]
