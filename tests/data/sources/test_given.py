"""Samples of a data set that a caller in Python brings."""

import numpy as np
import pytest

from deeplab_jax.data.sources.given import open_given
from deeplab_jax.errors import ConfigError, DataError


def data(**changes):
    """Returns two samples of three classes; `changes` are members."""
    image, label = np.zeros((4, 6, 3), np.uint8), np.full((4, 6), 2, np.int64)
    members = {"ids": ["a", "b"], "class_names": ["x", "y", "z"], "read": lambda i: (image, label)}
    members |= changes
    names = [name for name, value in members.items() if value is None]
    members = {name: value for name, value in members.items() if name not in names}
    kind = type("Mine", (), {"__len__": lambda self: 2})
    mine = kind()
    vars(mine).update(members)
    return mine


def test_data_of_ones_own_is_read_as_a_split_is():
    label = np.full((4, 6), 255, np.int32)
    label[0] = 2
    mine = open_given(data(read=lambda i: (np.full((4, 6, 3), i, np.uint8), label)), "d", 3, "val")
    image, classes = mine.read(1)
    assert (len(mine), mine.ids, mine.class_names) == (2, ("a", "b"), ("x", "y", "z"))
    assert (image == 1).all()
    assert classes.dtype == np.uint8
    np.testing.assert_array_equal(classes, label)
    assert mine.palette.shape == (3, 3)
    marked = open_given(data(fingerprint=lambda: "2"), "d", 3, "val")
    assert (
        marked.fingerprint() != mine.fingerprint() == open_given(data(), "d", 3, "").fingerprint()
    )


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"ids": None}, TypeError, "`train_data` must have .*; Mine has no `ids`"),
        ({"ids": ["a"]}, ValueError, "must be one for each of 2 samples, got 1"),
        ({"ids": ["a", "a"]}, ValueError, "must differ; given twice: a"),
        ({"class_names": ["x"]}, ConfigError, "num_classes: is 3, and `train_data` has 1 .* = 1"),
        ({"palette": [[0, 0, 0]]}, ValueError, r"must be uint8 \(3, 3\), got \(1, 3\)"),
        ({"read": lambda i: 7}, DataError, r"train_data.read\(0\) of 'a': does not return an"),
        ({"read": lambda i: (np.zeros((4, 6, 3)), 0)}, DataError, r"image float64 \(4, 6, 3\) - "),
        ({"read": lambda i: (np.zeros((4, 6), np.uint8), 0)}, DataError, r"uint8 \(4, 6\)"),
        ({"read": lambda i: (np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6)))},
         DataError, r"label float64 \(4, 6\) - return whole numbers"),
        ({"read": lambda i: (np.zeros((4, 6, 3), np.uint8), np.full((4, 6), 300))},
         DataError, "a label with values 300 to 300"),
        ({"read": lambda i: (np.zeros((4, 6, 3), np.uint8), np.full((4, 6), 3))},
         DataError, r"label of train_data.read\(0\) of 'a': has values 3; accepted are 0\.\.2, 2"),
        ({"read": lambda i: (np.zeros((4, 6, 3), np.uint8), np.full((6, 4), 2))},
         DataError, "is 6 x 4 pixels"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_used_is_told(changes, error, text):
    with pytest.raises(error, match=text):
        open_given(data(**changes), "train_data", 3, "train").read(0)
