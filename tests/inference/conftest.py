"""A saved run, loaded."""

import pytest

import deeplab_jax
from deeplab_jax.utils import compile_cache, progress


@pytest.fixture(scope="module")
def model(saved_run):
    """The latest step of `saved_run`, loaded."""
    return deeplab_jax.load(saved_run.path)


@pytest.fixture(autouse=True)
def no_progress_lines(monkeypatch):
    """On a slow machine, too, commands print their results alone."""
    for module in (progress, compile_cache):  # the latter holds it by its own name
        monkeypatch.setattr(module, "PLAIN_SECONDS", 1e6)
