"""Transforms of a sample between its files and the batch: pure functions of NumPy arrays.

The order of steps and of random draws is sssegmentation's (resize, crop, flip, photometric, pad):
its legacy generator behind our `rng` reproduces its batches bit for bit. Only `rng.random()`,
`rng.integers(low, high)` and `rng.uniform(low, high)` are used. Images are uint8 (H, W, 3) RGB,
labels uint8 (H, W) with 255 = ignored, sizes (height, width). The device normalises.
`scripts/bench_input.py` measures the time of each step.
"""

import cv2
import numpy as np

from deeplab_jax.config import IGNORE_INDEX

Window = tuple[slice, slice]  # rows and columns, both ends given

_LEVELS = np.arange(256, dtype=np.uint8)
_CROP_TRIES = 10
_MAX_CLASS_SHARE = 0.75  # of the valid pixels of a crop


def fit_size(height: int, width: int, base: tuple[int, int]) -> tuple[int, int]:
    """Returns the size (height, width) of an image scaled to fit into `base`, aspect ratio kept.

    `base` is the long and the short side, in either order, for images of both orientations.
    """
    scale = min(max(base) / max(height, width), min(base) / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the image at `size`: bilinear, half-pixel centres, no antialiasing on shrinking."""
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def resize_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the label at `size`: pixel i takes source pixel floor(i * (1 / (out / in)))."""
    return cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST)


def resize_window(image: np.ndarray, size: tuple[int, int], window: Window) -> np.ndarray:
    """Returns `resize_image(image, size)[window]`, bit for bit, from less of the image.

    Pixels below and right of the window are not computed: OpenCV's sample positions depend on the
    factor and the distance from the top left corner alone. Pixels above and left are computed:
    with another corner roundings would differ.
    """
    factors = [out / of for out, of in zip(size, image.shape, strict=False)]
    # Up to two pixels past the last sample: interpolation reads a neighbour.
    ends = [int(w.stop / factor) + 2 for w, factor in zip(window, factors, strict=True)]
    part = image[: ends[0], : ends[1]]
    shape = part.shape[:2]
    if all(round(n * factor) == n for n, factor in zip(shape, factors, strict=True)):
        return resize_image(image, size)[window]  # OpenCV copies an image that keeps its size
    out = cv2.resize(part, None, fx=factors[1], fy=factors[0], interpolation=cv2.INTER_LINEAR)
    return out[window]


def random_size(
    shape: tuple[int, ...],
    rng: np.random.Generator,
    base: tuple[int, int],
    scale_range: tuple[float, float],
) -> tuple[int, int]:
    """Returns the size that fits `shape` into `base` times a uniform draw from `scale_range`."""
    low, high = scale_range
    scale = rng.random() * (high - low) + low
    return fit_size(shape[0], shape[1], (int(base[0] * scale), int(base[1] * scale)))


def random_window(
    label: np.ndarray,
    rng: np.random.Generator,
    crop_size: tuple[int, int],
    max_share: float = _MAX_CLASS_SHARE,
) -> Window:
    """Returns a window of at most `crop_size` in which no class dominates, if ten tries find one.

    A try is accepted if it holds two classes or more and none covers `max_share` of its valid
    pixels. Without one the tenth is accepted; if it has no valid pixel, the window is the whole
    label.
    """
    height, width = label.shape
    h, w = min(crop_size[0], height), min(crop_size[1], width)
    for _ in range(_CROP_TRIES):
        top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
        window = slice(top, top + h), slice(left, left + w)
        counts = cv2.calcHist([label[window]], [0], None, [256], [0, 256]).ravel()  # no copy
        counts = counts[:IGNORE_INDEX].astype(np.int64)  # faster than bincount
        valid = counts.sum()
        if np.count_nonzero(counts) > 1 and counts.max() / valid < max_share:
            break
    return window if valid else (slice(0, height), slice(0, width))


