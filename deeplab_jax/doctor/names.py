"""Names of classes in the files that annotation tools and data sets put beside their masks.

A file counts where it fits: every class value or colour of the masks has a name in it. One that
lacks the background alone, value 0 or black, counts where no other fits. Files that do not fit are
passed over, each with the reason.
"""

import csv
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from deeplab_jax.data.labels import value_ranges
from deeplab_jax.doctor.scan import Color

# The first that fits is used. In this order: with colours, with values, in order alone.
_FILES = (
    "labelmap.txt",  # CVAT
    "label_colors.txt",  # CamVid
    "class_dict*.csv",  # CamVid's tables and their like
    "*colormap.txt",  # RUGD
    "class_list.json",  # A2D2
    "_classes.csv",  # Roboflow
    "class_mapping.csv",  # V7
    "classes*.csv",
    "labels*.csv",
    "notes.json",  # Label Studio
    "obj_class_to_machine_color.json",  # Supervisely
    "meta.json",
    "config*.json",  # Mapillary Vistas
    "id2label.json",  # Hugging Face
    "class_names.txt",  # labelme
    "classes.txt",
    "labels.txt",
    "obj.names",
)
_SUFFIXES = (".txt", ".csv", ".json", ".names")
_MAX_BYTES = 1 << 20
_COLOR = r"\s*(?P<r>\d{1,3})[,;\s]\s*(?P<g>\d{1,3})[,;\s]\s*(?P<b>\d{1,3})"
_COLORED = (  # a line's name and colour
    re.compile(rf"\d+[,;\s]+(?P<name>[^\W\d].*?)[,;\s]{_COLOR}"),
    re.compile(rf"(?P<name>[^:]+):{_COLOR}\s*(:.*)?"),
    re.compile(rf"(?P<name>.+?)[,;\s]{_COLOR}"),
    re.compile(rf"{_COLOR}[,;\s]\s*(?P<name>.+)"),
)
_NUMBERED = re.compile(r"(?P<value>\d+)[\s:,;=]+(?P<name>.+)")
_COLUMNS = {
    "name": ("name", "class", "label", "class name", "class_name"),
    "value": ("pixel value", "value", "id", "index", "class_color"),
    "r": ("r", "red"),
    "g": ("g", "green"),
    "b": ("b", "blue"),
}
_BACKGROUND, _BLACK = "background", (0, 0, 0)
_IS_BACKGROUND = re.compile(r"[\W_]*(background|backgr|bg|unlabell?ed|void|other|none)[\W_]*", re.I)
_IGNORED = "__ignore__"  # labelme's name of what has no class; it comes before class 0


class Entry(NamedTuple):
    """One class of a file."""

    name: str
    value: int | None = None  # in masks; None where the file has none
    color: Color | None = None


class Masks(NamedTuple):
    """What names must fit."""

    classes: Sequence[int]  # values that are classes; empty for masks in colours
    ignored: Collection[int]  # values that are no class, whatever a file calls them
    colors: Collection[Color]  # of masks in colours
    value_colors: Mapping[int, Color]  # {value: its colour} where palettes agree


class Named(NamedTuple):
    """Classes that a file names."""

    path: Path
    names: tuple[str, ...]
    values: tuple[int, ...]  # of the classes; empty for masks in colours
    palette: tuple[Color, ...]  # of the classes; empty for others
    more: str = ""  # what the names hold beside the file's, in words


def find_names(
    folders: Iterable[Path], masks: Masks, place: str = ""
) -> tuple[Named | None, list[tuple[Path, str]]]:
    """Returns the names of the first file that fits, and the files that do not, with the reason.

    Of files with a version in their names, such as "v2.0", one of the masks' `place` goes first.
    """
    unused: list[tuple[Path, str]] = []
    if not masks.classes and not masks.colors:
        return None, unused
    paths = _paths(folders)
    without_background: list[Named] = []
    for path in sorted(paths, key=lambda path: _is_of_another_version(path, place)):
        try:
            if entries := list(_read(path)):  # else it is about something else
                named = _match(path, entries, masks)
                if not named.more:
                    return named, unused
                without_background.append(named)
        except ValueError as reason:
            unused.append((path, str(reason)))
    return next(iter(without_background), None), unused


