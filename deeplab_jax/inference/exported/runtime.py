"""The runtimes of exported models: onnxruntime, and JAX for StableHLO."""

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import jax
import numpy as np

from deeplab_jax.data.images import TooLargeError
from deeplab_jax.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DeepLabError,
    ResourceError,
    as_resource_error,
    clip,
    describe_cause,
)
from deeplab_jax.inference.exported import standalone
from deeplab_jax.inference.exported.folder import AGAIN, Exported, convert_command
from deeplab_jax.utils import compile_cache

OUTPUTS = {"logits": ("logits",), "labels": ("labels", "confidence")}  # by kind
_INSIDE = "classifier"  # the logits in an ONNX graph of labels, NCHW
_INSTALL = "pip install 'deeplab_jax[onnx]'"
_CAUSE = 240  # characters of a runtime's own words
_NO_MEMORY = ("bad_alloc", "bad allocation", "Failed to allocate memory")  # onnxruntime's words

# Returns the outputs by name for uint8 (B, H, W, 3).
Runtime = Callable[[np.ndarray], dict[str, np.ndarray]]


class OtherDeviceError(ConfigError):
    """A StableHLO file that is for devices which are not here."""


def needs(*packages: str) -> list[ModuleType]:
    """Returns packages of the extra `onnx`.

    Raises:
      ResourceError: one is not installed, or cannot be imported.
    """
    found = []
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ResourceError(package, "is not installed", _INSTALL)
        try:
            found.append(importlib.import_module(package))
        except Exception as error:  # a library of its own that is missing, another NumPy
            what = f"cannot be imported ({clip(describe_cause(error), _CAUSE)})"
            raise ResourceError(package, what, f"{_INSTALL} --upgrade") from error
    return found


def open_runtime(exported: Exported, with_logits: bool = False) -> Runtime:
    """Returns the runtime of a folder: of ONNX if it is there and can run, else of StableHLO.

    With `with_logits` ONNX models of labels return "logits" too, their value inside.

    Raises:
      ResourceError: onnxruntime is not installed, and there is no other model.
      OtherDeviceError: it is of StableHLO, and the file is for other devices.
      CheckpointError: the folder holds no model that can run, or one that no export wrote.
    """
    files = exported.files
    if "onnx" in files and ("stablehlo" not in files or importlib.util.find_spec("onnxruntime")):
        return open_onnx(exported, with_logits)
    if "stablehlo" in files:
        return open_stablehlo(exported)
    file, output = str(exported.model("safetensors")), f"weights/{exported.path.resolve().name}"
    classes = exported.class_names, exported.palette
    fix = f"make a checkpoint of it: {convert_command(file, exported.config, *classes, output)}"
    raise CheckpointError(str(exported.path), "holds weights alone, and no model that runs", fix)


def open_onnx(exported: Exported, with_logits: bool = False) -> Runtime:
    """Returns onnxruntime on the CPU.

    What is returned raises TooLargeError for an image beyond memory, ResourceError for a model that
    onnxruntime has read and cannot run.

    Raises:
      ResourceError: onnxruntime, or for `with_logits` onnx, is not installed, or does not read it.
      CheckpointError: it is not a model that an export wrote, or no model at all.
    """
    (onnxruntime,) = needs("onnxruntime")
    names = [*OUTPUTS[exported.kind]]
    file: str | bytes = str(exported.model("onnx"))
    is_inside = with_logits and exported.kind == "labels"
    if is_inside:
        names.append(_INSIDE)
        file = _with_inside(exported)
    reader = f"onnxruntime {onnxruntime.__version__}"
    with _reading(exported, "onnx", reader):
        session = standalone.open_onnx(file, names)

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        with _reading(exported, "onnx", reader, images.shape):
            found = session(images)
        if is_inside:
            found["logits"] = found.pop(_INSIDE).transpose(0, 2, 3, 1)
        return found

    return run


