import pytest

from deeplab_jax.utils import axes


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.1, 0.9, [0.2, 0.4, 0.6, 0.8]),
        (-3, 3, [-2, 0, 2]),
        (0, 70_000, [0, 20_000, 40_000, 60_000]),
        (5, 5, [5]),
    ],
)
def test_ticks_are_round_numbers_inside_the_axis(low, high, expected):
    assert axes.ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1, 10], (0, 10)), ([9, 10], (9, 10)), ([-1, 1], (-1, 1)), ([0, 0], (0, 0))],
)
def test_axis_begins_at_zero_unless_all_values_are_high(values, expected):
    assert axes.span(values) == pytest.approx(expected)


def test_place_on_an_axis_is_a_fraction():
    assert axes.position(3, 2, 6) == 0.25
    assert axes.position(2, 2, 2) == 0.5


def test_points_are_thinned_to_means_of_neighbours():
    points = [(x, 2.0 * x) for x in range(5)]
    assert axes.thin(points, 5) == points
    assert axes.thin(points, 3) == [(0.5, 1.0), (2.5, 5.0), (4.0, 8.0)]
