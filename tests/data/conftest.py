"""Golden values of the data pipeline, and the reference's random generator behind our interface."""

import dataclasses
import json

import numpy as np
import pytest

from deeplab_jax import config


@pytest.fixture(scope="session")
def expected(golden):
    """The numbers of golden/data.json."""
    return json.loads((golden / "data.json").read_text())


@pytest.fixture(scope="session")
def arrays(golden):
    """The arrays of golden/data.npz."""
    with np.load(golden / "data.npz") as file:
        return dict(file)


@pytest.fixture
def data_config():
    """Returns data_config(dataset, root, **fields) -> config.data, frozen."""

    def make(dataset, root, **fields):
        data = config.freeze(config.get_config(dataset)).data
        return dataclasses.replace(data, root=str(root), **fields)

    return make


@pytest.fixture
def legacy_rng(measure):
    return measure.LegacyRng
