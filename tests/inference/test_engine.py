"""Pieces, batches and shapes are bounded and change nothing."""

import jax
import numpy as np
import pytest

from deeplab_jax.errors import ResourceError
from deeplab_jax.inference.buckets import Buckets
from deeplab_jax.inference.counting import confusion_matrix
from deeplab_jax.inference.engine import Engine, Item
from deeplab_jax.inference.protocol import EvalProtocol
from deeplab_jax.inference.resize import sampling
from deeplab_jax.models import ComputePolicy, DeepLabV3Plus, ops
from deeplab_jax.models.preprocess import normalize

pytestmark = pytest.mark.usefixtures("compile_quickly")

_MANY_PROGRAMS = pytest.mark.parity(
    "compiles many shapes; one window and its flips are in the first tier"
)


def test_confusion_by_hand():
    prediction = np.array([[0, 1, 2], [2, 2, 0]], np.uint8)
    label = np.array([[0, 1, 1], [2, 255, 2]], np.uint8)
    confusion = jax.jit(confusion_matrix, static_argnums=2)(prediction, label, 3)
    np.testing.assert_array_equal(confusion, [[1, 0, 0], [0, 1, 1], [1, 0, 1]])


@pytest.fixture(scope="module")
def network(draw_variables):
    """A narrow network whose predictions vary within an image."""
    model = DeepLabV3Plus(
        num_classes=5, depth=18, atrous_rates=(1, 2, 3), policy=ComputePolicy(), width=8,
        stem="7x7", head_channels=8, low_level_channels=4, aux_channels=8,
    )  # fmt: skip
    return model, draw_variables(model)


def picture(seed, height, width):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def plain_scores(network, image, size):
    """Computes without shapes, pieces and folding."""
    model, variables = network
    logits = jax.jit(model.apply)(variables, normalize(image)[None]).logits
    assert logits.std() > 0
    return np.asarray(ops.resize_bilinear(logits, size, "cpu_mesh")[0])


@_MANY_PROGRAMS
def test_pieces_of_padded_images_equal_the_whole(network):
    engine = Engine(network[0], EvalProtocol()).load(network[1])
    sizes = [(70, 300), (41, 33), (1, 40)]  # more than a piece in either direction, less, a line
    engine.buckets = Buckets(limit=2)
    engine.plan(sizes)
    items = [Item(k, picture(k, *size), size) for k, size in enumerate(sizes)]
    items.append(Item(3, items[1].image, (130, 520)))  # upscaled
    items.append(Item(4, items[0].image, (9, 11)))  # smaller than its logits
    scores, segmented = dict(engine.scores(items)), dict(engine.segment(items))
    assert list(scores) == list(segmented) == [0, 1, 2, 3, 4]
    assert any(key[2].is_masked for key in engine.programs)
    for item in items:
        expected = plain_scores(network, item.image, item.size)
        [got], (labels, confidence) = scores[item.key], segmented[item.key]
        np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())
        np.testing.assert_array_equal(labels, got.argmax(-1))
        probability = np.exp(expected - expected.max(-1, keepdims=True))
        np.testing.assert_allclose(confidence, 1 / probability.sum(-1), rtol=1e-4)
        assert (labels.dtype, confidence.dtype) == (np.uint8, np.float32)


@_MANY_PROGRAMS
def test_many_sizes_need_few_programs(network):
    engine = Engine(network[0], EvalProtocol()).load(network[1])
    rng = np.random.default_rng(3)
    sizes = [tuple(map(int, rng.integers(20, 70, 2))) for _ in range(120)]
    assert len(set(sizes)) > 110
    engine.buckets = Buckets(limit=3)
    engine.plan(sizes)
    items = (Item(k, picture(k, *size), size) for k, size in enumerate(sizes))
    done = [(key, labels.shape) for key, (labels, _) in engine.segment(items)]
    assert done == list(enumerate(sizes))
    assert len(engine.programs) <= 3


@_MANY_PROGRAMS
def test_batches_change_nothing(network, monkeypatch):
    sizes = [(40, 50), (40, 50), (33, 50), (40, 50), (20, 20), (40, 50)]
    items = [Item(k, picture(k, *size), size) for k, size in enumerate(sizes)]
    one = Engine(network[0], EvalProtocol()).load(network[1])
    several = Engine(network[0], EvalProtocol()).load(network[1])
    monkeypatch.setattr(several, "batch_size", lambda shape: 3)
    got, expected = dict(several.scores(items)), dict(one.scores(items))
    assert list(got) == list(expected)
    for key in expected:
        np.testing.assert_allclose(got[key][0], expected[key][0], atol=1e-4)
    assert len(several.programs) == len(one.programs)


_AGAIN = pytest.mark.slow("as many programs again; the golden protocols have softmax first, too")


