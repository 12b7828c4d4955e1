"""Evaluation of a checkpoint: its data set, its numbers as a table and as JSON."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deeplab_jax.config import to_dict
from deeplab_jax.data import open_dataset
from deeplab_jax.distributed import hosts
from deeplab_jax.evaluation import metrics
from deeplab_jax.evaluation.evaluator import EvalResult, Evaluator
from deeplab_jax.evaluation.summary import environment
from deeplab_jax.inference.protocol import read_protocol
from deeplab_jax.inference.segmenter import Segmenter
from deeplab_jax.utils.progress import counting


def evaluate_checkpoint(
    segmenter: Segmenter, path: Path, overrides: Sequence[str] = ()
) -> EvalResult:
    """Evaluates on the validation split of the checkpoint's configuration and reports.

    Args:
      segmenter: from `deeplab_jax.load`.
      path: the JSON file that the numbers go to.
      overrides: with which it was loaded; `report` loads it by them again.

    Raises:
      DataError: the data cannot be used.
    """
    config = segmenter.config
    with hosts.sync_errors():
        dataset = open_dataset(config.data, config.model.num_classes, config.data.val_split)
    hosts.require_equal({"data": dataset.fingerprint()})
    start = time.perf_counter()
    protocol = read_protocol(config.eval)
    evaluator = Evaluator(segmenter.model, dataset, config.eval.resize_base, protocol)
    share = len(hosts.own_share(range(len(dataset))))
    with counting(share, "images evaluated") as count:
        result = evaluator(segmenter.variables, should_stop=lambda: bool(count()))
    segmenter.engine = evaluator.engine  # what comes after need not compile again
    assert result is not None  # nothing asks it to stop
    seconds = time.perf_counter() - start
    print_table(result)
    print(
        f"mean IoU {100 * result.mean_iou:.2f} %  step {segmenter.step}, "
        f"{result.num_images} images of {dataset.name}/{dataset.split}, {protocol}, {seconds:.1f} s"
    )
    header = {
        "checkpoint": str(segmenter.path),
        "step": segmenter.step,
        "dataset": dataset.name,
        "split": dataset.split,
    }
    origin = {
        "overrides": list(overrides),
        "config": to_dict(config),
        "environment": environment(),
    }
    if hosts.is_primary():
        path.write_text(json.dumps(header | result.summary() | origin, indent=1) + "\n")
        print(f"numbers: {path}")
    return result


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
    table.add_row("mean", f"{100 * result.mean_iou:.2f}", "")
    table.add_row("pixel accuracy", f"{100 * accuracy:.2f}", "")
    Console().print(table)