def random_flip(
    image: np.ndarray, label: np.ndarray, rng: np.random.Generator, chance: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Returns both mirrored left-right with that chance, else neither."""
    if rng.random() > chance:
        return image, label
    return cv2.flip(image, 1), cv2.flip(label, 1)


def photometric_distortion(
    image: np.ndarray, rng: np.random.Generator, brightness: float = 32, contrast: float = 0.5,
    saturation: float = 0.5, hue: int = 18,
) -> np.ndarray:  # fmt: skip
    """Returns the image with brightness, contrast, saturation and hue each changed by a coin.

    The changes are uniform: brightness by up to `brightness` levels, contrast and saturation by a
    factor 1 - x to 1 + x, hue, of 180, by -hue to hue - 1; hue 0 stays. A further coin decides
    whether contrast comes second or last.
    """
    levels = _LEVELS  # consecutive changes compose to one look-up table
    if rng.integers(0, 2):
        levels = adjust_brightness(levels, rng.uniform(-brightness, brightness))
    is_contrast_early = rng.integers(0, 2)
    if is_contrast_early and rng.integers(0, 2):
        levels = adjust_contrast(levels, rng.uniform(1 - contrast, 1 + contrast))
    if rng.integers(0, 2):
        factor = rng.uniform(1 - saturation, 1 + saturation)
        image, levels = adjust_saturation(_look_up(image, levels), factor), _LEVELS
    if rng.integers(0, 2) and hue:
        image = adjust_hue(_look_up(image, levels), int(rng.integers(-hue, hue)))
        levels = _LEVELS
    if not is_contrast_early and rng.integers(0, 2):
        levels = adjust_contrast(levels, rng.uniform(1 - contrast, 1 + contrast))
    return _look_up(image, levels)


def adjust_brightness(image: np.ndarray, delta: float) -> np.ndarray:
    """Returns image + delta, clipped to 0..255 and cut to whole numbers."""
    return _look_up(image, _linear_table(1.0, delta))


def adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Returns image * factor, clipped to 0..255 and cut to whole numbers."""
    return _look_up(image, _linear_table(factor, 0.0))


def adjust_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Returns the image with its HSV saturation multiplied, clipped and cut."""
    return _map_hsv(image, 1, _linear_table(factor, 0.0))


def adjust_hue(image: np.ndarray, shift: int) -> np.ndarray:
    """Returns the image with its hue (0..179) turned by -shift.

    The sign is the reference's: it hands BGR arrays to an RGB conversion.
    """
    return _map_hsv(image, 0, ((np.arange(256) + shift) % 180).astype(np.uint8))


def _linear_table(factor: float, delta: float) -> np.ndarray:
    return np.clip(np.arange(256, dtype=np.float32) * factor + delta, 0, 255).astype(np.uint8)


def _look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    return image if table is _LEVELS else cv2.LUT(image, table)


def _map_hsv(image: np.ndarray, channel: int, table: np.ndarray) -> np.ndarray:
    """Maps one channel of the image in OpenCV's 8 bit HSV by `table`."""
    # RGB handed over as BGR gives the same bits as the reference's BGR handed over as RGB.
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, channel), table), hsv, channel)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)


def place(
    image: np.ndarray,
    label: np.ndarray,
    crop_size: tuple[int, int],
    out: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres image and label in `crop_size`, padding what is smaller and cutting what is larger.

    The reference swaps height and width of the target if the image's orientation opposes it.
    Batches have one shape here, so nothing is swapped; a crop fits either way, its padding moves.
    Image and label are written to `out`, such as the rows of a batch, or to new arrays.

    Returns:
      The image, uint8 (h, w, 3), padded with 0; the label, uint8 (h, w), padded with 255; and the
      box of the image in it, int32 (top, left, bottom, right), the last two exclusive.
    """
    (top, bottom, rows), (left, right, columns) = map(_centre, label.shape, crop_size)
    out = out or (np.empty((*crop_size, 3), np.uint8), np.empty(crop_size, np.uint8))
    out_image, out_label = out
    if (bottom - top, right - left) != crop_size:
        out_image.fill(0)
        out_label.fill(IGNORE_INDEX)
    out_image[top:bottom, left:right] = image[rows, columns]
    out_label[top:bottom, left:right] = label[rows, columns]
    return out_image, out_label, np.array((top, left, bottom, right), np.int32)


def _centre(size: int, target: int) -> tuple[int, int, slice]:
    """Returns the start and end of an axis in the target, and the part of the axis used."""
    start = (target - size) // 2  # negative: the axis is cut
    first = max(0, -start)
    used = min(size, target)
    return max(0, start), max(0, start) + used, slice(first, first + used)


def train_transform(
    image: np.ndarray, label: np.ndarray, rng: np.random.Generator, *, crop_size: tuple[int, int],
    resize_base: tuple[int, int], scale_range: tuple[float, float],
    out: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Returns one augmented training sample: image, label and box, as `place` does."""
    size = random_size(label.shape, rng, resize_base, scale_range)
    label = resize_label(label, size)
    window = random_window(label, rng, crop_size)
    image, label = random_flip(resize_window(image, size, window), label[window], rng)
    return place(photometric_distortion(image, rng), label, crop_size, out)
