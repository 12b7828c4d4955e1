"""Pictures for the page: images with truth and prediction, small enough to be embedded."""

import base64
import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from deeplab_jax.config import IGNORE_INDEX
from deeplab_jax.data import Dataset
from deeplab_jax.evaluation import metrics

NUMBER = 6  # of worst images, and of best ones
MAX_BYTES = 4_000_000  # of all pictures, as embedded
_SIDES = (640, 448, 320, 224, 128)  # longer side, pixels: the first with which all fit


class Sample(NamedTuple):
    """One image of the data set, whole.

    Attributes:
      name: its id.
      mean_iou: as `evaluation.json` has it; None where undefined.
      is_worst: one of the worst, not of the best.
      image: uint8 (H, W, 3) RGB.
      truth: uint8 (H, W), 255 is ignored.
      prediction: uint8 (H, W).
    """

    name: str
    mean_iou: float | None
    is_worst: bool
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray

    def is_as_evaluated(self) -> bool:
        """Tells whether this prediction scores what the evaluation says of the image."""
        counted = self.truth != IGNORE_INDEX
        both = [labels[counted] for labels in (self.truth, self.prediction)]
        hits = both[0][both[0] == both[1]]
        areas = np.stack([np.bincount(part, minlength=256) for part in (hits, *both)])
        score = metrics.mean(metrics.iou(areas))
        # As a count apart here and there is: other threads or devices round another way.
        return self.mean_iou is not None and abs(float(score) - self.mean_iou) < 0.01


class Picture(NamedTuple):
    """A sample as data URIs: JPEG, and grey PNGs of class indices."""

    sample: Sample
    image: str
    truth: str
    prediction: str

    @property
    def size(self) -> int:
        """Bytes as embedded."""
        return len(self.image) + len(self.truth) + len(self.prediction)


def draw_samples(
    result: Mapping[str, Any], dataset: Dataset, predict: Callable[[np.ndarray], np.ndarray]
) -> Iterator[Sample]:
    """Yields the worst images and then the best, none twice.

    Args:
      result: the scores, see `summary.summarize`.
      dataset: what was evaluated.
      predict: uint8 (H, W, 3) RGB -> uint8 (H, W) classes.

    Raises:
      DataError: a sample cannot be read, or the data set lacks it.
    """
    ranked = [image for image in result["images"] if image["mean_iou"] is not None]
    worst = ranked[:NUMBER]
    best = ranked[NUMBER:][-NUMBER:][::-1]
    index = {name: i for i, name in enumerate(dataset.ids)}
    for image in [*worst, *best]:
        if image["id"] not in index:
            continue
        pixels, truth = dataset.read(index[image["id"]])
        yield Sample(image["id"], image["mean_iou"], image in worst, pixels, truth, predict(pixels))


def embed(samples: list[Sample]) -> list[Picture]:
    """Returns all samples as data URIs, shrunk until they fit into `MAX_BYTES` together."""
    pictures: list[Picture] = []
    for side in _SIDES:
        pictures = [_embed(sample, side) for sample in samples]
        if sum(picture.size for picture in pictures) <= MAX_BYTES:
            break
    return pictures


def _embed(sample: Sample, side: int) -> Picture:
    height, width = sample.truth.shape
    scale = min(1.0, side / max(height, width))
    size = max(1, round(scale * width)), max(1, round(scale * height))
    image = cv2.resize(sample.image, size, interpolation=cv2.INTER_AREA)
    labels = [
        cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT)
        for labels in (sample.truth, sample.prediction)
    ]
    return Picture(sample, _uri(image, "JPEG"), *(_uri(part, "PNG") for part in labels))


def _uri(array: np.ndarray, kind: str) -> str:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, quality=80, optimize=True)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
