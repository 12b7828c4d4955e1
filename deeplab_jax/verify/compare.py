"""Compares an exported folder with what it was exported from, on its sample and on a data set."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from deeplab_jax.config.recipe import apply_overrides
from deeplab_jax.data import Dataset, eval_examples, open_dataset
from deeplab_jax.data.images import read_size
from deeplab_jax.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DeepLabError,
    ResourceError,
    clip,
    describe_cause,
)
from deeplab_jax.evaluation import metrics
from deeplab_jax.export.write import measure
from deeplab_jax.inference.buckets import Size
from deeplab_jax.inference.engine import Engine, Item, Variables
from deeplab_jax.inference.exported import runtime, standalone
from deeplab_jax.inference.exported.folder import AGAIN, Exported, read_folder
from deeplab_jax.inference.exported.segmenter import ExportedEngine
from deeplab_jax.inference.protocol import TABLE
from deeplab_jax.inference.resize import fitted, fitted_size
from deeplab_jax.inference.segmenter import load
from deeplab_jax.models import DeepLabV3Plus, build_model
from deeplab_jax.utils.progress import counting

Tensors: TypeAlias = Mapping[str, np.ndarray]
# Returns our variables of a PyTorch state dict, for a depth and a dialect.
ToVariables = Callable[[Tensors, int, str], Variables]


class _Ours(NamedTuple):
    """Our network of the exported weights, and where they come from."""

    engine: Engine
    source: str


class NotRun(NamedTuple):
    """Why a model cannot run here, in words that follow its name, and what helps."""

    why: str
    fix: str


class Verified(NamedTuple):
    """What was found.

    Attributes:
      results: numbers by name, in JSON's types; null where outputs are not finite, or of another
        shape than the expected ones.
      faults: phrases about what is beyond the tolerances.
      not_run: the models that were not verified, by the names of their files.
    """

    results: dict[str, Any]
    faults: list[str]
    not_run: dict[str, NotRun]


def verify(
    path: str, to_variables: ToVariables, data: str | None, checkpoint: str | None
) -> Verified:
    """Verifies a folder; prints a line for each comparison, and for each model that cannot run.

    Args:
      path: the folder.
      to_variables: reads PyTorch's names, which this room does not know.
      data: root of the recipe's data; None for the sample alone.
      checkpoint: the checkpoint that was exported; None: the weights in the folder.

    Raises:
      CheckpointError: a file is missing, changed or was added, or is not of an export.
      ConfigError: weights in the folder cannot be compared with, and there is no checkpoint.
      DataError: the data cannot be used.
      ResourceError: weights in the folder cannot be read here.
    """
    exported = read_folder(path)
    _check_sample(exported)
    dataset = None if data is None else _open_data(exported, data)
    digest = standalone.digest(exported.path / standalone.SUMS)
    print(f"files: all as in {standalone.SUMS}, whose own SHA-256 is {digest}", flush=True)
    results: dict[str, Any] = {"files": digest, "tolerances": exported.tolerances, "models": {}}
    faults: list[str] = []
    not_run: dict[str, NotRun] = {}
    ours = _ours(exported, to_variables, checkpoint) if dataset is not None else None
    for kind in exported.files:
        name = standalone.MODELS[kind]
        if kind == "safetensors":
            found = _measure_weights(exported, to_variables)
            faults += _tell(name, "sample", found, exported.tolerances)
            results["models"][name] = {"sample": found}
            continue
        try:
            run = _open(exported, kind)
            found = measure(exported, run)
        except (ResourceError, runtime.OtherDeviceError) as error:
            not_run[name] = _not_run(error, name)
            print(f"{name}: not verified: {not_run[name].why}", flush=True)
            results["models"][name] = {"not_run": not_run[name].why}
            continue
        faults += _tell(name, "sample", found, exported.tolerances)
        results["models"][name] = {"sample": found}
        has_shapes = np.inf not in found.values()  # else there are no pixels to compare
        if ours is not None and dataset is not None and has_shapes:
            only = exported.files[kind].get("size")
            found, scores = _compare(exported, run, ours, dataset, only and (only[0], only[1]))
            faults += _tell(name, scores["data"], found, exported.tolerances)
            print(
                f"{name}: mean IoU {100 * scores['mean_iou']:.2f} %, ours"
                f" {100 * scores['mean_iou_ours']:.2f} % ({scores['pixels_apart']} of"
                f" {scores['num_pixels']} pixels differ; ours: deeplab_jax with {ours.source})",
                flush=True,
            )
            results["models"][name]["data"] = found | scores
    results["is_within"] = not faults and not not_run
    return Verified(_finite(results), faults, not_run)


def _check_sample(exported: Exported) -> None:
    """Refuses a sample that was changed together with its sums (CheckpointError)."""
    names = [name for outputs in runtime.OUTPUTS.values() for name in outputs]
    try:
        standalone.read_part("sample", partial(standalone.read_sample, exported.path, names))
    except standalone.ForeignModelError as error:
        raise CheckpointError(str(exported.path), f"is not as exported: {error}", AGAIN) from error


def _finite(value: Any) -> Any:
    """Returns a value of JSON's types with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _not_run(error: DeepLabError, name: str) -> NotRun:
    if isinstance(error, runtime.OtherDeviceError):
        return NotRun(error.what, f"run deeplab verify where JAX has that device, or {error.fix}")
    if error.where.endswith(name):
        return NotRun(error.what, error.fix)
    return NotRun(f"cannot run ({error.where}: {error.what})", error.fix)