def load_onnx(exported: Exported) -> Any:
    """Returns the ONNX model as a protocol buffer (ResourceError, CheckpointError: `open_onnx`)."""
    (onnx,) = needs("onnx")
    from google.protobuf.message import DecodeError  # of onnx

    with _reading(exported, "onnx", f"onnx {onnx.__version__}"):
        try:
            model = onnx.load(str(exported.model("onnx")))
        except DecodeError as error:
            raise standalone.unparsable(error) from error
        if not model.HasField("graph"):  # as of an empty file, which protobuf accepts
            raise standalone.ForeignModelError("holds no graph")
        return model


def _with_inside(exported: Exported) -> bytes:
    """Returns an ONNX model of labels that gives its logits, too."""
    model = load_onnx(exported)
    from onnx import TensorProto, helper

    model.graph.output.append(helper.make_tensor_value_info(_INSIDE, TensorProto.FLOAT, [None] * 4))
    return model.SerializeToString()


def open_stablehlo(exported: Exported) -> Runtime:
    """Returns JAX on the default device.

    Raises:
      OtherDeviceError: the file is for other devices.
      CheckpointError: it is no program of JAX.
      ResourceError: this version of JAX does not read it.
    """
    path, reader = exported.model("stablehlo"), f"jax {jax.__version__}"
    with _reading(exported, "stablehlo", reader):
        program = standalone.read_stablehlo(path)
    platform = jax.default_backend()
    if platform not in program.platforms and not (
        platform == "gpu" and {"cuda", "rocm"} & set(program.platforms)
    ):
        what = f"is for {', '.join(program.platforms)}, and JAX runs on {platform} here"
        raise OtherDeviceError(str(path), what, f"export again with --platforms {platform}")
    names, call = OUTPUTS[exported.kind], jax.jit(program.call)
    size = tuple(exported.files["stablehlo"]["size"])

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        if images.shape[1:3] != size:
            height, width = images.shape[1:3]
            what = f"is {height} x {width} pixels, and the StableHLO file takes"
            what += f" {size[0]} x {size[1]}"
            fix = "resize the image, or export with another --size, or as onnx, which takes any"
            raise DataError("image", what, fix)
        with (
            compile_cache.without_alarms(),
            _reading(exported, "stablehlo", reader, images.shape),
        ):
            return dict(zip(names, map(np.asarray, call(images)), strict=True))

    return run


@contextmanager
def _reading(
    exported: Exported, kind: str, reader: str, shape: tuple[int, ...] = ()
) -> Iterator[None]:
    """Turns what a runtime raises, of kinds without a common base, into our errors.

    Args:
      exported: the folder.
      kind: "onnx" or "stablehlo".
      reader: the runtime and its version.
      shape: of the images that it runs on; none while it is read.

    Raises:
      ResourceError: the runtime does not read or run the model.
      CheckpointError: it is no model, or not one of an export.
      TooLargeError: memory does not suffice for the images.
    """
    where = str(exported.model(kind))
    try:
        yield
    except DeepLabError:
        raise
    except standalone.ForeignModelError as error:
        raise CheckpointError(where, f"is not as exported: it {error}", AGAIN) from error
    except Exception as error:
        cause = standalone.told(error)
        if shape and (isinstance(error, MemoryError) or any(w in cause for w in _NO_MEMORY)):
            what = f"needs more memory in {reader} than is free"
            size = f"image of {shape[1]} x {shape[2]} pixels"
            raise TooLargeError(size, what, "shrink the image") from error
        if (known := as_resource_error(error)) is not None:
            raise known from error
        fix = f"{_INSTALL} --upgrade, or export the checkpoint again"
        if kind == "stablehlo":
            written_by = exported.files["stablehlo"]["jax"]
            if standalone.is_damaged_program(error, written_by):
                what = f"is not as exported: it {standalone.unparsable(error)}"
                raise CheckpointError(where, what, AGAIN) from error
            fix = f"use jax {written_by}, or export the checkpoint again"
        cause = clip(cause, _CAUSE)
        what = f"is not read by {reader} ({cause})"
        if shape:
            what = f"is read by {reader}, and fails there: {cause}"
        raise ResourceError(where, what, fix) from error
