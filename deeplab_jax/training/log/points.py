"""The points of a run's curves, and `metrics.csv`.

Names are the same wherever curves go: "train/loss", "val/mean_iou", "val/iou/CLASS".
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deeplab_jax.utils.atomic import atomic_write

TABLE = "metrics.csv"
_SCORES = ("mean_iou", "mean_iou_raw", "loss", "boundary_iou", "pixel_accuracy")


class Point(NamedTuple):
    """Values of a step: of a logged training step, or of an evaluation."""

    step: int
    is_evaluation: bool
    values: dict[str, float]


def points_of(log_path: Path, class_names: Sequence[str]) -> Iterator[Point]:
    """Yields the points that a `log.jsonl` holds; lines that cannot be read are left out."""
    text = log_path.read_text(errors="replace") if log_path.exists() else ""
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            event, step = entry.pop("event"), int(entry.pop("step"))
            if event in ("train", "loss"):
                yield Point(step, False, of_training(entry))
            elif event == "eval":
                yield Point(step, True, of_evaluation(entry, class_names))
        except (ValueError, KeyError, TypeError):
            continue  # such as a line that a kill cut short


def write_table(path: Path, points: Iterator[Point]) -> None:
    """Writes points as CSV: a row for each step, a column for each name, empty where unknown."""
    rows: dict[int, dict[str, float]] = {}
    columns: tuple[dict[str, None], dict[str, None]] = {}, {}  # of training, of evaluations
    for step, is_evaluation, values in points:
        rows.setdefault(step, {}).update(values)
        columns[is_evaluation].update(dict.fromkeys(values))
    text = io.StringIO()
    table = csv.DictWriter(text, ["step", *columns[0], *columns[1]], lineterminator="\n")
    table.writeheader()
    table.writerows({"step": step, **rows[step]} for step in sorted(rows))
    with atomic_write(path) as file:
        file.write(text.getvalue().encode("utf-8", "replace"))


def of_training(values: Mapping[str, Any]) -> dict[str, float]:
    """Returns the values of a training step by name."""
    return {f"train/{name}": value for name, value in values.items()}


def of_evaluation(scores: Mapping[str, Any], class_names: Sequence[str]) -> dict[str, float]:
    """Returns scores by name; undefined ones are left out."""
    found = {f"val/{name}": scores.get(name) for name in _SCORES}
    iou = zip(class_names, scores["iou"], strict=True)
    found |= {f"val/iou/{name}": value for name, value in iou}
    return {name: value for name, value in found.items() if value is not None}
