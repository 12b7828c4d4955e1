"""Boundary IoU (Cheng et al., CVPR 2021): IoU of the pixels near the boundaries of masks.

The boundary of a class's mask is what the published `mask_to_boundary` returns: the mask's pixels
within d pixels (the larger of rows and columns) of a pixel outside it, or of the image's edge.
d = dilation ratio x diagonal of the image, rounded, at least 1. Intersections and unions of a class
are summed over the data set before the ratio is taken, as for IoU. Pixels that the truth ignores
are in no mask: they are ignored in the prediction too, before boundaries are taken.
"""

import math

import cv2
import numpy as np

from deeplab_jax.config import IGNORE_INDEX

DILATION_RATIO = 0.02  # the published default
_RATIOS = {"cityscapes": 0.005}  # published for large images


def dilation_ratio(dataset: str) -> float:
    """Returns the published ratio for a data set, by the name of its layout."""
    return _RATIOS.get(dataset, DILATION_RATIO)


def boundary_areas(
    prediction: np.ndarray, truth: np.ndarray, num_classes: int, ratio: float = DILATION_RATIO
) -> np.ndarray:
    """Returns boundary pixels of each class in intersection, truth and prediction, int64 (3, C).

    Args:
      prediction: uint8 (H, W), a class of each pixel.
      truth: uint8 (H, W), a class or `IGNORE_INDEX`.
      num_classes: C.
      ratio: of dilation.
    """
    distance = max(1, round(ratio * math.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2)))
    prediction = np.where(truth == IGNORE_INDEX, np.uint8(IGNORE_INDEX), prediction)
    is_near = [_near_boundary(labels, distance) for labels in (truth, prediction)]
    is_common = is_near[0] & is_near[1] & (truth == prediction)
    chosen = truth[is_common], truth[is_near[0]], prediction[is_near[1]]
    counts = [np.bincount(labels, minlength=IGNORE_INDEX + 1)[:num_classes] for labels in chosen]
    return np.stack(counts).astype(np.int64)


def _near_boundary(labels: np.ndarray, distance: int) -> np.ndarray:
    """Tells of each pixel whether another label, or the edge, is within `distance`, bool (H, W).

    One pass serves all classes: a pixel is on its class's boundary if its neighbourhood holds two
    labels. Those next to another label come first; the others are `distance` - 1 from one of them.
    """
    ones = np.ones((3, 3), np.uint8)
    is_next = cv2.erode(labels, ones) != cv2.dilate(labels, ones)
    is_next[[0, -1]], is_next[:, [0, -1]] = True, True
    steps: np.ndarray = cv2.distanceTransform((~is_next).view(np.uint8), cv2.DIST_C, 3)
    return steps < distance
