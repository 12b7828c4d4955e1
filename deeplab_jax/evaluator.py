"""Evaluation: a data set's images to one confusion matrix, and what is read from it."""

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deeplab_jax import metrics
from deeplab_jax.api import Segmenter
from deeplab_jax.data import Dataset, eval_examples, open_dataset
from deeplab_jax.inference import PROTOCOL, make_count
from deeplab_jax.models import DeepLabV3Plus


@dataclass(frozen=True)
class EvalResult:
    """Counts over a data set.

    Attributes:
      confusion: int64 (C, C); row = truth, column = prediction.
      class_names: C names.
      num_images: N, how many were counted.
      image_ids: N ids, in the order of evaluation.
      per_image: int64 (N, 3, C): each image's pixels of intersection, truth and prediction, ignored
        ones left out. Their sums over N are the confusion matrix's diagonal, rows and columns.
    """

    confusion: np.ndarray
    class_names: tuple[str, ...]
    num_images: int
    image_ids: tuple[str, ...] = ()
    per_image: np.ndarray = field(default_factory=lambda: np.zeros((0, 3, 0), np.int64))

    @property
    def mean_iou(self) -> float:
        """Mean IoU over classes that occur, a fraction."""
        return metrics.mean_iou(self.confusion)

    def summary(self) -> dict[str, Any]:
        """Returns what `evaluation.json` holds; fractions in [0, 1], null where undefined."""
        iou = metrics.iou_per_class(self.confusion)
        return {
            "mean_iou": _or_none(self.mean_iou),
            "pixel_accuracy": _or_none(metrics.pixel_accuracy(self.confusion)),
            "best_constant_mean_iou": _or_none(metrics.best_constant_mean_iou(self.confusion)),
            "num_images": self.num_images,
            "protocol": PROTOCOL,
            "class_names": list(self.class_names),
            "iou": [_or_none(value) for value in iou],
            "confusion": self.confusion.tolist(),
        }


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


class Evaluator:
    """Evaluates weights on one data set; keep it, and each shape compiles once for each device."""

    def __init__(self, model: DeepLabV3Plus, dataset: Dataset, resize_base: tuple[int, ...]):
        """Opens nothing yet.

        Args:
          model: the network.
          dataset: images with labels.
          resize_base: (long side, short side) to fit images into; empty keeps their own size.
        """
        self._count = make_count(model)
        self._dataset = dataset
        self._resize_base = tuple(resize_base)

    def __call__(
        self,
        variables: Any,
        indices: Iterable[int] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> EvalResult | None:
        """Evaluates `variables` on this host's devices, image by image in turn.

        Args:
          variables: {"params", "batch_stats"}; arrays of any layout this host holds whole.
          indices: which images; all by default.
          should_stop: asked before each image.

        Returns:
          The counts, or None if `should_stop` said so.

        Raises:
          DataError: an image or label cannot be used.
        """
        devices = jax.local_devices()
        local = [jax.device_put(variables, device) for device in devices]
        counts: list[np.ndarray] = []
        ids: list[str] = []
        pending: deque[jax.Array] = deque()
        indices = range(len(self._dataset)) if indices is None else indices
        for example in eval_examples(self._dataset, indices, self._resize_base):
            if should_stop():
                return None
            turn = len(ids) % len(devices)
            pair = jax.device_put((example.image, example.label), devices[turn])
            pending.append(self._count(local[turn], *pair))
            ids.append(self._dataset.ids[example.index])
            if len(pending) > 2 * len(devices):  # two images in flight on each
                counts.append(np.asarray(pending.popleft()))
        counts += map(np.asarray, pending)
        return _sum_up(counts, self._dataset.class_names, ids)


def _sum_up(
    counts: Sequence[np.ndarray], class_names: tuple[str, ...], ids: Sequence[str]
) -> EvalResult:
    size = len(class_names)
    confusion = np.zeros((size, size), np.int64)
    per_image = np.zeros((len(counts), 3, size), np.int64)
    for index, matrix in enumerate(counts):
        confusion += matrix
        per_image[index] = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    return EvalResult(confusion, class_names, len(ids), tuple(ids), per_image)


def evaluate_checkpoint(segmenter: Segmenter, json_path: str | None = None) -> EvalResult:
    """Evaluates on the validation split of the checkpoint's configuration and reports.

    Args:
      segmenter: from `deeplab_jax.load`.
      json_path: where the numbers go; `evaluation.json` beside the checkpoint by default.

    Raises:
      DataError: the data cannot be used.
    """
    config = segmenter.config
    dataset = open_dataset(config.data, config.model.num_classes, config.data.val_split)
    start = time.perf_counter()
    evaluator = Evaluator(segmenter.model, dataset, config.eval.resize_base)
    result = evaluator(segmenter.variables)
    assert result is not None  # nothing asks it to stop
    seconds = time.perf_counter() - start
    print_table(result)
    print(
        f"mean IoU {100 * result.mean_iou:.2f} %  step {segmenter.step}, "
        f"{result.num_images} images of {dataset.name}/{dataset.split}, {PROTOCOL}, {seconds:.1f} s"
    )
    path = Path(json_path) if json_path else Path(segmenter.path) / "evaluation.json"
    header = {"checkpoint": str(segmenter.path), "step": segmenter.step, "split": dataset.split}
    path.write_text(json.dumps(header | result.summary(), indent=1) + "\n")
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
