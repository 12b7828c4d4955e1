"""The compact files are what the full golden values give."""

import importlib
import json

import numpy as np


def test_files_are_those_that_compact_makes(shared, golden):
    compact = importlib.import_module("compact")
    for name, content in compact.build(shared / "reference" / "golden").items():
        if isinstance(content, str):
            assert json.loads((golden / name).read_text()) == json.loads(content), name
            continue
        with np.load(golden / name) as arrays:
            assert set(arrays) == set(content), name
            for key, value in content.items():
                np.testing.assert_array_equal(arrays[key], value, err_msg=f"{name} {key}")
                assert arrays[key].dtype == value.dtype
