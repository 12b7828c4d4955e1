import numpy as np
import pytest

from deeplab_jax.evaluation import metrics
from deeplab_jax.inference.counting import confusion_matrix


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


@pytest.fixture
def drawn():
    """Returns (predictions, labels) of 12 small images: void pixels, a class that never occurs,
    one that is only predicted, one image of void alone."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, (12, 9, 11))
    predictions = np.where(rng.random(labels.shape) < 0.6, labels, rng.integers(0, 5, labels.shape))
    labels[rng.random(labels.shape) < 0.1] = 255
    labels[7] = 255
    return predictions, labels


def count(predictions, labels, num_classes=6):
    """Returns (confusion, areas of each image) by the package."""
    each = [
        np.asarray(confusion_matrix(p, t, num_classes), np.int64)
        for p, t in zip(predictions, labels, strict=True)
    ]
    return np.sum(each, 0), np.stack([metrics.areas_of(confusion) for confusion in each])


def plain(predictions, labels, num_classes=6):
    """Returns {score: per class} by looking at pixels, class by class, without any matrix."""
    scores = {"iou": [], "accuracy": [], "precision": [], "f1": [], "frequency": []}
    is_counted = labels != 255
    for c in range(num_classes):
        truth, said = is_counted & (labels == c), is_counted & (predictions == c)
        hit, missed = (truth & said).sum(), (truth & ~said).sum()
        false = (said & ~truth).sum()
        for name, part, whole in (
            ("iou", hit, hit + missed + false),
            ("accuracy", hit, hit + missed),
            ("precision", hit, hit + false),
            ("f1", hit, hit + (missed + false) / 2),
            ("frequency", truth.sum(), is_counted.sum()),
        ):
            scores[name].append(part / whole if whole else np.nan)
    return {name: np.array(values) for name, values in scores.items()}


def test_scores_equal_a_plain_evaluator(drawn):
    confusion, areas = count(*drawn)
    expected = plain(*drawn)
    np.testing.assert_array_equal(areas.sum(0), metrics.areas_of(confusion))
    for name in ("iou", "accuracy", "precision", "f1"):
        values = getattr(metrics, name)(areas.sum(0))
        np.testing.assert_allclose(values, expected[name], rtol=1e-14, err_msg=name)
        np.testing.assert_allclose(metrics.mean(values), np.nanmean(expected[name]), rtol=1e-14)
    weighted = np.nansum(expected["frequency"] * expected["iou"])
    got = metrics.weighted_mean(metrics.iou(areas.sum(0)), areas.sum(0))
    np.testing.assert_allclose(got, weighted, rtol=1e-14)
    assert np.isnan(expected["iou"][5])  # the case covers a class that occurs nowhere
    assert expected["iou"][4] == 0


def test_scores_of_each_image_equal_a_plain_evaluator(drawn):
    _, areas = count(*drawn)
    got = metrics.mean(metrics.iou(areas))
    for number, pair in enumerate(zip(*drawn, strict=True)):
        iou = plain(*pair)["iou"]
        expected = np.nanmean(iou) if number != 7 else np.nan  # image 7 is void
        np.testing.assert_allclose(got[number], expected, rtol=1e-14)


def test_interval_is_that_of_images_drawn_one_by_one(drawn):
    _, areas = count(*drawn)
    got, ends = metrics.bootstrap_iou(areas, resamples=4000, seed=1)
    rng = np.random.default_rng(99)
    scores, classes = [], []
    for _ in range(4000):
        chosen = rng.integers(0, 12, 12)
        classes.append(plain(drawn[0][chosen], drawn[1][chosen])["iou"])
        scores.append(np.nanmean(classes[-1]))
    expected = np.percentile(np.array(classes)[:, :5], [2.5, 97.5], axis=0).T
    np.testing.assert_allclose(ends[:5], expected, atol=6e-3)
    assert np.isnan(ends[5]).all()  # a class that occurs nowhere
    assert (got.low, got.high) == pytest.approx(np.percentile(scores, [2.5, 97.5]), abs=4e-3)
    assert got.low < metrics.mean(metrics.iou(areas.sum(0))) < got.high
    assert got.level == 0.95
    assert got.method == "percentile bootstrap over images, 4000 resamples, seed 1"


def test_interval_repeats_itself_and_knows_equal_images(drawn):
    _, areas = count(*drawn)
    first, second = (metrics.bootstrap_iou(areas) for _ in range(2))
    assert first[0] == second[0]
    np.testing.assert_array_equal(first[1], second[1])
    equal = np.repeat(areas[:1], 9, 0)
    (low, high, *_), ends = metrics.bootstrap_iou(equal)
    assert low == pytest.approx(high, rel=1e-14)
    np.testing.assert_allclose(ends[:4, 0], ends[:4, 1], rtol=1e-14)


def test_interval_of_a_class_in_one_image_is_undefined():
    areas = np.array([[[5, 3], [9, 4], [9, 5]], [[7, 0], [7, 0], [8, 0]]])
    interval, ends = metrics.bootstrap_iou(areas)
    assert np.isfinite(interval[:2]).all()
    assert np.isfinite(ends).tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("number", [0, 1, 3])
def test_interval_of_nothing_is_undefined(number):
    (low, high, *_), ends = metrics.bootstrap_iou(np.zeros((number, 3, 2), np.int64))
    assert np.isnan([low, high]).all()
    assert np.isnan(ends).all()
    assert ends.shape == (2, 2)


def test_iou_equals_the_development_kit_of_voc(drawn):
    # VOCevalseg.m, statement by statement: counts by histc over 1 + truth + result * number, then
    # 100 * gtjresj / (gtj + resj - gtjresj) of each class.
    number, counts = 6, np.zeros(36)
    for result, truth in zip(*drawn, strict=True):
        places = truth < 255
        total = 1 + truth + result * number
        counts += np.histogram(total[places], np.arange(1, number * number + 2))[0]
    counts = counts.reshape(number, number, order="F")
    expected = [
        100 * counts[j, j] / (counts[j].sum() + counts[:, j].sum() - counts[j, j])
        for j in range(number - 1)  # the last occurs nowhere; MATLAB would say NaN
    ]
    confusion, _ = count(*drawn)
    np.testing.assert_array_equal(confusion, counts)
    np.testing.assert_allclose(100 * metrics.iou_per_class(confusion)[:-1], expected, rtol=1e-14)


def test_iou_equals_the_official_evaluation_of_cityscapes():
    official = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    from cityscapesscripts.helpers.labels import trainId2label

    rng = np.random.default_rng(0)
    confusion = rng.integers(0, 2**40, (19, 19))
    confusion[:, 4] = confusion[4] = 0  # a class in neither
    ids = [trainId2label[c].id for c in range(19)]
    official.args.evalLabels = ids
    by_id = np.zeros((max(ids) + 1,) * 2, np.ulonglong)
    by_id[np.ix_(ids, ids)] = confusion
    scores = [official.getIouScoreForLabel(label, by_id, official.args) for label in ids]
    np.testing.assert_allclose(metrics.iou_per_class(confusion), scores, rtol=1e-12)
    named = dict(zip(ids, scores, strict=True))
    names = {trainId2label[c].name: named[trainId2label[c].id] for c in range(19)}
    average = official.getScoreAverage(names, official.args)
    assert metrics.mean_iou(confusion) == pytest.approx(average, rel=1e-12)


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (1, ""),
        (2, "An interval from 2 images is too narrow: evaluate 50 or more."),
        (49, "An interval from 49 images is too narrow: evaluate 50 or more."),
        (50, ""),
    ],
)
def test_an_interval_from_few_images_is_called_too_narrow(images, text):
    assert metrics.few_in_words(images) == text


def test_mean_in_words_names_the_classes_only_where_some_are_left_out():
    assert metrics.mean_in_words([0.25, 0.75]) == "50.00 %"
    assert metrics.mean_in_words([None, np.nan]) == "undefined (no pixel of any class)"
    assert metrics.mean_in_words([1.0, None]) == "100.00 % over 1 of 2 classes"
    assert metrics.mean_in_words(np.array([0.5, np.nan, 0.0])) == "25.00 % over 2 of 3 classes"
