"""The named transforms that the reference does not have, as pure functions of NumPy arrays.

An image is uint8 (H, W, 3) RGB, a label uint8 (H, W) with 255 = ignored. What a transform returns
is new, or is the argument itself; no argument is written to. A uniform number `rng.random()` above
`chance` leaves the sample as it is. The values' ranges stand in `deeplab_jax.config.transforms`.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from deeplab_jax.config import IGNORE_INDEX

Sample = tuple[np.ndarray, np.ndarray]  # image and label

MEAN_COLOR = (124, 116, 104)  # of ImageNet, RGB: about 0 once the device has normalised it
_BEST_QUALITY = 95
_SMALLEST_SHARE = 0.02  # of the area that `erase` fills
_ASPECTS = (0.3, 1 / 0.3)  # of its rectangle: Zhong et al., "Random Erasing" (AAAI 2020)


def vertical_flip(
    image: np.ndarray, label: np.ndarray, rng: np.random.Generator, *, chance: float
) -> Sample:
    """Returns both mirrored top to bottom, or neither."""
    if rng.random() > chance:
        return image, label
    return cv2.flip(image, 0), cv2.flip(label, 0)


def rotate(
    image: np.ndarray, label: np.ndarray, rng: np.random.Generator, *, degrees: float, chance: float
) -> Sample:
    """Returns both turned about their centre by a uniform angle of -degrees to degrees.

    The size stays. Where the turned picture ends, the image has the mean colour and the label 255.
    """
    if rng.random() > chance:
        return image, label
    height, width = label.shape
    centre = (width - 1) / 2, (height - 1) / 2
    turn = cv2.getRotationMatrix2D(centre, rng.uniform(-degrees, degrees), 1.0)
    image = cv2.warpAffine(
        image, turn, (width, height), flags=cv2.INTER_LINEAR, borderValue=MEAN_COLOR
    )
    label = cv2.warpAffine(
        label, turn, (width, height), flags=cv2.INTER_NEAREST, borderValue=IGNORE_INDEX
    )
    return image, label


def blur(
    image: np.ndarray, label: np.ndarray, rng: np.random.Generator, *, sigma: float, chance: float
) -> Sample:
    """Returns the image under a Gaussian with a uniform standard deviation of 0 to `sigma`."""
    if rng.random() > chance:
        return image, label
    deviation = rng.uniform(0, sigma)
    return (cv2.GaussianBlur(image, (0, 0), deviation) if deviation else image), label


def jpeg(
    image: np.ndarray, label: np.ndarray, rng: np.random.Generator, *, quality: int, chance: float
) -> Sample:
    """Returns the image after JPEG of a quality drawn from `quality` to 95."""
    if rng.random() > chance:
        return image, label
    options = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(quality, _BEST_QUALITY + 1))]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB), label


def erase(
    image: np.ndarray, label: np.ndarray, rng: np.random.Generator, *, max_share: float,
    void: bool, chance: float,
) -> Sample:  # fmt: skip
    """Returns both with a rectangle of the image in the mean colour; with `void` ignored, too.

    Its share of the area is uniform between 2 % and `max_share`, its aspect ratio log-uniform
    between 0.3 and 1 / 0.3. What would be larger than the picture is cut to it.
    """
    if rng.random() > chance:
        return image, label
    height, width = label.shape
    low = min(_SMALLEST_SHARE, max_share)
    area = rng.uniform(low, max_share) * height * width
    aspect = np.exp(rng.uniform(*np.log(_ASPECTS)))
    h, w = (max(1, round(float(side))) for side in (np.sqrt(area * aspect), np.sqrt(area / aspect)))
    h, w = min(h, height), min(w, width)
    top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
    image = image.copy()
    image[top : top + h, left : left + w] = MEAN_COLOR
    if void:
        label = label.copy()
        label[top : top + h, left : left + w] = IGNORE_INDEX
    return image, label


def paste(
    sample: Sample, other: Sample, drawn: int, classes: Sequence[int], rng: np.random.Generator
) -> Sample:
    """Returns a sample under the pixels of `classes` of another.

    The other sample is moved as a whole, so that a uniform one of its pixels of class `drawn` falls
    on a uniform place of the sample; what lies outside is cut. Without such a pixel nothing changes
    and no random number is drawn. After Ghiasi et al., "Simple Copy-Paste" (CVPR 2021): hard edges.
    """
    image, label = sample
    rows, columns = np.nonzero(other[1] == drawn)
    if not rows.size:
        return sample
    pixel = int(rng.integers(0, rows.size))
    starts = zip((rows[pixel], columns[pixel]), label.shape, strict=True)
    shifts = [int(rng.integers(0, size)) - int(start) for start, size in starts]
    here, there = [], []
    for shift, size, length in zip(shifts, label.shape, other[1].shape, strict=True):
        here.append(slice(max(0, shift), min(size, length + shift)))
        there.append(slice(max(0, -shift), min(length, size - shift)))
    image, label = image.copy(), label.copy()
    part = other[1][tuple(there)]
    is_pasted = np.isin(part, np.array(classes, np.uint8))
    label[tuple(here)][is_pasted] = part[is_pasted]
    image[tuple(here)][is_pasted] = other[0][tuple(there)][is_pasted]
    return image, label
