"""A narrow network against PyTorch's stored numbers: the small case of the parity tests."""

import importlib
import json

import jax
import numpy as np
import pytest

RTOL, ATOL = 1e-9, 1e-12  # stored with twelve digits; values are around 1


@pytest.fixture(scope="module")
def narrow():
    return importlib.import_module("narrow")


@pytest.fixture(scope="module")
def stored(narrow):
    return json.loads(narrow.PATH.read_text())


def check(got, expected):
    assert got.keys() == expected.keys()
    for key, values in expected.items():
        np.testing.assert_allclose(got[key], values, RTOL, ATOL, err_msg=key)


def test_forward_and_two_steps_equal_pytorchs_in_float64(narrow, stored, compile_quickly):
    with jax.enable_x64(True):
        check(narrow.ours(), stored)


def test_stored_numbers_are_pytorchs(narrow, stored, torch_reference):
    check(narrow.pytorch(torch_reference), stored)
