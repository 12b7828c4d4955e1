"""The content of `evaluation.json`: scores of a data set, the software and the device."""

import platform
from collections.abc import Callable, Sequence
from typing import Any, NewType, NotRequired, TypedDict

import jax
import numpy as np

from deeplab_jax.evaluation import calibration, metrics
from deeplab_jax.inference.counting import BINS
from deeplab_jax.utils import environment as environment_lib

_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "opencv-python-headless", "pillow")


Amount = NewType("Amount", float)  # from 0, without an upper end


class Ends(TypedDict):
    """Ends of an interval."""

    low: float | None
    high: float | None


class ScoreInterval(Ends):
    """`metrics.Interval` as JSON."""

    level: float
    method: str


class ImageScore(TypedDict):
    """An image's mean IoU over the classes in its truth or prediction, and these classes' pixels.

    `areas` has the class's number as key, and its pixels in intersection, truth and prediction.
    """

    id: str
    mean_iou: float | None
    areas: NotRequired[dict[str, list[int]]]


class MeanScores(TypedDict):
    """Means over classes; `recall` is the mean of accuracy."""

    iou: float | None
    precision: float | None
    recall: float | None
    f1: float | None


class Means(TypedDict):
    """Means over classes: each class alike, and weighted by true pixels (`weighted_mean`)."""

    macro: MeanScores
    weighted: MeanScores


class ConfidenceBin(TypedDict):
    """Pixels whose confidence is in (low, high]."""

    low: float
    high: float
    pixels: int
    confidence: float | None
    accuracy: float | None


class Calibration(TypedDict):
    """`evaluation.calibration` as JSON."""

    expected_calibration_error: float | None
    bins: list[ConfidenceBin]


class Environment(TypedDict):
    """Software and device of an evaluation; null where unknown."""

    device: str | None
    platform: str | None
    commit: str | None
    packages: dict[str, str]


class Scores(TypedDict):
    """Scores of a data set: fractions in [0, 1], null where undefined; lists hold C classes.

    Means over classes leave undefined ones out. `num_classes_in_mean` says how many are in
    `mean_iou`. Files that older versions wrote lack it, the areas of images, and what is
    `NotRequired` below.

    `iou_interval` has level and method of `mean_iou_interval`, `frequency` is each class's share of
    the true pixels, `worst_image` the image where most of a class's pixels are missed or wrongly
    predicted, `confusion` has rows of truth, and `images` come worst first. `loss` is the mean over
    images of the mean cross entropy over an image's pixels, in nats, of the protocol's scores at
    the mask's size. `boundary_iou` is the mean of `boundary_iou_per_class`.
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
    means: NotRequired[Means]


class Further(TypedDict):
    """Scores that the confusion matrix does not hold."""

    loss: NotRequired[Amount | None]
    boundary_iou: NotRequired[float | None]
    boundary_ratio: NotRequired[float]
    boundary_iou_per_class: NotRequired[list[float | None]]
    calibration: NotRequired[Calibration]


class Summary(Scores, Further):
    """All scores, with the number of images and the protocol in words."""

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
        "frequency_weighted_iou": _or_null(metrics.weighted_mean(iou, total)),
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
        "means": {
            "macro": _means(metrics.mean, iou, precision, accuracy, f1),
            "weighted": _means(
                lambda values: metrics.weighted_mean(values, total), iou, precision, accuracy, f1
            ),
        },
    }


def summarize_further(
    loss: float, boundary: np.ndarray, boundary_ratio: float, bins: np.ndarray
) -> Further:
    """Returns the scores of a loss, areas (3, C) near boundaries, and pixels by confidence."""
    iou, values = metrics.iou(boundary), calibration.reliability(bins)
    each = zip(bins[:, 0], values.confidence, values.accuracy, strict=True)
    return {
        "loss": Amount(loss) if np.isfinite(loss) else None,
        "boundary_iou": _or_null(metrics.mean(iou)),
        "boundary_ratio": boundary_ratio,
        "boundary_iou_per_class": [*map(_or_null, iou)],
        "calibration": {
            "expected_calibration_error": _or_null(calibration.expected_error(bins)),
            "bins": [
                {
                    "low": k / BINS,
                    "high": (k + 1) / BINS,
                    "pixels": int(pixels),
                    "confidence": _or_null(confidence),
                    "accuracy": _or_null(accuracy),
                }
                for k, (pixels, confidence, accuracy) in enumerate(each)
            ],
        },
    }


def _means(mean: Callable[[np.ndarray], np.ndarray], *values: np.ndarray) -> MeanScores:
    iou, precision, recall, f1 = (_or_null(mean(value)) for value in values)
    return {"iou": iou, "precision": precision, "recall": recall, "f1": f1}


def _images(per_image: np.ndarray, image_ids: Sequence[str]) -> list[ImageScore]:
    scores = metrics.mean(metrics.iou(per_image))  # (N,)
    order = np.argsort(scores, kind="stable")  # NaN, of an image without a counted pixel, is last
    return [
        {"id": image_ids[i], "mean_iou": _or_null(scores[i]), "areas": _areas(per_image[i])}
        for i in order
    ]


def _areas(areas: np.ndarray) -> dict[str, list[int]]:
    return {str(c): areas[:, c].tolist() for c in np.flatnonzero(areas[1:].any(0))}


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


def read_areas(images: Sequence[ImageScore], num_classes: int) -> np.ndarray:
    """Returns the areas of N images, int64 (N, 3, C).

    Raises:
      ValueError: a key is no class, or a value not three numbers.
    """
    areas = np.zeros((len(images), 3, num_classes), np.int64)
    classes = {str(c): c for c in range(num_classes)}
    for image, own in zip(images, areas, strict=True):
        for key, counts in image["areas"].items():
            if key not in classes or len(counts) != 3:
                raise ValueError(f"`areas` has {key}: {counts}")
            own[:, classes[key]] = counts
    return areas


def environment() -> Environment:
    """Returns versions, the device, the platform, and the commit of the checkout if it is one."""
    device = jax.local_devices()[0]
    return {
        "packages": environment_lib.packages(_PACKAGES),
        "device": f"{len(jax.local_devices())} x {device.device_kind} ({device.platform})",
        "platform": platform.platform(),
        "commit": environment_lib.commit(),
    }
