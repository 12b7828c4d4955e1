"""Pictures for the page: the worst and best images with truth and prediction, as data URIs."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from deeplab_jax.config import IGNORE_INDEX
from deeplab_jax.data import Dataset
from deeplab_jax.evaluation import metrics
from deeplab_jax.evaluation.summary import Evaluation
from deeplab_jax.report.html import data_uri

NUMBER = 6  # worst images, and as many best ones
MAX_BYTES = 4_000_000  # embedded size of all pictures
_SIDES = (640, 448, 320, 224, 128)  # longer side, pixels: the first with which all fit


class ScoredImage(NamedTuple):
    """One evaluated image at full size.

    Attributes:
      name: the image's id.
      mean_iou: the score in `evaluation.json`.
      is_worst: whether it is one of the worst images, not of the best.
      image: uint8 (H, W, 3) RGB.
      truth: uint8 (H, W), 255 is ignored.
      prediction: uint8 (H, W).
    """

    name: str
    mean_iou: float
    is_worst: bool
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray

    def is_as_evaluated(self) -> bool:
        """Tells whether the mean IoU of this prediction is within 0.01 of the evaluation's."""
        counted = self.truth != IGNORE_INDEX
        both = [labels[counted] for labels in (self.truth, self.prediction)]
        hits = both[0][both[0] == both[1]]
        areas = np.stack([np.bincount(part, minlength=256) for part in (hits, *both)])
        score = metrics.mean(metrics.iou(areas))
        # Other numbers of threads or devices change the rounding, and thereby some pixels.
        return abs(float(score) - self.mean_iou) < 0.01


class Picture(NamedTuple):
    """An image as data URIs: JPEG, and grey PNGs of class indices."""

    scored: ScoredImage
    image: str
    truth: str
    prediction: str

    @property
    def size(self) -> int:
        """Embedded size in bytes."""
        return len(self.image) + len(self.truth) + len(self.prediction)


def worst_and_best(
    evaluation: Evaluation, dataset: Dataset, predict: Callable[[np.ndarray], np.ndarray]
) -> Iterator[ScoredImage]:
    """Yields the worst images and then the best, none twice.

    Images without a score, and images that the data set lacks, are left out. `predict` maps uint8
    (H, W, 3) RGB to classes, uint8 (H, W).

    Raises:
      DataError: an image cannot be read.
    """
    ranked = [(x["id"], x["mean_iou"]) for x in evaluation["images"] if x["mean_iou"] is not None]
    worst, best = ranked[:NUMBER], ranked[NUMBER:][-NUMBER:][::-1]
    index = {name: i for i, name in enumerate(dataset.ids)}
    for number, (name, score) in enumerate([*worst, *best]):
        if name in index:
            image, truth = dataset.read(index[name])
            yield ScoredImage(name, score, number < len(worst), image, truth, predict(image))


def embed(images: Sequence[ScoredImage]) -> list[Picture]:
    """Returns all images as data URIs, shrunk until together they fit into `MAX_BYTES`."""
    for side in _SIDES:
        pictures = [_embed(image, side) for image in images]
        if sum(picture.size for picture in pictures) <= MAX_BYTES:
            break
    return pictures


def _embed(scored: ScoredImage, side: int) -> Picture:
    height, width = scored.truth.shape
    scale = min(1.0, side / max(height, width))
    size = max(1, round(scale * width)), max(1, round(scale * height))
    image = cv2.resize(scored.image, size, interpolation=cv2.INTER_AREA)
    labels = [
        cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT)
        for labels in (scored.truth, scored.prediction)
    ]
    photo = data_uri(Image.fromarray(image), "JPEG")
    return Picture(scored, photo, *(data_uri(Image.fromarray(part), "PNG") for part in labels))
