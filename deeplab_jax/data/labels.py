"""The classes of a data set, and the tables from a mask's values or colours to classes."""

import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from deeplab_jax.config import IGNORE_INDEX, TRAIN_IDS, DataConfig
from deeplab_jax.data.classes import CLASS_NAMES, PALETTES, colormap
from deeplab_jax.data.colors import safe_palette
from deeplab_jax.errors import ConfigError, DataError

INVALID = -1
# Cityscapes' labelIds of the classes 0, 1, ..., 18; all other ids up to 33 are ignored.
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

# All that reading a malformed classes.json raises; brackets without end recurse.
_FAULTS = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)
_UNKNOWN = 256  # a class id no palette reaches


class Classes(NamedTuple):
    """The classes of a data set."""

    names: tuple[str, ...]  # names of classes 0, ..., C - 1
    palette: np.ndarray  # uint8 (C, 3), RGB
    ignored_colors: np.ndarray  # uint8 (n, 3), RGB; a colour mask may hold them for ignored pixels


def label_map(data_config: DataConfig, num_classes: int) -> np.ndarray:
    """Returns int16 (65536,): the class of each mask value, 255 for ignored, -1 for invalid.

    Colour masks hold classes 0, ..., C - 1 and 255 once they are read.
    """
    classes = np.full(65536, INVALID, np.int16)
    name = data_config.dataset
    if name == "ade20k":
        classes[0] = IGNORE_INDEX
        classes[1 : num_classes + 1] = np.arange(num_classes)
    elif name == "cityscapes" and data_config.mask_suffix != TRAIN_IDS:
        classes[: CITYSCAPES_IDS[-1]] = IGNORE_INDEX
        classes[list(CITYSCAPES_IDS)] = np.arange(num_classes)
    elif data_config.mask_format == "binary":
        classes[[0, 255]] = 0, 1
    else:
        first = int(data_config.reduce_zero_label)
        values = data_config.class_values or range(first, first + num_classes)
        classes[list(data_config.ignore_values)] = IGNORE_INDEX
        if first:
            classes[0] = IGNORE_INDEX
        classes[list(values)] = np.arange(num_classes)
    return classes


def open_classes(data_config: DataConfig, num_classes: int) -> Classes:
    """Returns the classes of the data set that the configuration names.

    Raises:
      DataError: `classes.json` cannot be used.
      ConfigError: the data set has another number of classes, or configuration and `classes.json`
        differ.
    """
    name, path = data_config.dataset, Path(data_config.root) / "classes.json"
    if name in CLASS_NAMES:
        source, classes = name, Classes(CLASS_NAMES[name], PALETTES[name], _colors(()))
    elif path.is_file():
        source, classes = str(path), read_classes(path, data_config.mask_format)
        own = {"class_names": classes.names, "class_colors": tuple(classes.palette.ravel())}
        for key, values in own.items():
            if getattr(data_config, key) and getattr(data_config, key) != values:
                what = f"its values differ from those of {path}"
                raise ConfigError(f"config.data.{key}", what, "keep one of the two")
    else:
        source = "config.data.class_names"
        names = tuple(data_config.class_names) or tuple(f"class_{i}" for i in range(num_classes))
        palette = _default_palette(len(names), data_config.mask_format)
        if data_config.class_colors:
            palette = _colors(data_config.class_colors)
        classes = Classes(names, palette, _colors(()))
    count = len(classes.names)
    if count != num_classes:
        what = f"is {num_classes}, but {source} has {count} classes"
        raise ConfigError("config.model.num_classes", what, f"set it to {count}")
    return classes


def _default_palette(count: int, mask_format: str) -> np.ndarray:
    # Programs that draw colour masks without being told colours use VOC's.
    return colormap(count) if mask_format == "color" else safe_palette(count)


def _colors(values: ArrayLike) -> np.ndarray:
    return np.array(values, np.uint8).reshape(-1, 3)