@pytest.mark.parametrize("softmax_first", [False, pytest.param(True, marks=_AGAIN)])
def test_windows_and_flips_equal_a_plain_loop(network, monkeypatch, softmax_first):
    image, size, crop, stride = picture(0, 50, 45), (61, 80), (32, 48), (20, 30)
    protocol = EvalProtocol("slide", crop, stride, flip=True, softmax_first=softmax_first)
    engine = Engine(network[0], protocol).load(network[1])
    monkeypatch.setattr(engine, "batch_size", lambda shape: 2)
    [(_, [got])] = engine.scores([Item(0, image, size)])
    total = 0
    for is_flipped in (False, True):
        source = np.ascontiguousarray(image[:, ::-1]) if is_flipped else image
        scores, count = np.zeros((50, 45, 5)), np.zeros((50, 45, 1))
        for top in (0, 18):  # the second is moved up to end with the image
            window = source[top : top + 32]
            own = plain_scores(network, window, window.shape[:2])
            scores[top : top + 32] += jax.nn.softmax(own, -1) if softmax_first else own
            count[top : top + 32] += 1
        scores = (scores / count)[:, ::-1] if is_flipped else scores / count
        (low, high), weight = sampling(size[0], 50)
        scores = scores[low] * weight[0][:, None, None] + scores[high] * weight[1][:, None, None]
        (low, high), weight = sampling(size[1], 45)
        total += scores[:, low] * weight[0][:, None] + scores[:, high] * weight[1][:, None]
    np.testing.assert_allclose(got, total / 2, atol=1e-5 * np.abs(total).max())


@_MANY_PROGRAMS
@pytest.mark.parametrize("mode", ["slide", "whole"])
@pytest.mark.parametrize("scales", [(1.0, 1.25), (1.25, 1.0, 0.75)])
def test_views_of_several_scales_share_batches(network, monkeypatch, mode, scales):
    windows = ((32, 32), (20, 20)) if mode == "slide" else ((), ())
    protocol = EvalProtocol(mode, *windows, scales, flip=True)
    items = [Item(0, picture(0, 50, 45), (50, 45)), Item(1, picture(1, 40, 56), (61, 80))]
    results = []
    for batch in (1, 4):
        engine = Engine(network[0], protocol).load(network[1])
        engine.buckets = Buckets(limit=1)  # all whole views share one shape, the worst case
        engine.plan([item.image.shape[:2] for item in items])
        monkeypatch.setattr(engine, "batch_size", lambda shape, batch=batch: batch)
        results.append(dict(engine.scores(items)))
        assert len(engine.programs) == 1
    for key, [expected] in results[0].items():
        atol = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(results[1][key][0], expected, rtol=0, atol=atol)


@_MANY_PROGRAMS
def test_images_of_two_dtypes_do_not_share_a_batch(network, monkeypatch):
    images = [picture(0, 40, 50), normalize(picture(1, 40, 50)), picture(2, 40, 50)]
    engine = Engine(network[0], EvalProtocol()).load(network[1])
    monkeypatch.setattr(engine, "batch_size", lambda shape: 4)
    got = dict(engine.scores(Item(k, image, (40, 50)) for k, image in enumerate(images)))
    for k in range(3):
        expected = plain_scores(network, picture(k, 40, 50), (40, 50))
        np.testing.assert_allclose(got[k][0], expected, atol=1e-5 * np.abs(expected).max())


@_MANY_PROGRAMS
def test_several_scales_need_few_programs(network):
    engine = Engine(network[0], EvalProtocol(scales=(0.75, 1.0, 1.25))).load(network[1])
    rng = np.random.default_rng(3)
    sizes = [tuple(map(int, rng.integers(20, 70, 2))) for _ in range(25)]
    engine.buckets = Buckets(limit=3)
    engine.plan(sizes)
    items = (Item(k, picture(k, *size), size) for k, size in enumerate(sizes))
    assert len(dict(engine.segment(items))) == 25
    assert len(engine.programs) <= 3


def test_image_that_does_not_fit_is_refused_each_time(network):
    engine = Engine(network[0], EvalProtocol()).load(network[1])
    engine.free_memory = lambda device: 1000
    engine.buckets = Buckets(limit=1)
    engine.plan([(40, 50), (33, 50)])
    items = [Item(k, picture(k, *size), size) for k, size in enumerate([(33, 50), (40, 50)])]
    for item in [*items, items[0]]:
        own = f"image of {item.size[0]} x 50 pixels"  # not that of the shape
        with pytest.raises(ResourceError, match=own):
            list(engine.segment([item]))
    refused = {}
    assert list(engine.segment(items, refused.__setitem__)) == []
    assert list(refused) == [0, 1]
    engine.free_memory = lambda device: None
    assert len(list(engine.segment(items))) == 2
    assert len(engine.programs) == 1


def test_image_that_does_not_fit_is_refused_with_the_way_out(network):
    engine = Engine(network[0], EvalProtocol()).load(network[1])
    engine.free_memory = lambda device: 1000
    with pytest.raises(ResourceError, match=r"40 x 50 pixels.*--config\.eval\.mode=slide"):
        list(engine.segment([Item(0, picture(0, 40, 50), (40, 50))]))
