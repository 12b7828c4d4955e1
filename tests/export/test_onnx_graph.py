from collections import Counter

import numpy as np
import pytest

from deeplab_jax.inference.engine import Engine, Item
from deeplab_jax.inference.protocol import TABLE
from deeplab_jax.models import build_model, fold_batch_norm

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
onnx_graph = pytest.importorskip("deeplab_jax.export.onnx_graph")

SIZES = (33, 64, 65, 97, 129, 255, 321, 512, 513, 769, 1024, 1025)


@pytest.fixture
def build(narrow_config, draw_variables):
    """Returns build(*changes, **network) -> (configuration, our engine, ONNX of a kind)."""

    def build(*changes, kind="logits", **network):
        config = narrow_config(*changes, **network)
        model = build_model(config.model)
        variables = draw_variables(model, spread=0.3)
        params = fold_batch_norm(variables)["params"]
        made = onnx_graph.build(params, config, kind, {"step": "7"})
        return Engine(model, TABLE).load(variables), made, params

    return build


def draw(size, seed=0):
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (size[0] // 8 + 1, size[1] // 8 + 1, 3))
    image = blocks.repeat(8, 0).repeat(8, 1)[: size[0], : size[1]]
    return np.clip(image + rng.integers(-20, 21, image.shape), 0, 255).astype(np.uint8)


def assert_equal(engine, model, sizes):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for size in sizes:
        image = draw(size)
        (got,) = session.run(None, {"image": image[None]})
        wanted = engine.logits(Item(None, image, size))
        assert got[0].shape == wanted.shape
        apart = np.abs(got[0] - wanted).max() / np.abs(wanted).max()
        assert apart < 1e-5, (size, apart)


def test_logits_equal_ours_whatever_the_size(build):
    engine, model, _ = build("model.atrous_rates=1,2,6")
    assert_equal(engine, model, [(65, 98)])


@pytest.mark.slow("compiles for dozens of sizes")
@pytest.mark.parametrize("network", [{"depth": 18}, {"depth": 50, "output_stride": 8}])
def test_logits_equal_ours_from_33_to_1025_pixels(build, network):
    engine, model, _ = build(**network)
    sizes = [(SIZES[k], SIZES[-1 - k // 2]) for k in range(len(SIZES))]
    assert_equal(engine, model, [*sizes, *(size[::-1] for size in sizes[::3])])


@pytest.mark.parity("compiles a deep network")
@pytest.mark.parametrize("changes", [(), ("model.stem=7x7", "model.multi_grid=1,2,4")])
def test_logits_of_other_networks_equal_ours(build, changes):
    engine, model, _ = build(*changes, depth=50, output_stride=8)
    assert_equal(engine, model, [(65, 97)])


def test_a_batch_gives_what_its_images_give(build):
    _, model, _ = build(kind="labels")
    session = onnxruntime.InferenceSession(model.SerializeToString())
    images = np.stack([draw((33, 47), seed) for seed in range(3)])
    labels, confidence = session.run(None, {"image": images})
    assert (labels.dtype, labels.shape, confidence.dtype) == (np.uint8, (3, 33, 47), np.float32)
    for image, label, sure in zip(images, labels, confidence, strict=True):
        alone = session.run(None, {"image": image[None]})
        np.testing.assert_array_equal(alone[0][0], label)
        np.testing.assert_allclose(alone[1][0], sure, atol=1e-6)


@pytest.mark.parametrize(
    ("depth", "output_stride", "num_convs"),
    [(18, 16, 37), (50, 8, 70)],
)
def test_graph_has_a_node_for_each_layer(build, depth, output_stride, num_convs):
    _, model, params = build(depth=depth, output_stride=output_stride)
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["Conv"] == num_convs
    # ReLU after all but projections, the last of each block, and the classifier; and after sums.
    assert kinds["Relu"] <= num_convs
    others = set(kinds) - {"Conv", "Relu", "Add"}
    assert sum(kinds[kind] for kind in others) <= 16
    assert {opset.version for opset in model.opset_import} == {17}
    assert {node.domain for node in model.graph.node} == {""}
    # Nothing is repeated or computed for nothing.
    used = {name for node in model.graph.node for name in node.input} | {"logits"}
    assert {name for node in model.graph.node for name in node.output} <= used
    again = onnx_graph.read_params(model)
    np.testing.assert_array_equal(
        again["backbone"]["layer4_0"]["conv2"]["conv"]["kernel"],
        params["backbone"]["layer4_0"]["conv2"]["conv"]["kernel"],
    )
