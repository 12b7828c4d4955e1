"""The content of `evaluation.json`: scores of a data set, the software and the device."""

import platform
from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

import jax
import numpy as np

from deeplab_jax.evaluation import metrics
from deeplab_jax.utils import environment as environment_lib

_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "opencv-python-headless", "pillow")


class Ends(TypedDict):
    """Ends of an interval."""

    low: float | None
    high: float | None


class ScoreInterval(Ends):
    """`metrics.Interval` as JSON."""

    level: float
    method: str


class ImageScore(TypedDict):
    """An image's mean IoU over the classes in its truth or prediction."""

    id: str
    mean_iou: float | None


class Environment(TypedDict):
    """Software and device of an evaluation; null where unknown."""

    device: str | None
    platform: str | None
    commit: str | None
    packages: dict[str, str]


class Scores(TypedDict):
    """Scores of a data set: fractions in [0, 1], null where undefined; lists hold C classes.

    Means over classes leave undefined ones out. `num_classes_in_mean` says how many are in
    `mean_iou`; files that older versions wrote lack it.

    `iou_interval` has level and method of `mean_iou_interval`, `frequency` is each class's share of
    the true pixels, `worst_image` the image where most of a class's pixels are missed or wrongly
    predicted, `confusion` has rows of truth, and `images` come worst first.
    """

    mean_iou: float | None
    num_classes_in_mean: NotRequired[int]
    mean_iou_interval: ScoreInterval
    pixel_accuracy: float | None
    mean_accuracy: float | None
    mean_precision: float | None
    mean_f1: float | None
    frequency_weighted_iou: float | None
    best_constant_mean_iou: float | None
    class_names: list[str]
    iou: list[float | None]
    iou_interval: list[Ends]
    accuracy: list[float | None]
    precision: list[float | None]
    f1: list[float | None]
    frequency: list[float]
    worst_image: list[str | None]
    confusion: list[list[int]]
    images: list[ImageScore]


class Summary(Scores):
    """Scores with the number of images and the protocol in words."""

    num_images: int
    protocol: str


class Evaluation(Summary):
    """The content of `evaluation.json`; `deeplab_jax.report` refuses any other.

    `weights` is "ema" or "raw" where the step holds both.
    """

    checkpoint: str
    step: int
    weights: NotRequired[str]
    dataset: str
    split: str
    overrides: list[str]
    config: dict[str, Any]
    environment: Environment


def summarize(
    confusion: np.ndarray,
    per_image: np.ndarray,
    image_ids: Sequence[str],
    class_names: Sequence[str],
) -> Scores:
    """Returns all scores of a confusion matrix (C, C) and N images' areas, int64 (N, 3, C)."""
    total = metrics.areas_of(confusion)
    (low, high, level, method), ends = metrics.bootstrap_iou(per_image)
    iou, accuracy = metrics.iou(total), metrics.accuracy(total)
    precision, f1 = metrics.precision(total), metrics.f1(total)
    return {
        "mean_iou": _or_null(metrics.mean(iou)),
        "num_classes_in_mean": int(np.isfinite(iou).sum()),
        "mean_iou_interval": {
            "low": _or_null(low),
            "high": _or_null(high),
            "level": level,
            "method": method,
        },
        "pixel_accuracy": _or_null(metrics.pixel_accuracy(confusion)),
        "mean_accuracy": _or_null(metrics.mean(accuracy)),
        "mean_precision": _or_null(metrics.mean(precision)),
        "mean_f1": _or_null(metrics.mean(f1)),
        "frequency_weighted_iou": _or_null(metrics.frequency_weighted_iou(total)),
        "best_constant_mean_iou": _or_null(metrics.best_constant_mean_iou(confusion)),
        "class_names": list(class_names),
        "iou": [*map(_or_null, iou)],
        "iou_interval": [{"low": _or_null(low), "high": _or_null(high)} for low, high in ends],
        "accuracy": [*map(_or_null, accuracy)],
        "precision": [*map(_or_null, precision)],
        "f1": [*map(_or_null, f1)],
        "frequency": (total[1] / max(total[1].sum(), 1)).tolist(),
        "worst_image": _worst_image_of_each_class(per_image, image_ids, len(class_names)),
        "confusion": confusion.tolist(),
        "images": _images(per_image, image_ids),
    }


def _images(per_image: np.ndarray, image_ids: Sequence[str]) -> list[ImageScore]:
    scores = metrics.mean(metrics.iou(per_image))  # (N,)
    order = np.argsort(scores, kind="stable")  # NaN, of an image without a counted pixel, is last
    return [{"id": image_ids[i], "mean_iou": _or_null(scores[i])} for i in order]


def _worst_image_of_each_class(
    per_image: np.ndarray, image_ids: Sequence[str], num_classes: int
) -> list[str | None]:
    if not len(per_image):
        return [None] * num_classes
    wrong = per_image[:, 1] + per_image[:, 2] - 2 * per_image[:, 0]  # (N, C)
    worst = wrong.argmax(0)
    return [image_ids[i] if wrong[i, c] else None for c, i in enumerate(worst)]


def _or_null(value: float | np.ndarray) -> float | None:
    return float(value) if np.isfinite(value) else None


def environment() -> Environment:
    """Returns versions, the device, the platform, and the commit of the checkout if it is one."""
    device = jax.local_devices()[0]
    return {
        "packages": environment_lib.packages(_PACKAGES),
        "device": f"{len(jax.local_devices())} x {device.device_kind} ({device.platform})",
        "platform": platform.platform(),
        "commit": environment_lib.commit(),
    }
