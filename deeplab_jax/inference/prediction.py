"""A segmented image: its files in each format, and numbers about its classes.

Files are written atomically. An image's JSON comes last, so that it proves the other files of the
image complete. The two submission formats have folders of their own: Cityscapes' evaluator takes
every PNG below its folder whose name begins like the image's for a prediction.
"""

import difflib
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from deeplab_jax.data.classes import CLASS_NAMES
from deeplab_jax.data.images import JPEG_SIDE, write_overlay, write_png, write_png_indices
from deeplab_jax.data.labels import CITYSCAPES_IDS
from deeplab_jax.errors import ConfigError, DataError, shorten
from deeplab_jax.utils.atomic import atomic_write

_STRIP_PIXELS = 2**20  # summed at a time, so that temporary arrays stay small
_CITYSCAPES_NAME = re.compile(r"[^_]+_\d+_\d+(?=_|$)")  # <city>_<sequence>_<frame>

Window = tuple[slice, slice]  # rows and columns of an image
# stream(give) calls give(window, float32 (h, w, C)) for each window of an image, from left to
# right, then from the top down, so that memory never holds all classes of all pixels.
ProbabilityStream = Callable[[Callable[[Window, np.ndarray], None]], None]


@dataclass(frozen=True)
class Prediction:
    """A segmented image.

    Attributes:
      labels: uint8 (H, W), class ids, at the image's own size, upright.
      confidence: float32 (H, W), probability of the chosen class.
      image: uint8 (H, W, 3) RGB.
      palette: uint8 (C, 3), RGB.
      name: stem of the files, with folders before it if any; "image" for an array.
      class_names: C names.
      file: the image's file; None for an array.
      source: origin of the labels: "checkpoint", "step" and "protocol".
      probabilities: computes the probabilities of all classes; None if they cannot be computed.
    """

    labels: np.ndarray
    confidence: np.ndarray
    image: np.ndarray
    palette: np.ndarray
    name: str = "image"
    class_names: tuple[str, ...] = ()
    file: str | None = None
    source: dict[str, str | int] | None = None
    probabilities: ProbabilityStream | None = None

    @property
    def shares(self) -> np.ndarray:
        """Fraction of the image's area that each class has, float64 (C,); they sum to 1."""
        return self._sums()[0] / self.labels.size

    def summary(self) -> dict[str, Any]:
        """Returns the content of NAME.json.

        Entries: "file", "size" (height, width), those of `source`, and "classes", one entry for
        each class in order: "name", "share" of the area and mean "confidence". Confidence is null
        where the share is 0 or a pixel's confidence is not finite.
        """
        areas, sums = self._sums()
        classes = [
            {
                "name": name,
                "share": float(area) / self.labels.size,
                "confidence": float(total) / float(area) if area and np.isfinite(total) else None,
            }
            for name, area, total in zip(self.class_names, areas, sums, strict=True)
        ]
        size = list(self.labels.shape)
        return {"file": self.file, "size": size, **(self.source or {}), "classes": classes}

    def _sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the area in pixels and the sum of confidence of each class."""
        count = len(self.palette)
        areas, sums = np.zeros(count, np.int64), np.zeros(count)
        for rows in _row_strips(self.labels.shape):
            labels = self.labels[rows].ravel()
            areas += np.bincount(labels, minlength=count)
            sums += np.bincount(labels, self.confidence[rows].ravel(), minlength=count)
        return areas, sums

    def save(
        self,
        directory: str | Path,
        formats: Iterable[str] = ("palette", "overlay"),
        force: bool = False,
    ) -> list[Path]:
        """Writes a file for each format, and NAME.json (see `summary`).

        palette: NAME.png, class indices with a palette.
        overlay: NAME_overlay.jpg, the palette over the image.
        probabilities: NAME_probabilities.npz, array "probabilities", float16 (H, W, C). The argmax
          over classes equals the labels: where rounding makes two classes equal, the chosen one is
          raised to the next float16.
        cityscapes: cityscapes/<city>_<sequence>_<frame>_pred_labelIds.png, ids for the server.
        ade: ade/NAME.png, 1 to 150 for the server.

        A missing directory is made; `force` replaces files that exist. Returns the files in the
        order of `formats`, then the JSON.

        Raises:
          ConfigError: a format is unknown or not for these classes, or a file exists.
        """
        formats = check_formats(formats)
        check_classes(formats, self.class_names)
        paths = output_paths(directory, self.name, formats)
        if not force:
            check_free(paths)
        for name, path in zip(formats, paths, strict=False):
            with atomic_write(path) as file:
                FORMATS[name].write(self, file)
        with atomic_write(paths[-1]) as file:
            file.write(json.dumps(self.summary(), indent=1, allow_nan=False).encode() + b"\n")
        return paths


def check_formats(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the names without repetitions.

    Raises:
      ConfigError: a format is unknown, or there is none.
    """
    names = tuple(dict.fromkeys(names))
    for name in names or ("",):
        if name not in FORMATS:
            close = difflib.get_close_matches(name, FORMATS, 1)
            fix = f"did you mean {close[0]}?" if close else f"use some of {','.join(FORMATS)}"
            raise ConfigError("--format", f"there is no format {name!r}", fix)
    return names