def _is_of_another_version(path: Path, place: str) -> bool:
    version = re.search(r"v\d+(\.\d+)*", path.stem)
    return version is not None and version[0] not in place


def is_names_file(path: Path) -> bool:
    """Tells whether a file has a name that files of class names have."""
    is_text = path.suffix.lower() in _SUFFIXES  # among many masks few names are looked at
    return is_text and any(fnmatch(path.name.lower(), pattern) for pattern in _FILES)


def _paths(folders: Iterable[Path]) -> list[Path]:
    found = (path for folder in dict.fromkeys(folders) for path in folder.glob("*.*"))
    files = sorted(path for path in found if is_names_file(path) and path.is_file())
    files = [path for path in files if path.stat().st_size <= _MAX_BYTES]
    return [p for pattern in _FILES for p in files if fnmatch(p.name.lower(), pattern)]


def _read(path: Path) -> Iterator[Entry]:
    """Yields the entries of a file; ValueError says what cannot be read."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError("is no text in UTF-8: save it as UTF-8") from error
    if path.suffix.lower() == ".json":
        try:
            return _of_json(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise ValueError("is no JSON") from error
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    return _of_table(lines) or _of_lines(lines)


def _of_json(content: Any) -> Iterator[Entry]:
    """Yields the classes of a list, or of a table's "categories", "classes" or "labels"."""
    if isinstance(content, dict):
        lists = (content.get(key) for key in ("categories", "classes", "labels"))
        found = next((value for value in lists if isinstance(value, list)), None)
        if found is None and all(map(_grey, content.values())):
            found = [{"id": grey[0], "name": name} for name, grey in content.items()]
            if all(entry["id"] for entry in found):  # Supervisely names no background
                found = [{"id": 0, "name": "background"}, *found]
        if found is None and all(key.isdigit() for key in content):
            found = [{"id": int(key), "name": name} for key, name in content.items()]
        if found is None and all(map(_color, content)):
            found = [{"color": key, "name": name} for key, name in content.items()]
        content = found
    for item in content if isinstance(content, list) else ():
        table = item if isinstance(item, dict) else {"name": item}
        name = next((table[k] for k in ("readable", "title", "name") if k in table), None)
        if isinstance(name, str):
            value = None if "title" in table else table.get("id")  # Supervisely's are of a database
            yield Entry(name, value if type(value) is int else None, _color(table.get("color")))


def _grey(value: Any) -> bool:
    color = _color(value)
    return color is not None and len(set(color)) == 1


def _color(value: Any) -> Color | None:
    if isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value):
        value = list(bytes.fromhex(value[1:]))
    is_color = isinstance(value, list) and len(value) >= 3
    if not is_color or any(type(v) is not int or not 0 <= v <= 255 for v in value[:3]):
        return None
    return value[0], value[1], value[2]


def _of_table(lines: Sequence[str]) -> Iterator[Entry] | None:
    """Returns the entries of lines whose first names columns; None without such a line."""
    head = re.split("[,;\t]", lines[0]) if lines else []
    found = {key: number for number, cell in enumerate(head) for key, words in _COLUMNS.items()
             if cell.strip().strip('"').lower() in words}  # fmt: skip
    if "name" not in found or len(found) < 2:
        return None
    mark = next(letter for letter in ",;\t" if letter in lines[0])
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines[1:], delimiter=mark)]

    def entries() -> Iterator[Entry]:
        for row in rows:
            cells = {key: row[place] for key, place in found.items() if place < len(row)}
            value = int(cells["value"]) if cells.get("value", "").isdigit() else None
            parts = [int(v) for k in "rgb" if (v := cells.get(k, "")).isdigit()]
            yield Entry(cells.get("name", ""), value, _color(parts))

    return entries()


