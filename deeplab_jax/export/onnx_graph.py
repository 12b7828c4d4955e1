"""The network as a graph of ONNX's standard operators, one to a layer.

Written from the configuration and the folded parameters, not traced. Inside it is NCHW, as ONNX's
operators are; images and logits are NHWC at the border. Initializers have our paths, such as
"backbone/stem/conv1/conv/kernel", so that `read_params` finds the parameters again.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deeplab_jax.config import Config
from deeplab_jax.export import fit
from deeplab_jax.models import ComputePolicy
from deeplab_jax.models.preprocess import MEAN, STD
from deeplab_jax.models.resnet import STRIDES, ResNet
from deeplab_jax.utils.trees import by_path

OPSET, IR_VERSION = 17, 8  # read by onnxruntime 1.12 (2022) and later
_INPUT = "image"
_LINEAR = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}


class _Graph:
    """Nodes and initializers in order; a node's name is that of its first output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._constants: dict[tuple, str] = {}

    def op(self, kind: str, name: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def initializer(self, name: str, value: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def constant(self, value: Any, dtype: Any) -> str:
        """Returns the name of a small array, one for equal arrays."""
        array = np.asarray(value, dtype)
        key = (array.tobytes(), array.dtype.str, array.shape)
        if key not in self._constants:
            name = f"constant/{len(self._constants)}"
            self._constants[key] = self.initializer(name, array)
        return self._constants[key]


class _Network(_Graph):
    """The layers; `params` are those of the network with folded norms."""

    def __init__(self, params: Mapping[str, Any], config: Config):
        super().__init__()
        self._params, self._model = by_path(params), config.model

    def conv(
        self, x: str, path: str, stride: int = 1, dilation: int = 1, use_relu: bool = True
    ) -> str:
        """Adds a convolution with the folded norm after it, and ReLU."""
        is_classifier = f"{path}/kernel" in self._params
        names = ("kernel", "bias") if is_classifier else ("conv/kernel", "norm/bias")
        kernel, bias = (self._params[f"{path}/{name}"] for name in names)
        size, groups = kernel.shape[0], kernel.shape[3] if kernel.shape[2] == 1 else 1
        inputs = [
            self.initializer(f"{path}/{names[0]}", _oihw(kernel).astype(np.float32)),
            self.initializer(f"{path}/{names[1]}", np.asarray(bias, np.float32)),
        ]
        x = self.op(
            "Conv", path, x, *inputs, kernel_shape=[size] * 2, strides=[stride] * 2,
            dilations=[dilation] * 2, pads=[dilation * (size // 2)] * 4, group=groups,
        )  # fmt: skip
        return self.op("Relu", f"{path}/relu", x) if use_relu and not is_classifier else x

    def separable(self, x: str, path: str, dilation: int = 1) -> str:
        x = self.conv(x, f"{path}/depthwise", dilation=dilation)
        return self.conv(x, f"{path}/pointwise")

    def block(self, x: str, path: str, stride: int, dilation: int) -> str:
        """Adds a basic block or a bottleneck."""
        identity = x
        if f"{path}/projection/conv/kernel" in self._params:
            identity = self.conv(x, f"{path}/projection", stride, use_relu=False)
        if f"{path}/conv3/conv/kernel" in self._params:
            x = self.conv(x, f"{path}/conv1")
            x = self.conv(x, f"{path}/conv2", stride, dilation)
            x = self.conv(x, f"{path}/conv3", use_relu=False)
        else:
            x = self.conv(x, f"{path}/conv1", stride, dilation)
            x = self.conv(x, f"{path}/conv2", use_relu=False)
        return self.op("Relu", f"{path}/relu", self.op("Add", f"{path}/sum", x, identity))

    def backbone(self, x: str) -> tuple[str, str]:
        """Returns the maps of layers 1 and 4."""
        model = self._model
        for index in range(1, 2 if model.stem == "7x7" else 4):
            x = self.conv(x, f"backbone/stem/conv{index}", stride=2 if index == 1 else 1)
        x = self.op(
            "MaxPool", "backbone/pool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4
        )
        layers = ResNet(model.depth, model.output_stride, ComputePolicy(),
                        multi_grid=model.multi_grid).dilations()  # fmt: skip
        maps = []
        for layer, (dilations, first) in enumerate(
            zip(layers, STRIDES[model.output_stride], strict=True), 1
        ):
            for index, dilation in enumerate(dilations):
                stride = first if index == 0 else 1
                x = self.block(x, f"backbone/layer{layer}_{index}", stride, dilation)
            maps.append(x)
        return maps[0], maps[-1]

    def aspp(self, x: str) -> str:
        branches = [self.conv(x, "aspp/branch0")]
        for index, rate in enumerate(self._model.atrous_rates, 1):
            branches.append(self.separable(x, f"aspp/branch{index}", rate))
        pooled = self.conv(self.op("GlobalAveragePool", "aspp/mean", x), "aspp/image_pool")
        size = self.op("Shape", "aspp/size", branches[0])
        branches.append(self.op("Expand", "aspp/image", pooled, size))
        x = self.op("Concat", "aspp/branches", *branches, axis=1)
        return self.conv(x, "aspp/merge")

    def decoder(self, x: str, low_level: str) -> str:
        shortcut = self.conv(low_level, "decoder/low_level")
        x = self.resize(x, "decoder/upsampled", self.op("Shape", "decoder/size", shortcut, start=2))
        x = self.op("Concat", "decoder/maps", x, shortcut, axis=1)
        for index in range(2):
            x = self.separable(x, f"decoder/refine{index}")
        return x

    def resize(self, x: str, name: str, size: str) -> str:
        """Adds a bilinear resize to a size (height, width)."""
        start = self.op("Shape", f"{name}/start", x, end=2)
        sizes = self.op("Concat", f"{name}/sizes", start, size, axis=0)
        return self.op("Resize", name, x, "", "", sizes, **_LINEAR)


def build(
    params: Mapping[str, Any], config: Config, kind: str, metadata: Mapping[str, str]
) -> onnx.ModelProto:
    """Returns the checked model.

    Args:
      params: of the network with folded norms, see `models.fold_batch_norm`.
      config: of the network; its protocol is that of the table.
      kind: "labels" or "logits".
      metadata: texts that the file carries, by name.
    """
    graph = _Network(params, config)
    pixels = _fitted(graph, config.eval.resize_base) if config.eval.resize_base else _INPUT
    x = graph.op("Transpose", "input/nchw", pixels, perm=[0, 3, 1, 2])
    x = graph.op("Cast", "input/float", x, to=TensorProto.FLOAT)
    mean, scale = (value.reshape(1, 3, 1, 1) for value in (MEAN, 1 / STD))
    x = graph.op("Sub", "input/centred", x, graph.constant(mean, np.float32))
    x = graph.op("Mul", "input/normalized", x, graph.constant(scale, np.float32))
    low_level, top = graph.backbone(x)
    x = graph.decoder(graph.aspp(top), low_level)
    x = graph.conv(x, "classifier")  # the logits' name inside, see `exported.runtime`
    batch: list[str | int] = ["batch"]
    size: list[str | int] = ["height", "width"]
    if kind == "logits":
        graph.op("Transpose", "logits", x, perm=[0, 2, 3, 1])
        shape = [*batch, "logits_height", "logits_width", config.model.num_classes]
        outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)]
    else:
        _add_labels(graph, x)
        outputs = [
            helper.make_tensor_value_info("labels", TensorProto.UINT8, [*batch, *size]),
            helper.make_tensor_value_info("confidence", TensorProto.FLOAT, [*batch, *size]),
        ]
    inputs = [helper.make_tensor_value_info(_INPUT, TensorProto.UINT8, [*batch, *size, 3])]
    built = helper.make_graph(graph.nodes, "DeepLabV3Plus", inputs, outputs, graph.initializers)
    model = helper.make_model(
        built, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
        producer_name="deeplab_jax",
    )  # fmt: skip
    helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    return model


def _add_labels(graph: _Network, logits: str) -> None:
    """Adds labels and the softmax's maximum, at the input's size."""
    size = graph.op("Shape", "output/size", _INPUT, start=1, end=3)
    scores = graph.resize(logits, "scores", size)
    index = graph.op("ArgMax", "output/index", scores, axis=1, keepdims=0)
    graph.op("Cast", "labels", index, to=TensorProto.UINT8)
    # The maximum of a softmax is 1 / sum(exp(score - largest score)).
    largest = graph.op("ReduceMax", "output/largest", scores, axes=[1], keepdims=1)
    x = graph.op("Exp", "output/exp", graph.op("Sub", "output/below", scores, largest))
    total = graph.op("ReduceSum", "output/total", x, graph.constant([1], np.int64), keepdims=0)
    graph.op("Reciprocal", "confidence", total)


def _fitted(graph: _Graph, base: Sequence[int]) -> str:
    """Adds the steps of `fit.fit`, for any size; returns the images' name."""
    op, constant = graph.op, graph.constant

    def number(value: float, dtype: Any = np.float64) -> str:
        return constant(value, dtype)

    lengths = op("Shape", "fit/lengths", _INPUT, start=1, end=3)
    sides = op("Cast", "fit/sides", lengths, to=TensorProto.DOUBLE)
    factors = [
        op("Div", f"fit/{word}", number(value), op(kind, f"fit/{word}_side", sides, keepdims=0))
        for word, kind, value in (
            ("long", "ReduceMax", max(base)),
            ("short", "ReduceMin", min(base)),
        )
    ]
    scaled = op("Mul", "fit/scaled", sides, op("Min", "fit/factor", *factors))
    rounded = op("Floor", "fit/rounded", op("Add", "fit/half", scaled, number(0.5)))
    size = op("Max", "fit/whole", rounded, number(1))
    x = op("Cast", "fit/integers", _INPUT, to=TensorProto.INT32)
    for axis, word in ((2, "columns"), (1, "rows")):
        low, high, *weights = _table(graph, word, size, sides, axis - 1)
        if axis == 1:
            x = op("Div", "fit/rows/cut", x, number(1 << fit.ROWS_SHIFT, np.int32))
        parts = []
        for place, index, weight in (("low", low, weights[0]), ("high", high, weights[1])):
            taken = op("Gather", f"fit/{word}/{place}/taken", x, index, axis=axis)
            part = op("Mul", f"fit/{word}/{place}/weighted", taken, weight)
            if axis == 1:
                part = op("Div", f"fit/rows/{place}/cut", part,
                          number(1 << fit.SUM_SHIFT, np.int32))  # fmt: skip
            parts.append(part)
        x = op("Add", f"fit/{word}/sum", *parts)
    x = op("Add", "fit/rounding", x, number(2, np.int32))
    return op("Div", "fit/image", x, number(1 << fit.LAST_SHIFT, np.int32))


def _table(graph: _Graph, word: str, size: str, sides: str, axis: int) -> list[str]:
    """Adds the steps of `fit.table`; weights are shaped for the axis of NHWC."""
    constant = graph.constant

    def op(kind: str, name: str, *inputs: str, **attributes: Any) -> str:
        return graph.op(kind, f"fit/{word}/{name}", *inputs, **attributes)

    def side(of: str, name: str) -> str:
        return op("Gather", name, of, constant(axis, np.int64), axis=0)

    out, length = side(size, "size"), side(sides, "length")
    zero, half, one = (constant(value, np.float64) for value in (0, 0.5, 1))
    step = op("Div", "step", one, op("Div", "factor", out, length))
    centres = op("Add", "centres", op("Range", "range", zero, out, one), half)
    position = op("Sub", "position", op("Mul", "scaled", centres, step), half)
    position = op("Cast", "float", position, to=TensorProto.FLOAT)
    floor = op("Floor", "floor", position)
    weight = op("Sub", "weight", position, floor)
    low = op("Cast", "low_or_beyond", floor, to=TensorProto.DOUBLE)
    last = op("Sub", "last", length, one)
    if word == "columns":
        is_before = op("Less", "is_before", low, zero)
        is_beyond = op("Or", "is_beyond", is_before,
                       op("GreaterOrEqual", "is_after", low, last))  # fmt: skip
        weight = op("Where", "clamped", is_beyond, constant(0, np.float32), weight)
    result = []
    for name, index in (("low", low), ("high", op("Add", "next", low, one))):
        inside = op("Min", f"{name}/below", op("Max", f"{name}/above", index, zero), last)
        result.append(op("Cast", name, inside, to=TensorProto.INT64))
    rest = op("Sub", "rest", constant(1, np.float32), weight)
    shape = constant([-1, 1] if word == "columns" else [-1, 1, 1], np.int64)
    for name, share in (("low", rest), ("high", weight)):
        steps = op("Mul", f"{name}/steps", share, constant(fit.ONE, np.float32))
        whole = op("Round", f"{name}/rounded", steps)
        integer = op("Cast", f"{name}/integer", whole, to=TensorProto.INT32)
        result.append(op("Reshape", f"{name}/weight", integer, shape))
    return result


def read_params(model: onnx.ModelProto) -> dict[str, Any]:
    """Returns the parameters with folded norms of a model that `build` made, kernels HWIO."""
    params: dict[str, Any] = {}
    for tensor in model.graph.initializer:
        *parents, leaf = tensor.name.split("/")
        if parents == ["constant"]:
            continue
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        value = numpy_helper.to_array(tensor)
        node[leaf] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
    return params


def _oihw(kernel: np.ndarray) -> np.ndarray:
    return np.asarray(kernel).transpose(3, 2, 0, 1)
