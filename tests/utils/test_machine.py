import pytest

from deeplab_jax.utils import machine


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0.5, 0.5, "0.5 s"),
        (20, 80, "20 to 80 s"),
        (60, 180, "1 to 3 min"),
        (3600, 10800, "1 to 3 h"),
        (360_000, 360_000, "100 h"),
    ],
)
def test_ranges_of_seconds_in_words(low, high, text):
    assert machine.describe(low, high) == text
