"""A saved run, loaded."""

import pytest

import deeplab_jax


@pytest.fixture(scope="module")
def model(saved_run):
    """The latest step of `saved_run`, loaded."""
    return deeplab_jax.load(saved_run.path)
