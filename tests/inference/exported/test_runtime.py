"""What onnxruntime refuses, in graphs of a node or two, is one line and has its exit code."""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest

from deeplab_jax.data.images import TooLargeError
from deeplab_jax.errors import CheckpointError, ResourceError
from deeplab_jax.inference.exported import runtime, standalone

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
IMAGES = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)


def constant(name, values):
    return onnx.numpy_helper.from_array(np.array(values, np.int64), name)


def graph(nodes, taken="UINT8", given="FLOAT", name="logits", axes=4, initializers=(), opset=17):
    """Returns the bytes of a model from "image" to one output."""
    value, kinds = onnx.helper.make_tensor_value_info, onnx.TensorProto
    inputs = [value("image", getattr(kinds, taken), [None] * 4)]
    outputs = [value(name, getattr(kinds, given), [None] * axes)]
    made = onnx.helper.make_graph(nodes, "g", inputs, outputs, list(initializers))
    opsets = [onnx.helper.make_opsetid("", opset)]
    return onnx.helper.make_model(made, opset_imports=opsets, ir_version=8).SerializeToString()


def cast(output="logits", to="FLOAT"):
    return onnx.helper.make_node("Cast", ["image"], [output], to=getattr(onnx.TensorProto, to))


def reshaped(shape):
    """Returns a model that gives `shape`, whatever the image has."""
    nodes = [cast("x"), onnx.helper.make_node("Reshape", ["x", "shape"], ["logits"])]
    return graph(nodes, initializers=[constant("shape", shape)])


def filled(shape):
    """Returns a model whose output takes memory for `shape`."""
    fill = onnx.helper.make_node("ConstantOfShape", ["shape"], ["ones"])
    nodes = [cast("x"), fill, onnx.helper.make_node("Add", ["x", "ones"], ["logits"])]
    return graph(nodes, initializers=[constant("shape", shape)])


@pytest.fixture
def folder_with(tmp_path):
    """Returns folder_with(model) -> the description of a folder that holds an ONNX model."""

    def folder_with(model):
        (tmp_path / "model.onnx").write_bytes(model)
        return SimpleNamespace(
            path=tmp_path, kind="logits", model=lambda _: tmp_path / "model.onnx"
        )

    return folder_with


def test_a_model_gives_its_outputs_by_name(folder_with):
    run = runtime.open_onnx(folder_with(graph([cast()])))
    np.testing.assert_array_equal(run(IMAGES)["logits"], IMAGES.astype(np.float32))


NOT_READ = {
    "of another version": lambda: graph([cast()], opset=99),
    "with an unknown operator": lambda: graph([onnx.helper.make_node("No", ["image"], ["logits"])]),
}
FOREIGN = {
    "cut short": (lambda: graph([cast()])[:40], "cannot be parsed ("),
    "is empty": (lambda: b"", "cannot be parsed ("),
    "takes another type": (
        lambda: graph([cast()], taken="FLOAT"),
        "takes image tensor(float) of 4 axes, not image tensor(uint8) of 4 axes",
    ),
    "gives another type": (
        lambda: graph([cast(to="DOUBLE")], given="DOUBLE"),
        "gives logits tensor(double) of 4 axes, not logits tensor(float) of 4 axes",
    ),
    "gives another output": (
        lambda: graph([cast("scores")], name="scores"),
        "gives scores tensor(float) of 4 axes, not logits tensor(float) of 4 axes",
    ),
}


def is_one_line(error):
    return "\n" not in f"{error}" and len(f"{error}") < 500


@pytest.mark.parametrize("case", NOT_READ)
def test_what_cannot_be_read_is_a_resource_error(folder_with, case, capfd):
    with pytest.raises(
        ResourceError, match=r"model\.onnx: is not read by onnxruntime \d.* - pip"
    ) as e:
        runtime.open_onnx(folder_with(NOT_READ[case]()))
    assert is_one_line(e.value)
    assert capfd.readouterr() == ("", "")  # onnxruntime's log


@pytest.mark.parametrize("case", FOREIGN)
def test_a_model_of_no_export_is_a_checkpoint_error(folder_with, case, capfd):
    make, text = FOREIGN[case]
    folder = folder_with(make())
    with pytest.raises(CheckpointError, match="is not as exported") as error:
        runtime.open_onnx(folder)
    assert text in error.value.what
    assert is_one_line(error.value)
    with pytest.raises(standalone.ForeignModelError) as own:
        standalone.run_onnx(folder.model("onnx"), IMAGES, ["logits"])
    assert text in str(own.value)
    assert capfd.readouterr() == ("", "")


def test_what_fails_while_it_runs_is_a_resource_error(folder_with, capfd):
    run = runtime.open_onnx(folder_with(reshaped([7, 7, 7, 7])))
    with pytest.raises(
        ResourceError, match=r"is read by onnxruntime .*, and fails there: Non-zero"
    ) as error:
        run(IMAGES)
    assert is_one_line(error.value)
    assert capfd.readouterr() == ("", "")


def test_an_image_beyond_memory_is_an_error_about_the_image(folder_with, capfd):
    run = runtime.open_onnx(folder_with(filled([1 << 46, 1, 1, 1])))  # 256 TiB, beyond addresses
    with pytest.raises(TooLargeError, match=r"^image of 3 x 4 pixels: needs more memory"):
        run(IMAGES[:1])
    assert capfd.readouterr() == ("", "")


def test_a_runtime_that_cannot_be_imported_is_told(folder_with, monkeypatch):
    def fail(name):
        raise ImportError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ResourceError, match=r"onnxruntime: cannot be imported \(libgomp"):
        runtime.open_onnx(folder_with(b""))


def test_outputs_of_another_shape_are_infinitely_apart():
    wanted = {"labels": np.zeros((3, 4), np.uint8), "confidence": np.ones((3, 4), np.float32)}
    got = {**wanted, "labels": np.zeros((3, 5), np.uint8)}
    found = standalone.differences(got, wanted)
    assert found == {"pixels": np.inf, "confidence": np.inf}
    assert standalone.too_large(found, {"pixels": 1e-3, "confidence": 1e-3}) == list(found)
