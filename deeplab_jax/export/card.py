"""The model card of an exported folder: everything known of the weights; the rest by name."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from deeplab_jax import __version__
from deeplab_jax.checkpoint import Info
from deeplab_jax.config import Config
from deeplab_jax.config.checks import as_text
from deeplab_jax.evaluation import metrics
from deeplab_jax.evaluation.summary import Evaluation
from deeplab_jax.export.stablehlo import WINDOW
from deeplab_jax.inference.exported import standalone
from deeplab_jax.inference.exported.folder import convert_command
from deeplab_jax.report import reading

# What the sites of the data sets say; a folder's owner is not known here.
_DATA_TERMS = {
    "voc": "PASCAL VOC 2012: its images are of flickr, whose terms of use apply",
    "ade20k": "ADE20K: its site allows research and education that are not commercial",
    "cityscapes": "Cityscapes: its site allows purposes that are not commercial",
}
# What a network with the weights of a safetensors file takes.
TENSOR = "float32 (batch, 3, height, width), RGB of 0 to 255, upright, (value - mean) / std"
_NOT_KNOWN = "not recorded with the weights. Whoever passes them on has to find it out"


class Facts(NamedTuple):
    """What a card tells.

    Attributes:
      name: last part of the checkpoint's path.
      info: description of the exported step.
      config: its configuration; places of files are left out.
      weights: "ema" or "raw" of a step that holds both, else "".
      kind: "labels", "logits", or "weights" where no file holds a network.
      protocol: the evaluation protocol in words.
      files: details of each model, as in `export.json`.
      date: of the export, YYYY-MM-DD.
      sample: what the sample's image is.
      evaluation: of the step and weights; None without one.
      class_names: C names.
      palette: uint8 (C, 3), RGB.
    """

    name: str
    info: Info
    config: Config
    weights: str
    kind: str
    protocol: str
    files: Mapping[str, Mapping[str, Any]]
    date: str
    sample: str
    evaluation: Evaluation | None
    class_names: Sequence[str]
    palette: np.ndarray


def write(facts: Facts) -> str:
    """Returns the card as Markdown."""
    parts = (_head, _use, _scores, _data, _recipe, _limits, _check, _licence)
    return "\n".join(line for part in parts for line in part(facts)) + "\n"


def _head(facts: Facts) -> Iterator[str]:
    model, of = facts.config.model, f", {facts.weights} weights" if facts.weights else ""
    yield f"# Model card: {facts.config.name}, step {facts.info.step}{of}"
    yield ""
    yield (
        f"DeepLabV3+ with ResNet-{model.depth} at output stride {model.output_stride}:"
        f" {model.num_classes} classes for every pixel. Exported from `{facts.name}` on"
        f" {facts.date} by deeplab_jax {__version__}."
    )


def _use(facts: Facts) -> Iterator[str]:
    base = facts.config.eval.resize_base
    yield from ("", "## Input and output", "")
    if facts.kind == "weights":
        yield "There is no network in this folder, only its weights; nothing here normalises an"
        yield "image or gives labels."
        yield from ("", *_tensors(facts, base))
        return
    yield "- Input `image`: uint8 (batch, height, width, 3), RGB, upright, 0 to 255. The file"
    yield "  normalises it; nothing is to be done before."
    if base:
        yield f"- Inside, the image is fitted into {max(base)} x {min(base)} pixels, long and short"
        yield "  side, with its aspect ratio kept, as OpenCV's bilinear resize does it."
    fitted = "fitted image" if base else "input"
    if facts.kind == "labels":
        yield "- Output `labels`: uint8 (batch, height, width), class ids of `labels.json`."
        yield "- Output `confidence`: float32 (batch, height, width), probability of that class."
    else:
        yield "- Output `logits`: float32 (batch, h, w, classes), h and w a quarter of the"
        yield f"  {fitted}, rounded up. For labels resize them bilinearly (half-pixel centres, no"
        yield "  antialiasing) straight to the image's own size, then take the largest."
    yield f"- Protocol: {facts.protocol}."
    if facts.config.model.dtype != "float32":
        yield f"- The recipe computes in {facts.config.model.dtype}, these files in float32."
    for kind, details in facts.files.items():
        yield f"- `{standalone.MODELS[kind]}`: {_describe(kind, details)}."
    if "safetensors" in facts.files:
        yield from ("", "With the weights in PyTorch:", "", *_tensors(facts, base))


def _tensors(facts: Facts, base: Sequence[int]) -> Iterator[str]:
    """Yields what a network of PyTorch with these weights takes and gives."""
    details, file = facts.files["safetensors"], standalone.MODELS["safetensors"]
    mean, std = (", ".join(f"{x:g}" for x in details[name]) for name in ("mean", "std"))
    rates = ", ".join(map(str, details["atrous_rates"]))
    grid = ", ".join(map(str, details["multi_grid"]))
    yield f"- `{file}`: {_describe('safetensors', details)}."
    yield f"- Network: output stride {details['output_stride']}, atrous rates {rates}, multi-grid"
    yield f"  {grid or 'none'}, none of which the weights show; a {facts.config.model.stem} stem."
    yield f"- Input: {details['input']}"
    yield f"  with mean {mean} and std {std} of R, G, B."
    if base:
        yield f"  Before that the image is fitted into {max(base)} x {min(base)} pixels, long and"
        yield "  short side, with its aspect ratio kept, by OpenCV's bilinear resize of bytes."
    yield "- Output: scores (batch, classes, h, w), h and w a quarter of the input, rounded up; for"
    yield "  labels resize them bilinearly (half-pixel centres, no antialiasing) to the image's own"
    yield "  size, and take the largest. `sample/logits.npy` holds (h, w, classes) of the sample."
    if facts.kind == "weights":
        yield f"- Protocol of the scores below: {facts.protocol}."
    classes = facts.class_names, facts.palette
    yield "- A checkpoint of deeplab_jax with the same results:"
    yield f"  `{convert_command(file, facts.config, *classes, 'weights/exported')}`"


def _describe(kind: str, details: Mapping[str, Any]) -> str:
    if kind == "onnx":
        return f"ONNX opset {details['opset']}, any batch, height and width"
    if kind == "stablehlo":
        height, width = details["size"]
        return (
            f"StableHLO for {', '.join(details['platforms'])}, any batch of {height} x {width}"
            f" pixels (height x width), written by jax {details['jax']} on {details['date']},"
            f" calling convention {details['calling_convention']}. {WINDOW}"
        )
    return f"weights alone, by {details['dialect']}'s names for PyTorch, norms not folded"


def _scores(facts: Facts) -> Iterator[str]:
    yield from ("", "## Scores", "")
    found = facts.evaluation
    if found is None:
        yield "Per-class IoU and interval: not evaluated. The checkpoint's directory held no"
        yield f"evaluation of step {facts.info.step}; `deeplab evaluate` writes one."
        score = (facts.info.metrics or {}).get("mean_iou")
        if score is not None:
            yield f"Mean IoU while it trained, on split `{facts.config.data.val_split}`:"
            yield f"{100 * score:.2f} %."
        return
    interval = found["mean_iou_interval"]
    yield (
        f"Mean IoU {_percent(found['mean_iou'])}{reading.over_classes(found)},"
        f" {_ends(interval)} ({100 * interval['level']:.0f} % interval, {interval['method']}), on"
        f" {found['num_images']} images of {found['dataset']}/{found['split']}."
    )
    if few := metrics.few_in_words(found["num_images"]):
        yield few
    yield f"Protocol: {found['protocol']}."
    base = found["config"]["eval"]["resize_base"]
    if found["protocol"] != facts.protocol or tuple(base) != tuple(facts.config.eval.resize_base):
        yield "That is not the protocol of these files: with theirs the score may differ."
    yield from ("", "| class | IoU | interval | share of pixels |", "| --- | --- | --- | --- |")
    columns = found["class_names"], found["iou"], found["iou_interval"], found["frequency"]
    for name, iou, ends, share in zip(*columns, strict=True):
        cells = (_cell(name), _percent(iou), _ends(ends), _percent(share))
        yield f"| {' | '.join(cells)} |"


def _data(facts: Facts) -> Iterator[str]:
    data, info = facts.config.data, facts.info
    yield from ("", "## Data", "")
    yield f"- Trained on split `{data.train_split}` of {_dataset(data.dataset)}:"
    yield f"  {info.data or 'number and names of the samples are not recorded'}."
    yield f"- Evaluated on split `{data.val_split}`."
    if info.given:
        given = ", ".join(f"{key} ({value})" for key, value in info.given.items())
        yield f"- Given by a Python program, and not recorded further: {given}."


def _dataset(name: str) -> str:
    return "a folder of its owner's" if name == "folder" else f"the data set {name}"


def _recipe(facts: Facts) -> Iterator[str]:
    recipe, changed = reading.departures(facts.config)
    train, init = facts.config.train, facts.config.init
    length = f"{train.steps} steps" if train.steps else f"{train.epochs} epochs"
    yield from ("", "## Recipe", "")
    yield f"`{facts.config.name}`: batch {train.batch_size}, {length} planned, step"
    yield f"{facts.info.step} exported. It starts from {_start(init)}."
    if facts.info.drawn:
        yield f"Drawn at random when the weights were converted: {facts.info.drawn}."
    if not changed:
        yield f"It is {recipe}, with nothing changed."
        return
    yield f"Compared with {recipe}:"
    yield from ("", "| field | there | here |", "| --- | --- | --- |")
    for key, there, here in changed:
        cells = (f"`{key}`", *(_cell(as_text(x)) or "(empty)" for x in (there, here)))
        yield f"| {' | '.join(cells)} |"


def _start(init: Any) -> str:
    if init.checkpoint:
        return f"the network `{init.checkpoint}`"
    if init.backbone and init.backbone != "none":
        return f"the backbone `{init.backbone}`"
    return "random weights"


def _limits(facts: Facts) -> Iterator[str]:
    data, found = facts.config.data, facts.evaluation
    yield from ("", "## Limits", "")
    yield "- Every pixel gets one of the classes, also where an image shows something else."
    height, width = data.crop_size
    yield f"- Trained on crops of {height} x {width} pixels; what is much larger or smaller in an"
    yield "  image than in the training images is not measured."
    error = found.get("calibration", {}).get("expected_calibration_error") if found else None
    measured = "not measured" if error is None else f"{100 * error:.2f} % on average"
    yield f"- Confidence departs from the share of right pixels: {measured}."
    if found is None:
        yield "- Which classes it finds badly is not measured."
    elif text := reading.reading_help(found):
        yield f"- {text}"
    yield "- Images of other cameras, places or weather than those above are not measured."


def _check(facts: Facts) -> Iterator[str]:
    yield from ("", "## Check", "")
    if facts.kind == "weights":
        yield "`python verify.py` compares every file with `SHA256SUMS`, and names, types and"
        yield "shapes of the tensors; it needs NumPy alone. `deeplab verify` also runs the network"
        yield f"with these weights on `sample/input.png`, {facts.sample}."
        return
    yield "`python verify.py` compares every file with `SHA256SUMS`, and runs each model on"
    yield f"`sample/input.png`, {facts.sample}. It needs NumPy and the runtime alone."


def _licence(facts: Facts) -> Iterator[str]:
    yield from ("", "## Licence", "")
    yield "- Licence of the code, `verify.py` included: Apache-2.0."
    terms = _DATA_TERMS.get(facts.config.data.dataset)
    own = f"{terms}. Whether they bind the weights is not said here" if terms else _NOT_KNOWN
    yield f"- Licence of the data: {own}."
    yield f"- Licence of the weights: {_NOT_KNOWN}."


def _percent(value: float | None) -> str:
    return "undefined" if value is None else f"{100 * value:.2f} %"


def _ends(interval: Mapping[str, Any]) -> str:
    if interval["low"] is None or interval["high"] is None:
        return "undefined"
    return f"{100 * interval['low']:.2f} to {100 * interval['high']:.2f} %"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")