def check_classes(formats: Iterable[str], class_names: Sequence[str]) -> None:
    """Checks that submission formats are those of the network's classes.

    Raises:
      ConfigError: a format is for other classes.
    """
    for name in formats:
        dataset = FORMATS[name].dataset
        if dataset and tuple(class_names) != CLASS_NAMES[dataset]:
            what = (
                f"is for the {len(CLASS_NAMES[dataset])} classes of {dataset}; "
                f"this network has {len(class_names)} ({shorten(class_names, 3)})"
            )
            raise ConfigError(f"--format={name}", what, "leave it out")


def output_paths(directory: str | Path, name: str, formats: Iterable[str]) -> list[Path]:
    """Returns the file of each format for an image called `name`, then the JSON file."""
    names = [FORMATS[key].path(name) for key in formats]
    return [Path(directory) / path for path in (*names, f"{name}.json")]


def check_free(paths: Iterable[Path]) -> None:
    """Refuses to replace files.

    Raises:
      ConfigError: files exist; names the first five, in the given order, and their number.
    """
    found = [str(path) for path in paths if os.path.lexists(path)]
    if found:
        rest = f", ... ({len(found)} files)" if len(found) > 5 else ""
        what = "exists already" if len(found) == 1 else "exist already"
        fix = "choose another folder, or replace them with --force (force=True)"
        raise ConfigError(", ".join(found[:5]) + rest, what, fix)


def _row_strips(shape: tuple[int, ...]) -> Iterator[slice]:
    rows = max(1, _STRIP_PIXELS // shape[1])
    return (slice(top, top + rows) for top in range(0, shape[0], rows))


def _write_palette(prediction: Prediction, file: BinaryIO) -> None:
    write_png_indices(file, prediction.labels, prediction.palette)


def _write_overlay(prediction: Prediction, file: BinaryIO) -> None:
    if max(prediction.labels.shape) > JPEG_SIDE:
        size = " x ".join(map(str, prediction.labels.shape))
        what = f"is {size} pixels; an overlay is a JPEG, up to {JPEG_SIDE} a side"
        raise DataError(prediction.file or prediction.name, what, "leave out --format overlay")
    write_overlay(file, prediction.image, prediction.labels, prediction.palette)


def _write_probabilities(prediction: Prediction, file: BinaryIO) -> None:
    """Streams a file for `np.load`; memory holds one row of windows at a time."""
    if prediction.probabilities is None:
        raise ConfigError("--format=probabilities", "this prediction has none", "leave it out")
    labels, count = prediction.labels, len(prediction.palette)
    width = labels.shape[1]
    header = {"descr": "<f2", "fortran_order": False, "shape": (*labels.shape, count)}
    band = np.empty((0, width, count), "<f2")

    def give(window: Window, part: np.ndarray) -> None:
        nonlocal band
        if len(band) != len(part):
            band = np.empty((len(part), width, count), "<f2")
        half = part.astype("<f2")
        _decide_ties(half, labels[window])
        band[:, window[1]] = half
        if window[1].stop >= width:
            array.write(band.data.cast("B"))

    # Level 1: higher levels take several times as long and save a few percent.
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("probabilities.npy", "w", force_zip64=True) as array,
    ):
        np.lib.format.write_array_header_1_0(array, header)
        prediction.probabilities(give)


def _decide_ties(probabilities: np.ndarray, labels: np.ndarray) -> None:
    """Raises float16 probabilities (h, W, C), in place, where their argmax is not the label."""
    bits = probabilities.view(np.uint16)  # same order, faster to compare; + 1: the next float16
    row, column = np.nonzero(bits.argmax(-1) != labels)
    bits[row, column, labels[row, column]] = bits[row, column].max(-1) + 1


def _write_cityscapes(prediction: Prediction, file: BinaryIO) -> None:
    write_png(file, np.array(CITYSCAPES_IDS, np.uint8)[prediction.labels])


def _write_ade(prediction: Prediction, file: BinaryIO) -> None:
    write_png(file, prediction.labels + np.uint8(1))  # 0 means unlabelled


def _cityscapes_path(name: str) -> str:
    stem = Path(name).name
    found = _CITYSCAPES_NAME.match(stem)
    return f"cityscapes/{found[0] if found else stem}_pred_labelIds.png"


class _Format(NamedTuple):
    """An output format.

    Attributes:
      path: returns the path of the file for the name of an image.
      write: writes a prediction.
      dataset: data set of the required classes; "" for any classes.
    """

    path: Callable[[str], str]
    write: Callable[[Prediction, BinaryIO], None]
    dataset: str = ""


FORMATS = {
    "palette": _Format("{}.png".format, _write_palette),
    "overlay": _Format("{}_overlay.jpg".format, _write_overlay),
    "probabilities": _Format("{}_probabilities.npz".format, _write_probabilities),
    "cityscapes": _Format(_cityscapes_path, _write_cityscapes, "cityscapes"),
    "ade": _Format(lambda name: f"ade/{Path(name).name}.png", _write_ade, "ade20k"),
}
