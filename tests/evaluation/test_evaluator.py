"""Counts are those of an evaluator in plain NumPy, to the last one."""

import itertools

import cv2
import jax
import numpy as np
import pytest

from deeplab_jax.config import freeze, get_config
from deeplab_jax.data import open_dataset
from deeplab_jax.data.transforms import fit_size
from deeplab_jax.evaluation import evaluator
from deeplab_jax.evaluation.boundary import boundary_areas
from deeplab_jax.evaluation.evaluator import Evaluator
from deeplab_jax.inference.buckets import Buckets
from deeplab_jax.inference.counting import BINS
from deeplab_jax.models import build_model
from deeplab_jax.models.preprocess import MEAN, STD

pytestmark = pytest.mark.usefixtures("compile_quickly")

CLASSES = 5
# Landscape, portrait, smaller than a window of the network, one pixel a side, more than a piece.
SIZES = [(40, 57), (57, 40), (5, 7), (1, 30), (30, 1), (70, 300)]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A folder of images of `SIZES`, and a narrow network in float64, so that nothing ties."""
    root, rng = tmp_path_factory.mktemp("sizes"), np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
    for number, size in enumerate(SIZES):
        blocks = rng.integers(0, 256, (9, 9, 3), np.uint8)  # noise would be grey to the network
        image = cv2.resize(blocks, size[::-1], interpolation=cv2.INTER_NEAREST)
        label = rng.integers(0, CLASSES + 1, size, np.uint8)
        label[label == CLASSES] = 255
        cv2.imwrite(str(root / "images" / "val" / f"{number}.png"), image)
        cv2.imwrite(str(root / "labels" / "val" / f"{number}.png"), label)
    c = get_config("folder", depth=18)
    c.model.num_classes, c.model.dtype = CLASSES, "float64"
    c.model.atrous_rates, c.model.stem, c.model.width = (1, 2, 3), "7x7", 8
    c.model.head_channels, c.model.low_level_channels, c.model.aux_channels = 8, 4, 8
    c.data.root = str(root)
    return freeze(c)


def resize(x, size):
    """Bilinear, half-pixel centres, one axis after the other; written for this test."""
    for axis in (0, 1):
        length = x.shape[axis]
        source = np.clip((np.arange(size[axis]) + 0.5) * length / size[axis] - 0.5, 0, length - 1)
        low = np.floor(source).astype(int)
        weight = np.expand_dims(source - low, [k for k in range(3) if k != axis])
        high = np.minimum(low + 1, length - 1)
        x = x.take(low, axis) * (1 - weight) + x.take(high, axis) * weight
    return x


def plain_calibration_error(confidence, is_right):
    """Guo et al.: 15 bins, open below, closed above."""
    error, edges = 0, np.linspace(0, 1, 16)
    for low, high in itertools.pairwise(edges):
        is_in = (confidence > low) & (confidence <= high)
        if is_in.any():
            error += is_in.mean() * abs(is_right[is_in].mean() - confidence[is_in].mean())
    return error


def count_plainly(model, variables, dataset, base):
    """Returns each image's confusion matrix, cross entropy and boundary areas, and the error."""
    matrices, losses, boundaries, confidences, hits = [], [], [], [], []
    apply = jax.jit(lambda x: model.apply(variables, x).logits)
    for index in range(len(dataset)):
        image, label = dataset.read(index)
        if base:
            size = fit_size(*label.shape, base)
            image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
        normal = (image.astype(np.float32) - MEAN) * (1 / STD)
        logits = resize(np.asarray(apply(normal[None])[0]), label.shape)
        prediction = logits.argmax(-1)
        matrix = np.zeros((CLASSES, CLASSES), int)
        for truth, ours in zip(label.ravel(), prediction.ravel(), strict=True):
            if truth != 255:
                matrix[truth, ours] += 1
        matrices.append(matrix)
        probability = np.exp(logits - logits.max(-1, keepdims=True))
        probability = (probability / probability.sum(-1, keepdims=True))[label != 255]
        truth = label[label != 255]
        losses.append(-np.log(probability[np.arange(len(truth)), truth]).mean())
        confidences.append(probability.max(-1))
        hits.append(probability.argmax(-1) == truth)
        boundaries.append(boundary_areas(prediction.astype(np.uint8), label, CLASSES))
    error = plain_calibration_error(np.concatenate(confidences), np.concatenate(hits))
    return np.array(matrices), np.array(losses), np.array(boundaries), error


