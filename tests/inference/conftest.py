"""A saved run, loaded."""

import pytest

import deeplab_jax
from deeplab_jax.utils import progress


@pytest.fixture(scope="module")
def model(saved_run):
    """The latest step of `saved_run`, loaded."""
    return deeplab_jax.load(saved_run.path)


@pytest.fixture(autouse=True)
def no_progress_lines(monkeypatch):
    """On a slow machine, too, commands print their results alone."""
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 1e6)
