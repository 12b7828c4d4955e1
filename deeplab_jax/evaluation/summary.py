"""What `evaluation.json` holds: every score of a data set's counts, and what computed them."""

import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deeplab_jax import __version__
from deeplab_jax.evaluation import metrics

_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "opencv-python-headless", "pillow")


def summarize(
    confusion: np.ndarray,
    per_image: np.ndarray,
    image_ids: Sequence[str],
    class_names: Sequence[str],
) -> dict[str, Any]:
    """Returns the scores as JSON: fractions in [0, 1], null where undefined.

    Args:
      confusion: int64 (C, C); row = truth, column = prediction.
      per_image: int64 (N, 3, C), areas (see `metrics`) of each image.
      image_ids: N names.
      class_names: C names.
    """
    total = metrics.areas_of(confusion)
    interval = metrics.bootstrap_mean_iou(per_image)
    per_class = {
        "iou": metrics.iou(total),
        "accuracy": metrics.accuracy(total),
        "precision": metrics.precision(total),
        "f1": metrics.f1(total),
    }
    frequency = total[1] / max(total[1].sum(), 1)
    return {
        "mean_iou": _plain(metrics.mean(per_class["iou"])),
        "mean_iou_interval": {name: _plain(value) for name, value in interval._asdict().items()},
        "pixel_accuracy": _plain(metrics.pixel_accuracy(confusion)),
        **{f"mean_{name}": _plain(metrics.mean(per_class[name])) for name in list(per_class)[1:]},
        "frequency_weighted_iou": _plain(metrics.frequency_weighted_iou(total)),
        "best_constant_mean_iou": _plain(metrics.best_constant_mean_iou(confusion)),
        "class_names": list(class_names),
        **{name: _plain(values) for name, values in per_class.items()},
        "frequency": _plain(frequency),
        "worst_image": _worst_image_of_each_class(per_image, image_ids, len(class_names)),
        "confusion": confusion.tolist(),
        "images": _images(per_image, image_ids),
    }


def _images(per_image: np.ndarray, image_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Returns every image's mean IoU over the classes in its truth or prediction, worst first."""
    scores = metrics.mean(metrics.iou(per_image))  # (N,)
    order = np.argsort(scores, kind="stable")  # NaN, of an image without a counted pixel, is last
    return [{"id": image_ids[i], "mean_iou": _plain(scores[i])} for i in order]


def _worst_image_of_each_class(
    per_image: np.ndarray, image_ids: Sequence[str], num_classes: int
) -> list[str | None]:
    """Returns where most of a class's pixels are missed or wrongly said; None if nowhere."""
    if not len(per_image):
        return [None] * num_classes
    wrong = per_image[:, 1] + per_image[:, 2] - 2 * per_image[:, 0]  # (N, C)
    worst = wrong.argmax(0)
    return [image_ids[i] if wrong[i, c] else None for c, i in enumerate(worst)]


def _plain(value: Any) -> Any:
    """Returns numbers as JSON has them: NaN becomes None."""
    if isinstance(value, str):
        return value
    array = np.asarray(value, np.float64)
    return np.where(np.isfinite(array), array.astype(object), np.array(None)).tolist()


def environment() -> dict[str, Any]:
    """Returns versions, the device, the platform, and the commit of the checkout if it is one."""
    packages = {"python": platform.python_version(), "deeplab_jax": __version__}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:  # such as OpenCV under another name
            continue
    device = jax.local_devices()[0]
    return {
        "packages": packages,
        "device": f"{len(jax.local_devices())} x {device.device_kind} ({device.platform})",
        "platform": platform.platform(),
        "commit": _commit(),
    }


def _commit() -> str | None:
    """Returns the commit that this code is from, "-dirty" if changed; None where unknown."""
    file = Path(__file__)
    describe = ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    # The first asks whether the repository is ours, not one around an installed package.
    for arguments in (("ls-files", "--error-unmatch", file.name), describe):
        try:
            got = subprocess.run(
                ["git", *arguments], cwd=file.parent, capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        if got.returncode:
            return None
    return got.stdout.strip() or None
