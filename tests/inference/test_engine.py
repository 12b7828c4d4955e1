"""Protocols are the reference's; shapes, pieces and batches are bounded and change nothing."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from deeplab_jax.config import get_config, validate
from deeplab_jax.config.recipe import apply_overrides
from deeplab_jax.errors import ConfigError, DataError, ResourceError
from deeplab_jax.inference import engine as engine_lib
from deeplab_jax.inference import segmenter
from deeplab_jax.inference.buckets import LIMIT, Buckets, plan_buckets
from deeplab_jax.inference.engine import Engine, Item
from deeplab_jax.inference.protocol import EvalProtocol, read_protocol, sampling
from deeplab_jax.models import ComputePolicy, DeepLabV3Plus, build_model, init_variables

# Protocols


def golden_protocol(case):
    forward, tta = case["forward"], case["tta"]
    return EvalProtocol(
        forward["mode"],
        tuple(forward["cropsize"] or ()),
        tuple(forward["stride"] or ()),
        tuple(map(float, tta["multiscale"])),
        tta["flip"],
        tta["use_probs_before_resize"],
    )


def test_scores_of_every_protocol_equal_pytorchs(measure, recipe):
    with jax.enable_x64(True):
        cases = measure.facts("inference.json")
        model, variables = measure.network("r50_d16_c21", "float64")
        arrays = np.load(recipe.FOLDER / "inference.npz")
        for name, case in cases.items():
            engine = Engine(model, golden_protocol(case)).load(variables)
            image = measure.draw_images(case["image"], case["input_shape"])[0]
            [(_, [scores])] = engine.scores([Item(0, image, tuple(case["output_size"]))])
            expected = arrays[f"{name}/scores"]
            got = recipe.sample_pixels(scores[None], len(expected))
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6, err_msg=name)


def test_protocol_says_what_it_is():
    assert str(EvalProtocol()) == (
        "whole image, single scale, no flip, logits resized to the original size"
    )
    slide = EvalProtocol("slide", (65, 33), (43, 20), (0.5, 1.0), flip=True, softmax_first=True)
    assert str(slide) == (
        "sliding window 65x33, stride 43x20, scales 0.5 1, flip, "
        "probabilities resized to the original size"
    )


def test_protocol_comes_from_the_configuration():
    overrides = ["--config.eval.mode=slide", "--config.eval.crop_size=64,96",
                 "--config.eval.stride=40,60", "--config.eval.scales=0.75,1.0,1.25",
                 "--config.eval.flip=true", "--config.eval.softmax_first=true"]  # fmt: skip
    config = apply_overrides(get_config("folder"), overrides)
    expected = EvalProtocol("slide", (64, 96), (40, 60), (0.75, 1.0, 1.25), True, True)
    assert read_protocol(config.eval) == expected
    assert read_protocol(get_config("voc").eval) == EvalProtocol()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"mode": "tile"}, "config.eval.mode: must be whole or slide"),
        ({"mode": "slide"}, "config.eval.crop_size: must be 2 positive integers"),
        ({"crop_size": (64, 64)}, "config.eval.crop_size: must be .* empty with whole"),
        ({"mode": "slide", "crop_size": (64, 64), "stride": (65, 64)}, "at most"),
        ({"scales": ()}, "config.eval.scales: must be different numbers from 0.25 to 4"),
        ({"scales": (0.0,)}, "config.eval.scales: must be different numbers from 0.25 to 4"),
        ({"scales": (1e9,)}, "config.eval.scales: must be different numbers from 0.25 to 4"),
        ({"scales": (1.0, float("nan"))}, "config.eval.scales: must be different numbers"),
        ({"scales": (1.0, 1)}, "config.eval.scales: must be different numbers"),
    ],
)
def test_protocols_that_cannot_be_are_refused(change, what):
    config = get_config("folder")
    config.eval.update(change)
    with pytest.raises(ConfigError, match=what):
        validate(config)


def test_sampling_weights_are_rounded_once():
    for size, length in ((83, 25), (7, 90), (360, 90), (5, 1), (97, 97)):
        (low, high), weight = sampling(size, length)
        for i in range(size):
            source = min(max((2 * i + 1) * length - size, 0), 2 * size * (length - 1))
            assert (low[i], weight[1, i]) == (source // (2 * size), source % (2 * size) / 2 / size)
            assert high[i] == min(low[i] + 1, length - 1)


# Shapes


def many_sizes(count, seed=0):
    rng = np.random.default_rng(seed)
    return [tuple(map(int, size)) for size in rng.integers(1, 700, (count, 2))]


@pytest.mark.parametrize("count", [1, 10, 16, 17, 120, 2000])
def test_planned_shapes_are_few_and_hold_their_images(count):
    sizes = many_sizes(count)
    plan = plan_buckets(sizes)
    assert set(plan) == set(sizes)
    assert len(set(plan.values())) <= LIMIT <= 20
    for size, shape in plan.items():
        assert size[0] <= shape.size[0]
        assert size[1] <= shape.size[1]
        assert shape.is_masked or size == shape.size
    if count <= LIMIT:
        assert not any(shape.is_masked for shape in plan.values())
    assert plan == plan_buckets(sizes[::-1])
    padded = sum(np.prod(plan[size].size) for size in sizes)
    assert padded < 1.6 * sum(np.prod(size) for size in sizes)


def test_sizes_that_are_not_planned_keep_theirs_until_shapes_are_many():
    buckets = Buckets()
    sizes = sorted(set(many_sizes(300)))
    shapes = [buckets.shape(size) for size in sizes]
    exact = [shape for shape in shapes if not shape.is_masked]
    assert [shape.size for shape in exact] == sizes[:LIMIT]
    for size, shape in zip(sizes[LIMIT:], shapes[LIMIT:], strict=True):
        assert shape.size[0] >= size[0]
        assert shape.size[1] >= size[1]
        assert shape.size[0] % 32 == shape.size[1] % 32 == 0
    assert [buckets.shape(size) for size in sizes] == shapes


def test_sizes_that_come_one_by_one_share_few_shapes():
    for low, high in ((100, 1000), (300, 3000), (1, 700)):
        rng = np.random.default_rng(5)
        sizes = [tuple(map(int, size)) for size in rng.integers(low, high, (1000, 2))]
        buckets = Buckets()
        shapes = [buckets.shape(size) for size in sizes]
        assert len(set(shapes)) <= 3 * LIMIT
        padded = sum(np.prod(shape.size) for shape in shapes)
        assert padded < 2 * sum(np.prod(size) for size in sizes)


def test_plans_share_shapes():
    rng = np.random.default_rng(5)
    sizes = [tuple(map(int, size)) for size in rng.integers(100, 1000, (500, 2))]
    buckets = Buckets()
    buckets.plan(sizes[:100])
    first = [buckets.shape(size) for size in sizes[:100]]
    assert len(set(first)) <= LIMIT
    for start in (100, 200, 300, 400):
        buckets.plan(sizes[start : start + 100])
    shapes = [buckets.shape(size) for size in sizes]
    assert shapes[:100] == first
    assert len(set(shapes)) <= 3 * LIMIT
    height, width = max(shape for shape in first if shape.is_masked).size
    other = Buckets()
    other.plan(sizes[:100])
    other.plan([(height - 1, width - 1), (height, width)])
    assert {other.shape((height - 1, width - 1)), other.shape((height, width))} <= set(first)


# The engine


@pytest.fixture(scope="module")
def network():
    """A narrow network whose predictions vary within an image."""
    model = DeepLabV3Plus(
        num_classes=5, depth=18, atrous_rates=(1, 2, 3), policy=ComputePolicy(), width=8,
        stem="7x7", head_channels=8, low_level_channels=4, aux_channels=8,
    )  # fmt: skip
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, 32, 32, 3))))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if leaf.ndim < 4:
            return np.full(leaf.shape, path[-1].key in ("var", "scale"), np.float32)
        kernel = rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]) / 2)
        if path[1].key == "classifier":  # elsewhere depthwise kernels would be 0, and all scores
            kernel -= kernel.mean(2, keepdims=True)
        return kernel.astype(np.float32)

    return model, jax.tree_util.tree_map_with_path(draw, shapes)


def picture(seed, height, width):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def plain_scores(network, image, size):
    """Computes without shapes, pieces and folding."""
    from deeplab_jax.models import ops
    from deeplab_jax.models.preprocess import normalize

    model, variables = network
    logits = jax.jit(model.apply)(variables, normalize(image)[None]).logits
    assert logits.std() > 0
    return np.asarray(ops.resize_bilinear(logits, size)[0])


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


@pytest.mark.parametrize("softmax_first", [False, True])
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


def test_images_of_two_dtypes_do_not_share_a_batch(network, monkeypatch):
    from deeplab_jax.models.preprocess import normalize

    images = [picture(0, 40, 50), normalize(picture(1, 40, 50)), picture(2, 40, 50)]
    engine = Engine(network[0], EvalProtocol()).load(network[1])
    monkeypatch.setattr(engine, "batch_size", lambda shape: 4)
    got = dict(engine.scores(Item(k, image, (40, 50)) for k, image in enumerate(images)))
    for k in range(3):
        expected = plain_scores(network, picture(k, 40, 50), (40, 50))
        np.testing.assert_allclose(got[k][0], expected, atol=1e-5 * np.abs(expected).max())


def test_several_scales_need_few_programs(network):
    engine = Engine(network[0], EvalProtocol(scales=(0.75, 1.0, 1.25))).load(network[1])
    rng = np.random.default_rng(3)
    sizes = [tuple(map(int, rng.integers(20, 70, 2))) for _ in range(25)]
    engine.buckets = Buckets(limit=3)
    engine.plan(sizes)
    items = (Item(k, picture(k, *size), size) for k, size in enumerate(sizes))
    assert len(dict(engine.segment(items))) == 25
    assert len(engine.programs) <= 3


def test_image_that_does_not_fit_is_refused_each_time(network, monkeypatch):
    monkeypatch.setattr(engine_lib, "_free_memory", lambda device: 1000)
    engine = Engine(network[0], EvalProtocol()).load(network[1])
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
    monkeypatch.setattr(engine_lib, "_free_memory", lambda device: None)
    assert len(list(engine.segment(items))) == 2
    assert len(engine.programs) == 1


def test_image_that_does_not_fit_is_refused_with_the_way_out(network, monkeypatch):
    monkeypatch.setattr(engine_lib, "_free_memory", lambda device: 1000)
    engine = Engine(network[0], EvalProtocol()).load(network[1])
    with pytest.raises(ResourceError, match=r"40 x 50 pixels.*--config\.eval\.mode=slide"):
        list(engine.segment([Item(0, picture(0, 40, 50), (40, 50))]))


def test_image_that_does_not_fit_is_an_error_in_its_place(tmp_path, monkeypatch):
    config = get_config("folder", depth=18)
    config.model.num_classes, config.model.width, config.model.stem = 5, 8, "7x7"
    config.model.head_channels, config.model.low_level_channels = 8, 4
    variables = init_variables(build_model(config.model), 0)
    names = tuple("abcde")
    info = SimpleNamespace(step=1, class_names=names, palette=np.zeros((5, 3), np.uint8))
    model = segmenter.Segmenter(tmp_path, info, config, variables)
    files = []
    for number, height in enumerate((40, 45, 50, 45)):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(picture(number, height, 48)).save(files[-1])
    free = iter([None, 0, 0, None, 0, 0])  # asked until a shape's program may run
    monkeypatch.setattr(engine_lib, "_free_memory", lambda device: next(free))
    monkeypatch.setattr(model.engine, "plan", lambda sizes: list(sizes))  # in the files' order
    results = list(model.segment([*files[:2], tmp_path / "none.png", files[3], files[2]]))
    kinds = [type(result) for result in results]
    assert kinds == [segmenter.Prediction, DataError, DataError, DataError, segmenter.Prediction]
    assert str(results[1]).startswith(f"{files[1]}: image of 45 x 48 pixels needs ")
    assert "--config.eval.mode=slide" in str(results[1])
    assert str(results[2]).startswith(str(tmp_path / "none.png"))
    assert str(results[3]).startswith(f"{files[3]}: image of 45 x 48 pixels needs ")
    with pytest.raises(DataError, match=r"1\.png: image of 45 x 48 pixels needs"):
        model(files[1])
    with pytest.raises(DataError, match=r"^image of 45 x 48 pixels: needs"):
        model(picture(1, 45, 48))
