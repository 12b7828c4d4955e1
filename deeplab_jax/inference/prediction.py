"""A segmented image: its files in each format, and numbers about its classes.

Files are written atomically. An image's JSON comes last, so that it proves the other files of the
image complete. The two submission formats have folders of their own: Cityscapes' evaluator takes
every PNG below its folder whose name begins like the image's for a prediction.
"""

import difflib
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from deeplab_jax.data.classes import CLASS_NAMES
from deeplab_jax.data.images import to_indexed, write_png, write_png_indices
from deeplab_jax.data.labels import CITYSCAPES_IDS
from deeplab_jax.data.pictures.windows import WindowedImage
from deeplab_jax.errors import ConfigError, DataError, shorten
from deeplab_jax.inference.overlay import Entry, add_legend, blend, percent, short_name
from deeplab_jax.utils.atomic import atomic_write
from deeplab_jax.utils.places import as_place, is_taken

_STRIP_PIXELS = 2**20  # summed at a time, so that temporary arrays stay small
_JPEG_SIDE = 65500  # the longest that is written
_NOTEBOOK_SIDE = 1024  # pixels of a picture in a notebook
_CITYSCAPES_NAME = re.compile(r"[^_]+_\d+_\d+(?=_|$)")  # <city>_<sequence>_<frame>

Window = tuple[slice, slice]  # rows and columns of an image
# stream(give) calls give(window, float32 (h, w, C)) for each window of an image, from left to
# right, then from the top down, so that memory never holds all classes of all pixels.
ProbabilityStream = Callable[[Callable[[Window, np.ndarray], None]], None]


@dataclass(frozen=True, repr=False)
class Prediction:
    """A segmented image; a notebook shows its overlay.

    Attributes:
      labels: uint8 (H, W), class ids, at the image's own size, upright.
      confidence: float32 (H, W), probability of the chosen class.
      image: uint8 (H, W, 3) RGB; of a picture read by windows an object that reads slices of it,
        and becomes an array by `np.asarray`.
      palette: uint8 (C, 3), RGB.
      class_names: C names.
      name: stem of the files, with folders before it if any; "image" without a file, and "image_0",
        "image_1", ... by position among several.
      file: the image's file; None if it came from memory.
      source: origin of the labels: "checkpoint", "step" and "protocol".
      stream: computes the probabilities of all classes; None if they cannot be computed.
    """

    labels: np.ndarray
    confidence: np.ndarray
    image: np.ndarray | WindowedImage
    palette: np.ndarray
    class_names: tuple[str, ...]
    name: str = "image"
    file: str | None = None
    source: dict[str, str | int] | None = None
    stream: ProbabilityStream | None = None

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Probabilities of all classes, float32 (H, W, C); their argmax equals the labels.

        The first use runs the network again and keeps the array for the life of the prediction: 4 C
        bytes a pixel, which is 1.2 GB for 150 classes of a 1920 x 1080 image. `save` with the
        format "probabilities" does not need it.

        Raises:
          ConfigError: they cannot be computed.
        """
        whole = np.empty((*self.labels.shape, len(self.palette)), np.float32)

        def give(window: Window, part: np.ndarray) -> None:
            whole[window] = part
            _decide_ties(whole[window], self.labels[window])

        self._stream()(give)
        return whole

    def _stream(self) -> ProbabilityStream:
        if self.stream is None:
            fix = "segment the image with a loaded checkpoint"
            raise ConfigError("probabilities", "this prediction has none", fix)
        return self.stream

    @property
    def shares(self) -> dict[str, float]:
        """Fraction of the image's area by class name, in the order of classes; they sum to 1."""
        shares = dict.fromkeys(self.class_names, 0.0)
        for name, area in zip(self.class_names, self._sums()[0], strict=True):
            shares[name] += float(area) / self.labels.size  # names may repeat
        return shares

    def overlay(self, alpha: float = 0.5, legend: bool = False) -> Image.Image:
        """Returns the image under its classes' colours, as a Pillow image in RGB.

        Args:
          alpha: weight of the colours, from 0 (the image alone) to 1 (the colours alone).
          legend: adds a strip with colour, name and share of each class in the image, the largest
            first, below the image.

        Raises:
          ValueError: `alpha` is not in [0, 1].
        """
        if not 0 <= alpha <= 1:
            raise ValueError(f"`alpha` must be from 0 to 1, got {alpha}; 0.5 shows both alike.")
        picture = blend(self.image, self.labels, self.palette, alpha)
        return add_legend(picture, self._entries()) if legend else picture

    def to_pil(self) -> Image.Image:
        """Returns the labels as a Pillow image of mode P, with the palette."""
        return to_indexed(self.labels, self.palette)

    def __repr__(self) -> str:
        entries = self._entries()
        shown = [f"{short_name(entry.name)} {percent(entry.share)}" for entry in entries[:3]]
        shown += [f"{len(entries) - 3} more"] * (len(entries) > 3)
        name = Path(self.file).name if self.file else self.name
        height, width = self.labels.shape
        return f"Prediction({name} {height}x{width}: {', '.join(shown)})"

    def _repr_png_(self) -> bytes:
        """Returns the overlay with its legend for a notebook, at most 1024 pixels a side."""
        picture, file = self.overlay(legend=True), io.BytesIO()
        picture.thumbnail((_NOTEBOOK_SIDE, _NOTEBOOK_SIDE))
        picture.save(file, "PNG")
        return file.getvalue()

    def _entries(self) -> list[Entry]:
        """Returns the classes in the image, the largest first."""
        areas = self._sums()[0]
        return [
            Entry(self.class_names[c], areas[c] / self.labels.size, tuple(self.palette[c].tolist()))
            for c in np.argsort(-areas, kind="stable")
            if areas[c]
        ]

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

    def to_json(self) -> bytes:
        """Returns the bytes of NAME.json, see `summary`."""
        return json.dumps(self.summary(), indent=1, allow_nan=False).encode() + b"\n"

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
        legend: bool = False,
    ) -> list[Path]:
        """Writes a file for each format, and NAME.json (see `summary`).

        palette: NAME.png, class indices with a palette.
        overlay: NAME_overlay.jpg, the palette over the image.
        probabilities: NAME_probabilities.npz, array "probabilities", float16 (H, W, C). The argmax
          over classes equals the labels: where rounding makes two classes equal, the chosen one is
          raised to the next float16.
        cityscapes: cityscapes/<city>_<sequence>_<frame>_pred_labelIds.png, ids for the server.
        ade: ade/NAME.png, 1 to 150 for the server.

        A missing directory is made; `force` replaces files that exist; `legend` is for the overlay,
        as in the method of this name. Returns the files in the order of `formats`, then the JSON.

        Raises:
          ConfigError: a format is unknown or not for these classes, or a file exists.
        """
        formats = check_formats(formats, legend)
        check_classes(formats, self.class_names)
        paths = output_paths(directory, self.name, formats)
        if not force:
            check_free(paths)
        for name, path in zip(formats, paths, strict=False):
            with atomic_write(path) as file:
                options = {"legend": True} if legend and name == "overlay" else {}
                FORMATS[name].write(self, file, **options)
                paths[-1].unlink(missing_ok=True)  # or it would prove old files beside new ones
        with atomic_write(paths[-1]) as file:
            file.write(self.to_json())
        return paths


