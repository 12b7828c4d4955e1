"""The runtimes of exported models: onnxruntime, and JAX for StableHLO."""

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from deeplab_jax.errors import CheckpointError, ConfigError, DataError, ResourceError
from deeplab_jax.inference.exported.folder import Exported
from deeplab_jax.utils import compile_cache

OUTPUTS = {"logits": ("logits",), "labels": ("labels", "confidence")}  # by kind
_INSIDE = "classifier"  # the logits in an ONNX graph of labels, NCHW
_INSTALL = "pip install 'deeplab_jax[onnx]'"

# Returns the outputs by name for uint8 (B, H, W, 3).
Runtime = Callable[[np.ndarray], dict[str, np.ndarray]]


def needs(*packages: str) -> None:
    """Refuses to go on without a package of the extra `onnx`.

    Raises:
      ResourceError: one is not installed.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ResourceError(package, "is not installed", _INSTALL)


def open_runtime(exported: Exported, with_logits: bool = False) -> Runtime:
    """Returns the runtime of a folder: of ONNX if it is there and can run, else of StableHLO.

    With `with_logits` ONNX models of labels return "logits" too, their value inside.

    Raises:
      ResourceError: onnxruntime is not installed, and there is no other model.
      ConfigError: StableHLO is there alone, and for other devices.
      CheckpointError: the folder holds no model that can run.
    """
    files = exported.files
    if "onnx" in files and ("stablehlo" not in files or importlib.util.find_spec("onnxruntime")):
        return open_onnx(exported, with_logits)
    if "stablehlo" in files:
        return open_stablehlo(exported)
    file = exported.model("safetensors")
    fix = f"deeplab convert from-pytorch --checkpoint {file} --output DIR"
    raise CheckpointError(str(exported.path), "holds weights alone, and no model that runs", fix)


def open_onnx(exported: Exported, with_logits: bool = False) -> Runtime:
    """Returns onnxruntime on the CPU.

    Raises:
      ResourceError: onnxruntime, or for `with_logits` onnx, is not installed.
    """
    needs("onnxruntime")
    import onnxruntime

    names = [*OUTPUTS[exported.kind]]
    file: Any = str(exported.model("onnx"))
    is_inside = with_logits and exported.kind == "labels"
    if is_inside:
        needs("onnx")
        import onnx

        model = onnx.load(file)
        value = onnx.helper.make_tensor_value_info(_INSIDE, onnx.TensorProto.FLOAT, [None] * 4)
        model.graph.output.append(value)
        file = model.SerializeToString()
        names.append(_INSIDE)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        found = dict(zip(names, session.run(names, {"image": images}), strict=True))
        if is_inside:
            found["logits"] = found.pop(_INSIDE).transpose(0, 2, 3, 1)
        return found

    return run


def open_stablehlo(exported: Exported) -> Runtime:
    """Returns JAX on the default device.

    Raises:
      ConfigError: the file is for other devices.
    """
    from jax import export

    path = exported.model("stablehlo")
    program = export.deserialize(bytearray(path.read_bytes()))
    platform = jax.default_backend()
    if platform not in program.platforms and not (
        platform == "gpu" and {"cuda", "rocm"} & set(program.platforms)
    ):
        what = f"is for {', '.join(program.platforms)}, and JAX runs on {platform} here"
        raise ConfigError(str(path), what, f"export again with --platforms {platform}")
    names, call = OUTPUTS[exported.kind], jax.jit(program.call)
    size = tuple(exported.files["stablehlo"]["size"])

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        if images.shape[1:3] != size:
            what = "is {} x {} pixels, and the StableHLO file takes {} x {}"
            fix = "resize the image, or export with another --size, or as onnx, which takes any"
            raise DataError("image", what.format(*images.shape[1:3], *size), fix)
        with compile_cache.without_alarms():
            outputs = call(images)
        return dict(zip(names, map(np.asarray, outputs), strict=True))

    return run
