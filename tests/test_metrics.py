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


@pytest.mark.parametrize("case", ["plain", "absent", "many"])
def test_metrics_equal_the_references(measure, case):
    pairs = measure.evaluator(case)
    np.testing.assert_array_equal(*pairs["counts"])
    np.testing.assert_allclose(*pairs["iou"], rtol=1e-6)
    np.testing.assert_allclose(*pairs["scores"], rtol=1e-6)
