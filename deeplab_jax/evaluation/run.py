"""Evaluation of a checkpoint on all hosts of a run: its scores as a table and as JSON."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from deeplab_jax.config import is_local, to_dict
from deeplab_jax.data import Dataset, open_dataset
from deeplab_jax.data.sources.given import GivenData, open_given
from deeplab_jax.distributed import hosts
from deeplab_jax.distributed.replicas import checksum
from deeplab_jax.errors import ConfigError
from deeplab_jax.evaluation import label_counts, metrics
from deeplab_jax.evaluation.evaluator import EvalResult, Evaluator, counting_images
from deeplab_jax.evaluation.summary import Evaluation, Summary, environment
from deeplab_jax.inference.protocol import read_protocol
from deeplab_jax.inference.segmenter import Segmenter, load
from deeplab_jax.utils import compile_cache
from deeplab_jax.utils.atomic import atomic_write
from deeplab_jax.utils.places import as_place, check_place

EVALUATION_FILE = "evaluation.json"  # in the checkpoint directory


def evaluate(
    checkpoint: str | os.PathLike,
    *,
    step: int | str = "latest",
    overrides: Sequence[str] = (),
    weights: str | None = None,
    val_data: GivenData | None = None,
) -> Evaluation:
    """Evaluates a checkpoint on the validation split of its configuration.

    As `deeplab evaluate` does, prints the scores and writes `evaluation.json` into the checkpoint's
    directory; writes no report.

    Args:
      checkpoint: work directory of a run, or the output of a converter.
      step: a number, "latest" or "best".
      overrides: changes to the checkpoint's configuration, such as "--config.eval.flip=true".
      weights: "ema" or "raw" of a run that averages its weights; its average by default.
      val_data: data set in place of the validation split; see `GivenData`.

    Returns:
      The content of `evaluation.json`; scores are fractions, None where undefined.

    Raises:
      DeepLabError: as `evaluate_checkpoint`.
    """
    return evaluate_checkpoint(checkpoint, step, overrides, weights=weights, val_data=val_data)[1]


def evaluate_checkpoint(
    path: str | os.PathLike,
    step: int | str = "latest",
    overrides: Sequence[str] = (),
    json_file: Path | None = None,
    weights: str | None = None,
    val_data: GivenData | None = None,
) -> tuple[Segmenter, Evaluation]:
    """Evaluates a checkpoint on the validation split of its configuration.

    Prints the scores; the first host writes them to a JSON file. Every host of the run calls this
    with the same arguments, but for overrides of fields that are local (`config.is_local`).

    Args:
      path: work directory of a run, or the output of a converter.
      step: a number, "latest" or "best".
      overrides: changes to the checkpoint's configuration, such as "--config.eval.flip=true".
      json_file: the JSON file; `evaluation.json` in `path` by default.
      weights: "ema" or "raw" of a run that averages its weights; its average by default.
      val_data: data set in place of the validation split.

    Returns:
      The evaluated network, whose engine has compiled what the data set needs, and the content of
      the JSON file.

    Raises:
      CheckpointError: there is no such checkpoint or step, or it does not fit.
      ConfigError: an override cannot be used, or hosts differ.
      DataError: the data cannot be used, or every pixel is ignored.
      ResourceError: `json_file` cannot be written, or another host is gone.
    """
    with hosts.watched(path):
        with hosts.agreement() as facts:
            facts |= hosts.software()
            facts["arguments"] = [text for text in overrides if not is_local(text)]
            if json_file and hosts.is_primary():
                check_place(json_file, "--json")
            path = as_place(path)
            segmenter = load(path, step, overrides, weights)
            facts["step"], facts["kind of weights"] = segmenter.step, segmenter.weights
            if hosts.are_multiple():
                with compile_cache.without_alarms():
                    facts["weights"] = hex(int(jax.jit(checksum)(segmenter.variables)))
            config = segmenter.config
            dataset = open_validation(segmenter, overrides, config.data.val_split, val_data)
            facts["data"] = dataset.fingerprint()
        pixels = label_counts.count_labels(dataset, path)
        label_counts.refuse_none(pixels, dataset, config.data)
        for line in label_counts.warnings(pixels, dataset, config.data, is_training=False):
            print(f"warning: {line}", flush=True)
        began = time.perf_counter()
        result = _evaluate(segmenter, dataset)
        seconds = time.perf_counter() - began
        text = _as_text(_content(segmenter, dataset, result, overrides))
        file = json_file or path / EVALUATION_FILE
        if hosts.is_primary():  # before anything is shown: a screen may fail
            _write(file, text)
        _show(segmenter, dataset, result, seconds)
        if hosts.is_primary():
            print(f"numbers: {file}")
    return segmenter, json.loads(text)  # with lists for tuples, as in the file


def open_validation(
    segmenter: Segmenter, overrides: Sequence[str], split: str, given: GivenData | None = None
) -> Dataset:
    """Returns a split of a checkpoint's data, or the caller's own data set that is `given`.

    Raises:
      ConfigError: the run had a caller's own data set, which is not given again, and the overrides
        name no other.
      DataError: the data cannot be used.
    """
    config, own = segmenter.config, segmenter.given.get("val_data")
    count = config.model.num_classes
    if given is not None:
        return open_given(given, "val_data", count, split)
    if own and not any(text.startswith("--config.data.") for text in overrides):
        what = f"was evaluated on `val_data` that a Python program gave ({own})"
        fix = (
            "call deeplab_jax.evaluate(..., val_data=...), or name a folder: --config.data.root=DIR"
        )
        raise ConfigError(str(segmenter.path), what, fix)
    return open_dataset(config.data, count, split)


def _evaluate(segmenter: Segmenter, dataset: Dataset) -> EvalResult:
    """Returns the counts; the segmenter keeps the compiled programs."""
    base, protocol = segmenter.config.eval.resize_base, read_protocol(segmenter.config.eval)
    evaluator = Evaluator(segmenter.model, dataset, base, protocol)
    with counting_images(dataset) as count:
        result = evaluator(segmenter.variables, on_image=count)
    segmenter.engine = evaluator.engine
    assert result is not None  # nothing asks to stop
    return result


def _show(segmenter: Segmenter, dataset: Dataset, result: EvalResult, seconds: float) -> None:
    print_table(result)
    scores = result.summary()
    print(f"mean IoU {metrics.mean_in_words(scores['iou'])}{_in_words(scores)}")
    if few := metrics.few_in_words(result.num_images):
        print(few)
    print(_further_in_words(scores))
    place = f"{result.num_images} images of {dataset.name}/{dataset.split}"
    kind = f", {segmenter.weights} weights" if segmenter.weights else ""
    print(f"step {segmenter.step}{kind}, {place}, {seconds:.1f} s")
    print(f"protocol: {result.protocol}")


def _in_words(scores: Summary) -> str:
    """Returns how sure the mean IoU is, and what one class everywhere scores."""
    interval, constant = scores["mean_iou_interval"], scores["best_constant_mean_iou"]
    parts = []
    if interval["low"] is not None and interval["high"] is not None:
        ends = f"{100 * interval['low']:.2f} to {100 * interval['high']:.2f}"
        parts.append(f"{100 * interval['level']:.0f} % interval {ends}")
    if constant is not None:
        parts.append(f"one class everywhere {100 * constant:.2f}")
    return f" ({'; '.join(parts)})" if parts else ""


def _further_in_words(scores: Summary) -> str:
    """Returns boundary IoU, calibration error and cross entropy in one line."""
    near = 100 * scores["boundary_ratio"]
    error, loss = scores["calibration"]["expected_calibration_error"], scores["loss"]
    values = [
        f"boundary IoU {metrics.mean_in_words(scores['boundary_iou_per_class'])}"
        f" (within {near:g} % of the diagonal)"
    ]
    values += [] if error is None else [f"expected calibration error {100 * error:.2f} %"]
    values += [] if loss is None else [f"cross entropy {loss:.4f}"]
    return ", ".join(values)


def _as_text(content: Evaluation) -> str:
    """Returns JSON with one line for each field, row of a matrix, and image."""
    lines = []
    for key, value in content.items():
        if isinstance(value, list) and value and isinstance(value[0], list | dict):
            text = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
        elif isinstance(value, dict):
            text = json.dumps(value, indent=1).replace("\n", "\n ")  # no string holds a line break
        else:
            text = json.dumps(value)
        lines.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _write(file: Path, text: str) -> None:
    """Writes a file whole or not at all; a link or device, such as /dev/stdout, in place."""
    if file.is_symlink() or (file.exists() and not file.is_file()):
        file.write_text(text)
        return
    with atomic_write(file) as stream:
        stream.write(text.encode())


def _content(
    segmenter: Segmenter, dataset: Dataset, result: EvalResult, overrides: Sequence[str]
) -> Evaluation:
    content: Evaluation = {
        "checkpoint": str(segmenter.path),
        "step": segmenter.step,
        "dataset": dataset.name,
        "split": dataset.split,
        **result.summary(),
        "overrides": list(overrides),
        "config": to_dict(segmenter.config),
        "environment": environment(),
    }
    if segmenter.weights:
        content["weights"] = segmenter.weights
    return content


def print_table(result: EvalResult) -> None:
    """Prints IoU and share of the truth per class, in percent, and the totals."""
    from rich.console import Console
    from rich.table import Table

    table = Table("class", "IoU %", "share of pixels %")
    for column in table.columns[1:]:
        column.justify = "right"
    truth = result.confusion.sum(1)
    shares = 100 * truth / max(truth.sum(), 1)
    iou = metrics.iou_per_class(result.confusion)
    for name, value, share in zip(result.class_names, iou, shares, strict=True):
        table.add_row(name, "-" if np.isnan(value) else f"{100 * value:.2f}", f"{share:.2f}")
    accuracy = metrics.pixel_accuracy(result.confusion)
    table.add_section()
    over = metrics.over_classes(np.isfinite(iou).sum(), len(iou))
    table.add_row(f"mean{over}", f"{100 * result.mean_iou:.2f}", "")
    table.add_row("pixel accuracy", f"{100 * accuracy:.2f}", "")
    Console().print(table)
