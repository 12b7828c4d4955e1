"""Golden values of the data pipeline, and the reference's random generator behind our interface."""

import dataclasses
import json

import numpy as np
import pytest

from deeplab_jax import config
from deeplab_jax.data import TrainBatch, open_dataset, train_batches
from deeplab_jax.errors import DataError


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


@pytest.fixture(scope="session")
def read():
    """Returns read(dataset, **changes) -> its batches of five steps of four."""
    options = {
        "seed": 3,
        "batch_size": 4,
        "steps_per_epoch": 3,
        "start": 0,
        "stop": 5,
        "rows": range(4),
        "crop_size": (48, 64),
        "resize_base": (96, 64),
        "scale_range": (0.5, 2.0),
        "num_workers": 0,
    }
    return lambda dataset, **changes: list(train_batches(dataset, **(options | changes)))


@pytest.fixture(scope="session")
def assert_equal():
    """Returns assert_equal(batches, others) -> None."""

    def assert_equal(batches, others):
        assert len(batches) == len(others) > 0
        for pair in zip(batches, others, strict=True):
            for name in TrainBatch._fields:
                np.testing.assert_array_equal(*(getattr(b, name) for b in pair), err_msg=name)

    return assert_equal


@pytest.fixture(scope="session")
def open_error():
    """Returns open_error(data, num_classes, split, kind=DataError) -> the error's one line."""

    def open_error(data, num_classes, split, kind=DataError):
        with pytest.raises(kind) as caught:
            open_dataset(data, num_classes, split)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return open_error
