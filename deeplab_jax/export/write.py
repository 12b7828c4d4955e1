"""Writes an exported folder: models, their card, a sample with its results, and SHA-256 of all.

It is made beside its place and renamed when every model that can run here has given the sample's
results within the tolerances.
"""

import dataclasses
import json
import os
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from deeplab_jax import __version__, checkpoint
from deeplab_jax.config import IGNORE_INDEX, Config, to_dict
from deeplab_jax.data import images
from deeplab_jax.errors import ConfigError, NumericError, ResourceError
from deeplab_jax.evaluation.run import EVALUATION_FILE
from deeplab_jax.evaluation.summary import Evaluation
from deeplab_jax.export import card, place, sample, stablehlo
from deeplab_jax.inference import memory
from deeplab_jax.inference.buckets import Size
from deeplab_jax.inference.engine import Item
from deeplab_jax.inference.exported import folder, runtime, standalone
from deeplab_jax.inference.protocol import TABLE, read_protocol
from deeplab_jax.inference.segmenter import Segmenter, load
from deeplab_jax.models import fold_batch_norm
from deeplab_jax.models.preprocess import MEAN, STD
from deeplab_jax.report.write import read_evaluation

TOLERANCES = {"logits": 1e-4, "confidence": 1e-3, "pixels": 1e-3}
_WHOLE = ("mode=whole", "scales=1", "flip=false", "softmax_first=false")

# Writes a safetensors file of a checkpoint; returns the dialect of its names.
TensorWriter = Callable[[Segmenter, checkpoint.Info, Path], str]


class Request(NamedTuple):
    """What to export.

    Attributes:
      formats: some of "onnx", "stablehlo" and "safetensors".
      kind: "labels" or "logits".
      size: (height, width) of images for StableHLO; None without it.
      platforms: of StableHLO.
    """

    formats: Sequence[str]
    kind: str
    size: Size | None
    platforms: Sequence[str]


def export(
    path: str,
    output: str,
    request: Request,
    write_tensors: TensorWriter,
    *,
    step: int | str = "latest",
    overrides: Sequence[str] = (),
    weights: str | None = None,
    force: bool = False,
) -> folder.Exported:
    """Exports a step of a checkpoint; prints what is written.

    Args:
      path: work directory of a run, or the output of a converter.
      output: the folder to write; with `force` an exported folder there is replaced.
      request: what to export.
      write_tensors: writes the safetensors file, by names that this room does not know.
      step: a number, "latest" or "best".
      overrides: changes to the checkpoint's configuration.
      weights: "ema" or "raw" of a run that averages its weights; its average by default.
      force: replace an exported folder.

    Raises:
      CheckpointError: there is no such checkpoint or step, or it does not fit.
      ConfigError: an override cannot be used, the protocol is more than a file computes, or the
        output is there already.
      NumericError: a model does not give the results of the checkpoint.
      ResourceError: a package is not installed, or the folder cannot be written.
    """
    target = Path(output)
    place.check(output, force)
    if "onnx" in request.formats:
        runtime.needs("onnx", "onnxruntime")
    segmenter = load(path, step, [*overrides, "--config.model.dtype=float32"], weights)
    _check_protocol(segmenter.config, path)
    info = checkpoint.read_info(path, segmenter.step)
    assert info.config is not None  # a network's
    dtype = info.config.model.dtype
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / "sample").mkdir(parents=True)
        _fill(partial, segmenter, info, request, write_tensors, dtype)
        _prove(partial)
        _replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder.read_folder(target)


def _check_protocol(config: Config, path: str) -> None:
    protocol = read_protocol(config.eval)
    if protocol != TABLE:
        what = f"is evaluated by {protocol}, and a file computes one view of the whole image"
        flags = " ".join(f"--config.eval.{text}" for text in _WHOLE)
        raise ConfigError(shlex.quote(path), what, f"export that view by adding {flags}")


def _fill(
    target: Path, segmenter: Segmenter, info: checkpoint.Info, request: Request,
    write_tensors: TensorWriter, dtype: str,
) -> None:  # fmt: skip
    """Writes all files of a folder; the sums last."""
    image, origin = sample.choose(segmenter.config, request.size)
    _write_sample(target, segmenter, image)
    files = _write_models(target, segmenter, info, request, write_tensors)
    config, runs = _portable(segmenter.config), {*request.formats} != {"safetensors"}
    kind = request.kind if runs else "weights"
    date, protocol = time.strftime("%Y-%m-%d", time.gmtime()), str(TABLE)
    content: dict[str, Any] = {
        "format": folder.FORMAT,
        "made_by": f"deeplab_jax {__version__}",
        "date": date,
        "checkpoint": segmenter.path.name,
        "step": segmenter.step,
        "weights": segmenter.weights,
        "output_kind": kind,
        "input": "image: uint8 (batch, height, width, 3), RGB, upright" if runs else card.TENSOR,
        "outputs": list(runtime.OUTPUTS[kind]) if runs else [],
        "protocol": protocol,
        "resize_base": list(config.eval.resize_base),
        "tolerances": TOLERANCES,
        "sample": origin,
        "files": files,
        "config": to_dict(config),
    }
    _write_json(target / standalone.DESCRIPTION, content)
    classes = [
        {"id": index, "name": name, "color": color}
        for index, (name, color) in enumerate(
            zip(segmenter.class_names, segmenter.palette.tolist(), strict=True)
        )
    ]
    _write_json(target / "labels.json", {"classes": classes, "ignore": IGNORE_INDEX})
    own = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=dtype))
    facts = card.Facts(
        segmenter.path.name, info, own, segmenter.weights, kind, protocol, files, date,
        origin, _evaluation(segmenter), segmenter.class_names, segmenter.palette,
    )  # fmt: skip
    (target / "model_card.md").write_text(card.write(facts), encoding="utf-8")
    shutil.copyfile(standalone.__file__, target / "verify.py")
    names = sorted(p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file())
    lines = [f"{standalone.digest(target / name)}  {name}\n" for name in names]
    (target / standalone.SUMS).write_text("".join(lines))


