import json

import jax
import numpy as np
import pytest

from deeplab_jax import metrics


def test_confusion_by_hand():
    prediction = np.array([[0, 1, 2], [2, 2, 0]], np.uint8)
    label = np.array([[0, 1, 1], [2, 255, 2]], np.uint8)
    confusion = jax.jit(metrics.confusion_matrix, static_argnums=2)(prediction, label, 3)
    np.testing.assert_array_equal(confusion, [[1, 0, 0], [0, 1, 1], [1, 0, 1]])


def test_iou_by_hand():
    confusion = np.array([[1, 0, 0, 0], [0, 1, 1, 0], [1, 0, 1, 0], [0, 0, 0, 0]])
    iou = metrics.iou_per_class(confusion)
    np.testing.assert_allclose(iou, [1 / 2, 1 / 2, 1 / 3, np.nan])
    np.testing.assert_allclose(metrics.mean_iou(confusion), 4 / 9)  # the absent class is skipped
    np.testing.assert_allclose(metrics.pixel_accuracy(confusion), 3 / 5)


def test_a_class_predicted_but_never_labelled_counts_as_zero():
    assert metrics.mean_iou(np.array([[3, 1], [0, 0]])) == pytest.approx(0.75 / 2)


def test_nothing_counted_is_nan_not_zero():
    empty = np.zeros((3, 3), np.int64)
    assert np.isnan(metrics.mean_iou(empty))
    assert np.isnan(metrics.pixel_accuracy(empty))


def test_best_constant_prediction_by_hand():
    # Truth 6, 3, 1: saying class 0 everywhere gives IoU 0.6, 0, 0.
    confusion = np.array([[2, 2, 2], [1, 1, 1], [0, 0, 1]])
    assert metrics.best_constant_mean_iou(confusion) == pytest.approx(0.2)


def test_counts_beyond_int32_are_exact():
    confusion = np.array([[2**40, 1], [0, 2**40]], np.int64)
    assert metrics.iou_per_class(confusion)[0] == 2**40 / (2**40 + 1)


@pytest.mark.parametrize("case", ["eval_plain", "eval_absent", "eval_many"])
def test_metrics_equal_the_references(golden, case):
    facts = json.loads((golden / "data.json").read_text())[case]
    arrays = np.load(golden / "data.npz")
    classes = facts["num_classes"]
    total = np.zeros((classes, classes), np.int64)
    for index in range(facts["images"]):
        label = arrays[f"{case}/gt{index}"]
        label = np.where(label < 0, 255, label).astype(np.int32)
        prediction = arrays[f"{case}/pred{index}"].astype(np.int32)
        total += np.asarray(metrics.confusion_matrix(prediction, label, classes), np.int64)
    np.testing.assert_array_equal(np.diag(total), facts["intersect"])
    np.testing.assert_array_equal(total.sum(0), facts["pred_area"])
    np.testing.assert_array_equal(total.sum(1), facts["label_area"])
    iou = [np.nan if value is None else value for value in facts["iou"]]
    np.testing.assert_allclose(metrics.iou_per_class(total), iou, rtol=1e-6)
    assert metrics.mean_iou(total) == pytest.approx(facts["miou"], rel=1e-6)
    assert metrics.pixel_accuracy(total) == pytest.approx(facts["all_accuracy"], rel=1e-6)