def check_formats(names: Iterable[str], legend: bool = False) -> tuple[str, ...]:
    """Returns the names without repetitions.

    Raises:
      ConfigError: a format is unknown, there is none, or `legend` is set and no overlay written.
    """
    names = tuple(dict.fromkeys(names.split(",") if isinstance(names, str) else names))
    for name in names or ("",):
        if name not in FORMATS:
            close = difflib.get_close_matches(name, FORMATS, 1)
            fix = f"did you mean {close[0]}?" if close else f"use some of {','.join(FORMATS)}"
            raise ConfigError("--format", f"there is no format {name!r}", fix)
    if legend and "overlay" not in names:
        fix = "add overlay to --format, or drop --legend"
        raise ConfigError("--legend", "is for the overlay, which --format leaves out", fix)
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
    return [as_place(directory) / path for path in (*names, f"{name}.json")]


def check_free(paths: Iterable[Path]) -> None:
    """Refuses to replace files.

    Raises:
      ConfigError: files exist; names the first five, in the given order, and their number.
    """
    found = [str(path) for path in paths if is_taken(path)]
    if found:
        rest = f", ... ({len(found)} files)" if len(found) > 5 else ""
        what = "exists already" if len(found) == 1 else "exist already"
        fix = "choose another folder, or replace them with --force, in Python force=True; go on"
        fix += " after an end midway: --skip-existing"
        raise ConfigError(", ".join(found[:5]) + rest, what, fix)


def finished(paths: Sequence[Path]) -> dict[str, Any] | None:
    """Returns the JSON of an image's results; None unless it and all other files are there.

    Args:
      paths: of `output_paths`.

    Raises:
      ConfigError: the JSON is none of ours.
    """
    try:
        content = json.loads(paths[-1].read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or not {"file", "step", "classes"} <= content.keys():
        check_free(paths[-1:])
        return None
    return content if all(path.is_file() for path in paths) else None


def _row_strips(shape: tuple[int, ...]) -> Iterator[slice]:
    rows = max(1, _STRIP_PIXELS // shape[1])
    return (slice(top, top + rows) for top in range(0, shape[0], rows))


def _write_palette(prediction: Prediction, file: BinaryIO) -> None:
    write_png_indices(file, prediction.labels, prediction.palette)


def _write_overlay(prediction: Prediction, file: BinaryIO, legend: bool = False) -> None:
    picture = prediction.overlay(legend=legend)
    if max(picture.size) > _JPEG_SIDE:
        what = f"is {picture.height} x {picture.width} pixels"
        what += f"{' with its legend' if legend else ''}; an overlay is a JPEG, up to "
        fix = "leave out --format overlay"
        raise DataError(prediction.file or prediction.name, f"{what}{_JPEG_SIDE} a side", fix)
    picture.save(file, "JPEG", quality=92)


def _write_probabilities(prediction: Prediction, file: BinaryIO) -> None:
    """Streams a file for `np.load`; memory holds one row of windows at a time."""
    stream, labels = prediction._stream(), prediction.labels
    count = len(prediction.palette)
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
        stream(give)


def _decide_ties(probabilities: np.ndarray, labels: np.ndarray) -> None:
    """Raises probabilities (h, w, C), in place, where their argmax is not the label."""
    # Bits of positive numbers have the same order and are faster to compare; + 1: the next number.
    bits = probabilities.view(f"u{probabilities.itemsize}")
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
      write: writes a prediction into a binary file.
      dataset: data set of the required classes; "" for any classes.
    """

    path: Callable[[str], str]
    write: Callable[..., None]
    dataset: str = ""


FORMATS = {
    "palette": _Format("{}.png".format, _write_palette),
    "overlay": _Format("{}_overlay.jpg".format, _write_overlay),
    "probabilities": _Format("{}_probabilities.npz".format, _write_probabilities),
    "cityscapes": _Format(_cityscapes_path, _write_cityscapes, "cityscapes"),
    "ade": _Format(lambda name: f"ade/{Path(name).name}.png", _write_ade, "ade20k"),
}