def _open(exported: Exported, kind: str) -> runtime.Runtime:
    if kind == "onnx":
        return runtime.open_onnx(exported, with_logits=True)
    return runtime.open_stablehlo(exported)


def _tell(
    name: str, place: str, found: dict[str, float], tolerances: dict[str, float]
) -> list[str]:
    """Prints how a model differs; returns a phrase if that is too much."""
    wrong = standalone.too_large(found, tolerances)
    text = f"{name}, {place}: {standalone.in_words(found, tolerances)}"
    print(text, flush=True)
    return [f"{name}, {place}, {', '.join(wrong)}"] if wrong else []


def _measure_weights(exported: Exported, to_variables: ToVariables) -> dict[str, float]:
    """Returns how our network with the weights of a safetensors file differs on the sample."""
    image = standalone.read_png(exported.path / standalone.INPUT)
    engine = _engine(exported).load(_read_variables(exported, to_variables))
    item = Item(None, fitted(image, exported.config.eval.resize_base), image.shape[:2])
    got = {"logits": engine.logits(item)}
    return standalone.differences(got, standalone.expected(exported.path, ["logits"]))


def _ours(exported: Exported, to_variables: ToVariables, checkpoint: str | None) -> _Ours:
    """Returns our engine: of the checkpoint, else of the weights in the folder."""
    if checkpoint is not None:
        weights = exported.weights or None
        flags = ["--config.model.dtype=float32"]
        loaded = load(checkpoint, exported.step, flags, weights)
        engine = Engine(loaded.model, TABLE).load(loaded.variables)
        return _Ours(engine, f"{checkpoint}, step {exported.step}")
    if "safetensors" in exported.files:
        engine = _engine(exported).load(_read_variables(exported, to_variables))
        return _Ours(engine, f"the weights in {standalone.MODELS['safetensors']}")
    if "onnx" in exported.files:
        proto = runtime.load_onnx(exported)  # first: without onnx there is no reader either
        from deeplab_jax.export.onnx_graph import read_params

        with _reading_weights(exported, "onnx"):
            params = read_params(proto)
        model = _network(exported)
        engine = _engine(exported).load_folded({"params": _with_unused(params, model)})
        return _Ours(engine, f"the weights in {standalone.MODELS['onnx']}")
    what = "is to be compared with the checkpoint: weights in StableHLO cannot be read"
    raise ConfigError("--data", what, "add --checkpoint W, the run that was exported")


def _network(exported: Exported) -> DeepLabV3Plus:
    return build_model(exported.config.model)


def _engine(exported: Exported) -> Engine:
    return Engine(_network(exported), TABLE)


def _with_unused(params: dict[str, Any], model: DeepLabV3Plus) -> dict[str, Any]:
    """Adds zeros for the auxiliary head, which no file holds."""
    import jax

    from deeplab_jax.models import init_variables

    shapes = jax.eval_shape(lambda: init_variables(model, 0))["params"]
    head, classifier = shapes["aux_head"], shapes["aux_classifier"]
    folded = {"conv": head["conv"], "norm": {"bias": head["norm"]["bias"]}}
    unused = {"aux_head": folded, "aux_classifier": classifier}
    return params | jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), unused)