def _write_sample(target: Path, segmenter: Segmenter, image: np.ndarray) -> None:
    """Writes the sample's image and the checkpoint's own results for it."""
    try:
        prediction = segmenter(image)
    except (images.TooLargeError, memory.TooLargeError) as error:  # windows are not exported
        fix = "give a smaller --size, or export as onnx, which takes any, or where more is free"
        raise ResourceError(error.where, error.what, fix) from error
    item = Item(None, *segmenter.fitted(image))
    standalone.write_png(target / standalone.INPUT, image)
    for name, array in (
        ("labels", prediction.labels),
        ("confidence", prediction.confidence),
        ("logits", segmenter.engine.logits(item)),
    ):
        np.save(target / "sample" / f"{name}.npy", array)
    images.write_png_indices(target / "sample" / "labels.png", prediction.labels, segmenter.palette)


def _write_models(
    target: Path, segmenter: Segmenter, info: checkpoint.Info, request: Request,
    write_tensors: TensorWriter,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Writes the models; returns details of each."""
    config = segmenter.config
    files: dict[str, dict[str, Any]] = {}
    params = fold_batch_norm(segmenter.variables)["params"]
    for kind in request.formats:
        path = target / standalone.MODELS[kind]
        if kind == "onnx":
            from deeplab_jax.export import onnx_graph

            about = {
                "classes": json.dumps(segmenter.class_names),
                "protocol": str(TABLE),
                "resize_base": json.dumps(config.eval.resize_base),
                "step": str(segmenter.step),
            }
            model = onnx_graph.build(params, config, request.kind, about)
            path.write_bytes(model.SerializeToString(deterministic=True))
            files[kind] = {"opset": onnx_graph.OPSET, "ir_version": onnx_graph.IR_VERSION}
        elif kind == "stablehlo":
            assert request.size is not None
            size, platforms = request.size, list(request.platforms)
            content, version = stablehlo.build(params, config, request.kind, size, platforms)
            path.write_bytes(content)
            files[kind] = {
                "size": list(size), "platforms": platforms, "jax": jax.__version__,
                "date": time.strftime("%Y-%m-%d", time.gmtime()), "calling_convention": version,
                "compatibility": stablehlo.WINDOW,
            }  # fmt: skip
        else:
            dialect = write_tensors(segmenter, info, path)
            model = config.model
            files[kind] = {
                "dialect": dialect, "input": card.TENSOR, "mean": _decimals(MEAN),
                "std": _decimals(STD), "output_stride": model.output_stride,
                "atrous_rates": list(model.atrous_rates), "multi_grid": list(model.multi_grid),
                "tensors": standalone.tensors(path),
            }  # fmt: skip
    return files


def _decimals(values: np.ndarray) -> list[float]:
    """Returns float32 numbers as they are written, not as their nearest float64."""
    return [float(str(value)) for value in values]


def _prove(target: Path) -> None:
    """Runs the models on the sample.

    Raises:
      NumericError: one departs by more than the tolerances.
    """
    exported = folder.read_folder(target)
    for kind, open_it in (("onnx", runtime.open_onnx), ("stablehlo", runtime.open_stablehlo)):
        if kind not in exported.files:
            continue
        try:
            run = open_it(exported)
        except runtime.OtherDeviceError as error:
            print(f"{standalone.MODELS[kind]}: not run here: {error.what}", flush=True)
            continue
        found = measure(exported, run)
        words = standalone.in_words(found, exported.tolerances)
        if standalone.too_large(found, exported.tolerances):
            fix = "use another format, and report this with the recipe"
            raise NumericError(
                standalone.MODELS[kind], f"departs from the checkpoint: {words}", fix
            )
        print(f"{standalone.MODELS[kind]}: {words}", flush=True)


def measure(exported: folder.Exported, run: runtime.Runtime) -> dict[str, float]:
    """Returns how a model's outputs for the sample differ from the expected ones."""
    outputs = run(standalone.read_png(exported.path / standalone.INPUT)[None])
    got = {name: output[0] for name, output in outputs.items()}
    return standalone.differences(got, standalone.expected(exported.path, list(got)))


def _evaluation(segmenter: Segmenter) -> Evaluation | None:
    """Returns the evaluation of the step and weights, if the checkpoint's directory has it."""
    file = segmenter.path / EVALUATION_FILE
    if not file.is_file():
        return None
    with suppress(ConfigError):  # of another version
        found = read_evaluation(file)
        if (found["step"], found.get("weights", "")) == (segmenter.step, segmenter.weights):
            return found
    return None


def _portable(config: Config) -> Config:
    """Returns a configuration without the places of files on this machine."""
    init = config.init
    names = {key: Path(getattr(init, key)).name for key in ("backbone", "checkpoint")}
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, root="data"),
        init=dataclasses.replace(init, **names),
    )


def _replace(partial: Path, target: Path) -> None:
    """Renames a whole folder to its place; an export there, checked before, is removed."""
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    if target.is_dir():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
