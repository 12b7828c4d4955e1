import numpy as np
import pytest

from deeplab_jax.data.transforms import fit_size, resize_image
from deeplab_jax.export import fit

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

SIZES = [(1, 1), (1, 40), (37, 1), (33, 65), (64, 128), (65, 33), (97, 251), (300, 200), (127, 129)]
BASES = [(80, 64), (256, 128), (33, 500), (129, 65)]


def draw(size):
    return np.random.default_rng(size[0]).integers(0, 256, (2, *size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def fitting(narrow_config):
    """Returns fitting(base): the part of an ONNX graph that fits images."""
    from deeplab_jax.export.onnx_graph import _fitted, _Network

    def session(base):
        graph = _Network({}, narrow_config())
        _fitted(graph, base)
        helper, kind = onnx.helper, onnx.TensorProto
        ends = [
            helper.make_tensor_value_info("image", kind.UINT8, [None, None, None, 3]),
            helper.make_tensor_value_info("fit/image", kind.INT32, None),
        ]
        built = helper.make_graph(graph.nodes, "fit", ends[:1], ends[1:], graph.initializers)
        model = helper.make_model(built, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return onnxruntime.InferenceSession(model.SerializeToString())

    return session


@pytest.mark.parametrize("base", BASES)
def test_onnx_fits_images_as_the_reading_does_to_the_last_bit(fitting, base):
    session = fitting(base)
    for size in SIZES:
        images = draw(size)
        got = session.run(None, {"image": images})[0]
        wanted = [resize_image(image, fit_size(*size, base)) for image in images]
        np.testing.assert_array_equal(got, np.stack(wanted), str(size))


def test_jax_fits_images_as_the_reading_does_to_the_last_bit():
    for size, base in zip(SIZES[2:5], BASES[:3], strict=True):
        images = draw(size)
        wanted = [resize_image(image, fit_size(*size, base)) for image in images]
        np.testing.assert_array_equal(fit.fit(images, base), np.stack(wanted), str(size))