_RESIZED = pytest.mark.parity(
    "compiles as much again; images of their own size are in the first tier"
)


@pytest.mark.parametrize("base", [(), pytest.param((64, 48), marks=_RESIZED)])
def test_counts_equal_plain_numpys(config, draw_variables, base):
    with jax.enable_x64(True):
        model, dataset = build_model(config.model), open_dataset(config.data, CLASSES, "val")
        variables = draw_variables(model, 1, spread=0.2)
        evaluator = Evaluator(model, dataset, base)
        evaluator.engine.buckets = Buckets(limit=2)
        result = evaluator(variables)
        expected, losses, boundaries, error = count_plainly(model, variables, dataset, base)
    assert len(evaluator.engine.programs) <= 2
    np.testing.assert_array_equal(result.confusion, expected.sum(0))
    assert np.count_nonzero(result.confusion.sum(0)) > 2  # not one class everywhere
    assert result.num_images == len(SIZES)
    np.testing.assert_array_equal(result.per_image[:, 0], np.diagonal(expected, axis1=1, axis2=2))
    np.testing.assert_array_equal(result.per_image[:, 1], expected.sum(2))
    np.testing.assert_array_equal(result.per_image[:, 2], expected.sum(1))
    scores = result.summary()
    assert scores["loss"] == pytest.approx(losses.mean(), rel=1e-12)
    areas = boundaries.sum(0)
    np.testing.assert_array_equal(result.boundary, areas)
    iou = areas[0] / (areas[1] + areas[2] - areas[0])
    np.testing.assert_allclose(scores["boundary_iou_per_class"], iou, rtol=1e-14)
    assert scores["boundary_iou"] == pytest.approx(iou.mean(), rel=1e-14)
    got = scores["calibration"]
    assert got["expected_calibration_error"] == pytest.approx(error, abs=1 / 15 / 4096 / 2)
    assert sum(part["pixels"] for part in got["bins"]) == expected.sum()
    assert result.image_ids == tuple(dataset.ids)
    assert result.confusion.dtype == result.per_image.dtype == np.int64


def test_order_and_choice_of_images_are_the_callers(config, draw_variables):
    with jax.enable_x64(True):
        model, dataset = build_model(config.model), open_dataset(config.data, CLASSES, "val")
        evaluator, variables = (
            Evaluator(model, dataset, (64, 48)),
            draw_variables(model, 1, spread=0.2),
        )
        evaluator.engine.buckets = Buckets(limit=1)
        evaluator.engine.plan([(64, 64)])
        counted = []
        some = evaluator(variables, [5, 0, 2], on_image=lambda: counted.append(1))
        assert len(counted) == 3
        assert some.image_ids == tuple(dataset.ids[k] for k in (5, 0, 2))
        label = dataset.read(5)[1]
        np.testing.assert_array_equal(
            some.per_image[0, 1], np.bincount(label[label != 255], minlength=CLASSES)
        )
        answers = iter([False, True])
        assert evaluator(variables, should_stop=lambda: next(answers)) is None


def test_images_of_two_hosts_are_put_together(monkeypatch):
    rng, positions = np.random.default_rng(0), [3, 0, 4, 1, 2]
    images = [
        evaluator.ImageTotals(
            rng.integers(0, 2**40, (CLASSES, CLASSES)),
            rng.integers(0, 2**40, (3, CLASSES)),
            rng.integers(0, 2**40, (BINS, 3)),
            rng.normal(),
        )
        for _ in positions
    ]
    told = []

    def tell(data):
        told.append(data)
        return told

    monkeypatch.setattr(evaluator.hosts, "own_share", lambda items, host=0: items[host::2])
    monkeypatch.setattr(evaluator.hosts, "all_gather_bytes", tell)
    for host in (0, 1):
        own = [images[position] for position in positions[host::2]]
        confusion, got = evaluator.gather(own, positions, CLASSES)
    np.testing.assert_array_equal(confusion, sum(image.confusion for image in images))
    for number, image in enumerate(images):
        np.testing.assert_array_equal(got.areas[number, 0], image.confusion.diagonal())
        np.testing.assert_array_equal(got.boundary[number], image.boundary)
        np.testing.assert_array_equal(got.bins[number], image.bins)
        assert got.cross_entropy[number] == image.cross_entropy
