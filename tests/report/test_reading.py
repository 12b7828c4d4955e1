import re

import numpy as np

from deeplab_jax.config import freeze, get_config
from deeplab_jax.evaluation import metrics
from deeplab_jax.report import reading


def test_reading_help_says_what_fails_where_and_how_sure(make_evaluation):
    # Class 1: 40 of 100 pixels found, 50 taken for class 2; class 3 is said, never true.
    confusion = np.array([[890, 0, 10, 0], [5, 40, 50, 5], [0, 0, 500, 0], [0, 0, 0, 0]])
    first = np.array([[490, 0, 0, 0], [0, 40, 0, 0], [0, 0, 250, 0], [0, 0, 0, 0]])
    areas = np.stack([metrics.areas_of(first), metrics.areas_of(confusion - first)])
    result = make_evaluation(confusion, areas, ("good", "bad"), ("a", "b", "c", "d"))
    text = reading.reading_help(result).replace("\N{NO-BREAK SPACE}", " ")
    assert text.startswith(
        "Worst class: b (40.0 % IoU, 6.67 % of pixels), mostly taken for c (50.0 % of its pixels); "
        "most wrong pixels in bad. Predicted, not in the truth, and so counted as 0 %: d. "
        "Worst image: bad ("
    )
    assert re.search(r"; the median image has \d+\.\d %\)\.$", text)
    first = reading.confusions(result["confusion"])[0]
    assert first == (1, 2, 50, 0.5, 50 / 70)


def test_reading_help_tells_false_alarms_from_misses(make_evaluation):
    confusion = np.array([[60, 40], [0, 10]])  # class 1 is found, and said four times too often
    areas = metrics.areas_of(confusion)[None]
    result = make_evaluation(confusion, areas, ("x",), ("a", "b"))
    text = reading.reading_help(result).replace("\N{NO-BREAK SPACE}", " ")
    assert "b (20.0 % IoU, 9.09 % of pixels), mostly said where a is (80.0 % of what is" in text


def test_a_mean_over_fewer_classes_says_so(make_evaluation):
    confusion = np.array([[60, 0], [0, 0]])
    result = make_evaluation(confusion, metrics.areas_of(confusion)[None], ("x",), ("a", "b"))
    assert result["num_classes_in_mean"] == 1
    assert reading.over_classes(result) == " over 1 of 2 classes"
    help_ = reading.reading_help(result)
    assert help_.startswith("The 1 of 2 classes that occur are found to the last pixel.")


def test_departures_are_from_the_row_of_the_table():
    c = get_config("ade20k", 50, 16)
    c.train.lr = 0.02
    name, changed = reading.departures(freeze(c))
    assert (
        name == "the table's recipe (published mean IoU 43.21 %) for ade20k, R-50, output stride 16"
    )
    assert changed == [("train.lr", 0.01, 0.02)]
