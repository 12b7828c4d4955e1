"""Calibration: whether confidence is the share of pixels that are right.

Expected calibration error (Naeini et al., AAAI 2015; Guo et al., ICML 2017): pixels are put into 15
bins of equal width by confidence, the probability of the predicted class. The error is the mean
over pixels of |share right - mean confidence| of their bin. Bin k holds confidences in
(k/15, (k+1)/15]. `bins` are int64 (15, 3), as in `inference.counting.ImageCounts`, summed over
images.
"""

from typing import NamedTuple

import numpy as np

from deeplab_jax.inference.counting import BINS, CONFIDENCE_STEPS


class Reliability(NamedTuple):
    """Each bin's values, float64 (BINS,); NaN in an empty bin.

    Attributes:
      share: of all pixels; 0 in an empty bin.
      confidence: mean confidence, a fraction.
      accuracy: share of the bin's pixels that are right.
    """

    share: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def reliability(bins: np.ndarray) -> Reliability:
    """Returns the values of a reliability diagram."""
    pixels, right, steps = bins.T
    empty = np.full(BINS, np.nan)
    confidence = np.divide(steps / CONFIDENCE_STEPS, pixels, out=empty.copy(), where=pixels > 0)
    accuracy = np.divide(right, pixels, out=empty, where=pixels > 0)
    return Reliability(pixels / max(pixels.sum(), 1), confidence, accuracy)


def expected_error(bins: np.ndarray) -> float:
    """Returns the expected calibration error, a fraction; NaN without a pixel."""
    if not bins[:, 0].any():
        return float("nan")
    share, confidence, accuracy = reliability(bins)
    return float(np.nansum(share * np.abs(accuracy - confidence)))