def _of_lines(lines: Sequence[str]) -> Iterator[Entry]:
    """Yields an entry a line: name and colour, colour and name, value and name, or a name."""
    for pattern in _COLORED:
        matches = [pattern.fullmatch(line) for line in lines]
        if lines and all(matches):
            for match in matches:
                assert match is not None
                color = _color([int(match[key]) for key in "rgb"])
                yield Entry(match["name"].strip(), None, color)
            return
    numbered = [_NUMBERED.fullmatch(line) for line in lines]
    for line, match in zip(lines, numbered, strict=True):
        if match and all(numbered):
            yield Entry(match["name"].strip(), int(match["value"]))
        else:
            yield Entry(line)


def _match(path: Path, entries: Sequence[Entry], masks: Masks) -> Named:
    """Returns the classes that the entries name; ValueError says why they do not fit."""
    if entries[0].name == _IGNORED:
        entries = entries[1:]
    names = [entry.name for entry in entries]
    if "" in names or len({*names}) < len(names):
        raise ValueError("leaves a class without a name, or names two alike")
    if masks.colors:
        return _match_colors(path, entries, masks.colors)
    ignored = {*masks.ignored} - {*masks.classes}
    for by_value in _ways(entries, masks):
        named = {value: name for value, name in by_value.items() if value not in ignored}
        if named.keys() >= {*masks.classes}:
            values = tuple(sorted(named))
            return Named(path, tuple(named[v] for v in values), values, ())
    if found := _with_background(entries, masks):
        values = tuple(sorted(found))
        more = f", with {_BACKGROUND} in front for 0, which it does not name"
        return Named(path, tuple(found[v] for v in values), values, (), more)
    what = f"has {len(names)} names, and the masks hold {len(masks.classes)} values "
    raise ValueError(f"{what}({', '.join(value_ranges(list(masks.classes)))})")


def _with_background(entries: Sequence[Entry], masks: Masks) -> dict[int, str]:
    """Returns {value: name} of a file that names each class but 0, as background; else {}."""
    names = [entry.name for entry in entries]
    is_short = len(names) == len(masks.classes) - 1 and masks.classes[0] == 0
    if not is_short or any(map(_IS_BACKGROUND.fullmatch, names)):
        return {}
    rest = masks._replace(classes=masks.classes[1:])
    for by_value in _ways(entries, rest):
        if by_value.keys() == {*rest.classes}:
            return {0: _BACKGROUND} | by_value
    return {}


def _ways(entries: Sequence[Entry], masks: Masks) -> Iterator[dict[int, str]]:
    """Yields {value: name} in each way that a file may mean."""
    values = [entry.value for entry in entries]
    if None not in values and len({*values}) == len(values):
        yield {value: e.name for value, e in zip(values, entries, strict=True) if value is not None}
        return
    colored = {entry.color: entry.name for entry in entries if entry.color}
    shown = {v: colored[c] for v in masks.classes if (c := masks.value_colors.get(v)) in colored}
    if len(colored) == len(entries) and len({*shown.values()}) == len(shown):
        yield shown
    names = [entry.name for entry in entries]
    yield dict(enumerate(names))
    if len(names) == len(masks.classes):  # classes 1, 2, ...; or values that are spread
        yield dict(zip(masks.classes, names, strict=True))


def _match_colors(path: Path, entries: Sequence[Entry], colors: Collection[Color]) -> Named:
    palette = [entry.color for entry in entries if entry.color]
    if len(palette) < len(entries):
        raise ValueError("has no colours, and the masks hold colours")
    if len({*palette}) < len(palette):
        raise ValueError("gives two classes one colour")
    names = [entry.name for entry in entries]
    missing = sorted({*colors} - {*palette})
    if missing == [_BLACK] and not any(map(_IS_BACKGROUND.fullmatch, names)):
        more = f", with {_BACKGROUND} in front for black, which it does not name"
        return Named(path, (_BACKGROUND, *names), (), (_BLACK, *palette), more)
    if missing:
        what = f"lacks {len(missing)} of the masks' {len(colors)} colours, such as {missing[0]}"
        raise ValueError(what)
    return Named(path, tuple(names), (), tuple(palette))
