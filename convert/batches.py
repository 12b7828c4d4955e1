"""Reads and checks the batches of a replay, an .npz file."""

import numpy as np

from deeplab_jax.config import IGNORE_INDEX
from deeplab_jax.errors import DataError


def read_batches(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns a file's images, float32 (S, B, H, W, 3), and labels, integers (S, B, H, W)."""
    wanted = "save it with np.savez(..., images=..., labels=...)"
    try:
        with np.load(path, allow_pickle=False) as archive:
            images, labels = archive["images"], archive["labels"]
    except FileNotFoundError as error:
        raise DataError(path, "does not exist", "check the path") from error
    except KeyError as error:
        raise DataError(path, "lacks the array `images` or `labels`", wanted) from error
    except Exception as error:  # whatever a file's bytes provoke is the file's fault
        text = " ".join(str(error).split())[:200]
        raise DataError(path, f"cannot be read ({type(error).__name__}: {text})", wanted) from error
    if images.dtype != np.float32 or images.ndim != 5 or images.shape[-1] != 3:
        what = f"`images` is {images.dtype} {images.shape}, float32 (S, B, H, W, 3) wanted"
        raise DataError(path, what, "convert it")
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:-1]:
        what = f"`labels` is {labels.dtype} {labels.shape}, integers {images.shape[:-1]} wanted"
        raise DataError(path, what, "convert it: one label for each pixel of `images`")
    if 0 in images.shape:
        raise DataError(path, f"`images` is empty, {images.shape}", "give at least one batch")
    if images.shape[1] < 2:
        what = "has batches of one image, and the image-pool norm would see one value"
        raise DataError(path, what, "give two images or more a batch")
    if not np.isfinite(images).all():
        raise DataError(path, "`images` holds values that are not finite", "mend them")
    return images, labels


def check_labels(path: str, labels: np.ndarray, num_classes: int) -> None:
    """Refuses labels that are neither a class nor ignored."""
    bad = ((labels < 0) | (labels >= num_classes)) & (labels != IGNORE_INDEX)
    if bad.any():
        value, step = labels[bad][0], np.argwhere(bad)[0][0]
        what = f"`labels` holds {value} in batch {step}, with {num_classes} classes"
        raise DataError(path, what, f"use 0 to {num_classes - 1}, and {IGNORE_INDEX} for ignored")
