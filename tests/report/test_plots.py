import re

import pytest

from deeplab_jax.report import plots


@pytest.mark.parametrize("points", [[(5.0, 1.0)], [(1.0, 0.0), (2.0, 0.0)], [(1, -3), (9, 1e9)]])
def test_any_line_is_drawn_within_its_frame(points):
    text = plots.line_plot("x", [plots.Series(points, "strong")])
    numbers = re.findall(r'(?:c?[xy][12]?)="(-?[\d.]+)"', text)
    assert all(0 <= float(number) <= 400 for number in numbers)
    assert "nan" not in text