def _read_variables(exported: Exported, to_variables: ToVariables) -> Variables:
    from safetensors.numpy import load_file

    with _reading_weights(exported, "safetensors"):
        tensors = load_file(exported.model("safetensors"))
        dialect = exported.files["safetensors"]["dialect"]
        return to_variables(tensors, exported.config.model.depth, dialect)


@contextmanager
def _reading_weights(exported: Exported, kind: str) -> Iterator[None]:
    """Turns errors about a file's weights, of its reader's kinds, into CheckpointError."""
    try:
        yield
    except DeepLabError:
        raise
    except Exception as error:
        what = f"does not hold the weights of its network ({clip(describe_cause(error))})"
        raise CheckpointError(str(exported.model(kind)), what, AGAIN) from error


def _open_data(exported: Exported, root: str) -> Dataset:
    """Returns the validation split under `root`.

    Raises:
      DataError: it cannot be used; the fix names this verb's flag, not a field of the recipe.
    """
    config = apply_overrides(exported.config, [f"--config.data.root={root}"])
    try:
        return open_dataset(config.data, config.model.num_classes, config.data.val_split)
    except DataError as error:
        if "--config." not in error.fix:
            raise
        fix = "name the folder of the recipe's data: --data ROOT"
        raise DataError(error.where, error.what, fix) from error


def _compare(
    exported: Exported, run: runtime.Runtime, ours: _Ours, dataset: Dataset, only: Size | None
) -> tuple[dict[str, float], dict[str, Any]]:
    """Returns the largest differences over a data set, and the scores of both.

    With `only` images of another size (height, width) are left out.
    """
    config = exported.config
    ours.engine.plan(_sizes(exported, dataset))
    outputs: dict[str, np.ndarray] = {}

    def remember(images: np.ndarray) -> dict[str, np.ndarray]:
        outputs.clear()
        outputs.update(run(images))
        return outputs

    theirs = ExportedEngine(_network(exported), exported, remember)
    count = config.model.num_classes
    confusion = np.zeros((2, count, count), np.int64)
    largest: dict[str, float] = {}
    pixels = apart = left_out = 0
    with counting(len(dataset), "images compared") as done:
        for example in eval_examples(dataset, range(len(dataset)), ()):
            image, label = example.image, example.label
            size = label.shape[0], label.shape[1]
            done()
            if only is not None and size != only:
                left_out += 1
                continue
            item = Item(None, fitted(image, config.eval.resize_base), size)
            [(_, (labels, confidence))] = theirs.segment([Item(None, image, size)])
            [(_, (wanted, own))] = ours.engine.segment([item])
            got = {"labels": labels, "confidence": confidence}
            found = standalone.differences(got, {"labels": wanted, "confidence": own})
            if "logits" in outputs:
                logits = {"logits": outputs["logits"][0]}
                own_logits = {"logits": ours.engine.logits(item)}
                found["logits"] = standalone.differences(logits, own_logits)["logits"]
            for name, value in found.items():
                if name != "pixels":
                    # Of NumPy: the built-in `max` would drop a value that is NaN.
                    largest[name] = float(np.maximum(largest.get(name, 0.0), value))
            pixels, apart = pixels + label.size, apart + int((labels != wanted).sum())
            confusion += [_confusion(label, x, count) for x in (labels, wanted)]
    place = f"{len(dataset) - left_out} images of {dataset.name}/{dataset.split}"
    if only is not None and left_out:
        text = f"has another size than the StableHLO file, {only[0]} x {only[1]}"
        if not pixels:
            raise DataError("--data", f"every image {text}", "export as onnx, or with their --size")
        print(f"left out: {left_out} images, each of which {text}", flush=True)
    largest["pixels"] = apart / pixels
    scores = [metrics.mean_iou(matrix) for matrix in confusion]
    return largest, {
        "data": place, "mean_iou": scores[0], "mean_iou_ours": scores[1], "ours": ours.source,
        "num_pixels": pixels, "pixels_apart": apart, "left_out": left_out,
    }  # fmt: skip


def _confusion(truth: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    is_valid = truth < count
    index = truth[is_valid].astype(np.int64) * count + labels[is_valid]
    return np.bincount(index, minlength=count * count).reshape(count, count)


def _sizes(exported: Exported, dataset: Dataset) -> Iterator[tuple[int, int]]:
    for index in range(len(dataset)):
        try:
            size = read_size(dataset.source.names(index)[0])
        except DataError:
            continue  # not a file; or a bad one, which reading will report
        yield fitted_size(size, exported.config.eval.resize_base)