def read_classes(path: Path, mask_format: str = "index") -> Classes:
    """Reads a JSON list of names, or of {"name": ..., "color": [r, g, b]}; "color" is optional.

    An entry with "ignore": true is no class; colour masks may hold its colour. Classes without a
    colour have that of `safe_palette`, or with colour masks VOC's.

    Raises:
      DataError: the file holds no such list.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
        raise DataError(str(path), what, "check its permissions") from error
    except UnicodeDecodeError as error:
        raise DataError(str(path), "is no text in UTF-8", "save it as UTF-8") from error
    try:
        entries = json.loads(text)
        if not isinstance(entries, list):
            raise TypeError(f"{type(entries).__name__} at the top")
        entries = [{"name": entry} if isinstance(entry, str) else entry for entry in entries]
        ignored = _colors([entry["color"] for entry in entries if entry.get("ignore")])
        entries = [entry for entry in entries if not entry.get("ignore")]
        names = tuple(str(entry["name"]) for entry in entries)
        palette = _default_palette(len(names), mask_format)
        for index, entry in enumerate(entries):
            if "color" in entry:
                palette[index] = entry["color"]
    except _FAULTS as error:
        fix = 'write ["road", ...] or [{"name": "road", "color": [128, 64, 128]}, ...]'
        where = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(str(path), f"is no list of classes{where}", fix) from error
    return Classes(names, palette, ignored)


def value_ranges(values: Sequence[int] | np.ndarray) -> list[str]:
    """Returns the runs of sorted whole numbers as texts, such as ["0..4", "255"]."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1) if len(values) else []
    return [str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs]


class ColorTable:
    """Turns colours into classes; picklable and small.

    Raises:
      ConfigError: two classes have one colour.
    """

    def __init__(self, classes: Classes):
        self.classes = classes
        colors = np.concatenate((classes.palette, classes.ignored_colors)).tolist()
        ids = [*classes.names, *(["ignored"] * len(classes.ignored_colors))]
        seen: dict[tuple[int, ...], str] = {}
        for color, name in zip(colors, ids, strict=True):
            other = seen.setdefault(tuple(color), name)
            if other != name:
                what = f"{other} and {name} have one colour, {_text(color)}"
                raise ConfigError("config.data.mask_format=color", what, "correct classes.json")

    def __call__(self, name: str, colors: np.ndarray) -> np.ndarray:
        """Returns the classes, uint8 (H, W), 255 = ignored, of colours.

        Colours are uint8 (H, W, 3) RGB, or (H, W, 4) RGBA, of which alpha 0 is ignored.

        Raises:
          DataError: a colour is neither a class's nor ignored; the text starts with `name`.
        """
        palette, codes = self.classes.palette, _codes(colors)
        found = _inverse(palette.tobytes(), self.classes.ignored_colors.tobytes())[codes]
        if colors.shape[2] == 4:
            found[colors[..., 3] == 0] = IGNORE_INDEX
        if not (found == _UNKNOWN).any():
            return found.astype(np.uint8)
        unknown = np.unique(codes[found == _UNKNOWN])
        color = unknown[0] >> np.array((16, 8, 0)) & 255
        nearest = int(np.abs(palette - color).sum(1).argmin())
        what = f"has {len(unknown)} colours that are no class, such as {_text(color)}; nearest is "
        what += f"{self.classes.names[nearest]}, {_text(palette[nearest])}"
        fix = 'add them to classes.json ("ignore": true for what is no class), or mend the mask'
        raise DataError(name, what, fix)


def _text(color: Iterable[int]) -> str:
    return f"({', '.join(str(int(value)) for value in color)})"


def _codes(colors: np.ndarray) -> np.ndarray:
    """Returns R * 65536 + G * 256 + B of each pixel, int32."""
    wide = colors.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


@functools.lru_cache(maxsize=2)
def _inverse(palette: bytes, ignored: bytes) -> np.ndarray:
    """Returns the class of each of the 2**24 colours, 32 MB; one look-up a pixel."""
    table = np.full(1 << 24, _UNKNOWN, np.int16)
    table[_codes(np.frombuffer(ignored, np.uint8).reshape(-1, 3))] = IGNORE_INDEX
    table[_codes(np.frombuffer(palette, np.uint8).reshape(-1, 3))] = range(len(palette) // 3)
    return table
