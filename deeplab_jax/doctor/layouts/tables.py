"""Tables, such as metadata.csv, of which a column names images and another their split."""

import codecs
import csv
import os
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from deeplab_jax.config.patterns import IMAGE_SUFFIXES
from deeplab_jax.data.lists import read_lines
from deeplab_jax.doctor.findings import Finding
from deeplab_jax.doctor.layouts import words
from deeplab_jax.doctor.layouts.shapes import Place
from deeplab_jax.doctor.layouts.tree import Tree
from deeplab_jax.errors import DataError, clip

_MAX_TABLES = 24  # looked into
_MAX_VALUES = 20  # of a column that tells splits
_ENOUGH = 0.5  # of a column's cells must name images
_FLAG = re.compile(r"(is_?)?(train|val|valid|validation|test)(ing)?", re.IGNORECASE)
_TITLE = re.compile(
    r"(data_?(set)?_?)?(k?_?folds?|split|partition|subset|set|phase|usage|stage)(_?(id|name))?",
    re.IGNORECASE,
)
_TRUE, _FALSE = {"1", "true", "yes", "t", "y"}, {"0", "false", "no", "f", "n"}


class Table(NamedTuple):
    """A table that splits the images of a place."""

    title: str  # what it tells
    command: str  # makes lists of it
    is_made: bool  # whether lists of these names lie beside it


def find(tree: Tree, place: Place) -> dict[str, Table]:
    """Returns {path: table} of the tables that split the images of a place."""
    stems = {_stem(image) for match in place.matches for image, _ in match.pairs}
    scenes = {part for match in place.matches for part in match.images.split("/")} - stems
    paths = [path for path in tree.tables if PurePosixPath(path).stem not in stems]
    paths = sorted(paths, key=lambda p: (p.count("/"), p))[:_MAX_TABLES]
    found = {}
    for path in paths:
        rows = _read(tree.root / path)
        if table := _look(tree, path, rows, stems) or _look(tree, path, rows, scenes):
            found[path] = table
    return found


def told_of(found: Mapping[str, Table], is_split: bool) -> list[Finding]:
    """Returns what is told of tables: they are no lists, and a command makes lists of them."""
    if is_split:
        others = [table for table in found.values() if not table.is_made]
        end = ", which is not used: the split of folders or lists is"
        fix = "to use it, make lists of it: "
        return [Finding("note", "split", t.title + end, fix + t.command) for t in others]
    fix = "make lists of it, and run the doctor again; else the split that --write-config proposes "
    return [Finding("warning", "split", t.title, f"{fix}is random: {t.command}")
            for t in found.values()]  # fmt: skip


def _stem(cell: str) -> str:
    name = cell.strip().replace("\\", "/").rstrip("/").rpartition("/")[2]
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in IMAGE_SUFFIXES else name


def _look(tree: Tree, path: str, rows: Sequence[Sequence[str]], names: set[str]) -> Table | None:
    """Returns what a table tells of images, or folders; None of one that tells no split."""
    if not rows:
        return None
    titles, columns = rows[0], [*zip(*rows[1:], strict=True)]
    named = [sum(_stem(cell) in names for cell in cells) for cells in columns]
    image = max(range(len(titles)), key=lambda n: (named[n], -n))
    if named[image] < _ENOUGH * len(rows[1:]):
        return None
    for number, cells in enumerate(columns):
        counts = Counter(cell.strip() for cell in cells if cell.strip())
        if number == image or not (lists := _splits(titles[number].strip(), counts)):
            continue
        list_of = {value: split for split, values in lists.items() for value in values}
        own = {(cell, list_of.get(value.strip())) for cell, value in
               zip(columns[image], cells, strict=True)}  # fmt: skip
        if len(own) > len({*columns[image]}):
            continue  # one folder is in several splits
        folder = os.path.dirname(tree.root / path)
        ends = [".txt", "_list.txt"]
        is_made = [all(os.path.exists(f"{folder}/{split}{end}") for split in lists) for end in ends]
        is_there = any(os.path.exists(f"{folder}/{split}.txt") for split in lists)
        files = {f"{folder}/{split}{ends[is_there]}": values for split, values in lists.items()}
        shown = ", ".join(f"{clip(value)} ({count})" for value, count in sorted(counts.items()))
        title = f"{path} tells a split in its column {clip(titles[number].strip())}: {shown}"
        return Table(title, _command(tree.root / path, image, number, files), any(is_made))
    return None


def _command(path: Path, image: int, split: int, files: Mapping[str, Sequence[str]]) -> str:
    """Returns a command that writes {file: values}: the images of rows with one of the values."""
    encoding, mark = _encoding(path), _mark(_lines(path)[0])
    code = (
        f"import csv; table = open({str(path)!r}, encoding={encoding!r}, newline=''); "
        f"rows = [row for row in csv.reader(table, delimiter={mark!r}) "
        f"if len(row) > {max(image, split)}]; "
        f"[open(name, 'w', encoding='utf-8').writelines(row[{image}].strip() + '\\n' for row in "
        f"rows if row[{split}].strip() in values) for name, values in {dict(files)!r}.items()]"
    )
    return f"python3 -c {shlex.quote(code)}"


def _encoding(path: Path) -> str:
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    try:
        data.decode()
        return "utf-8-sig"
    except UnicodeDecodeError:
        return "cp1252"


def _lines(path: Path) -> list[str]:
    return [line for line in read_lines(path) if not line.startswith("#")]


def _mark(titles: str) -> str:
    return max("\t;,", key=titles.count)


def _read(path: Path) -> list[list[str]]:
    """Returns the rows of a table, all of one length; [] of anything else."""
    try:
        lines = _lines(path)
        rows = [*csv.reader(lines, delimiter=_mark(lines[0]))] if len(lines) > 1 else []
    except (DataError, csv.Error):
        return []
    is_even = bool(rows) and all(len(row) == len(rows[0]) > 1 for row in rows)
    return rows if is_even else []


def _splits(title: str, counts: Mapping[str, int]) -> dict[str, list[str]]:
    """Returns {name of a list: values of a column}; empty where a column tells no split."""
    values = sorted(counts)
    if not 1 < len(values) <= _MAX_VALUES:
        return {}
    names = [value for value in values if _is_name(value)]
    is_meant = len(names) == len(values) or _TITLE.fullmatch(title)  # some may be of no split
    if is_meant and len({words.is_train(name) for name in names}) == 2:
        return {name: [name] for name in names}
    is_flag = all(value.lower() in _TRUE | _FALSE for value in values)
    if is_flag and (flag := _FLAG.fullmatch(title)):
        yes, no = ([v for v in values if v.lower() in kind] for kind in (_TRUE, _FALSE))
        kind = flag[2].lower()
        if kind == "train":
            return {"train": yes, "val": no}
        return {"train": no, "test" if kind == "test" else "val": yes}
    if _TITLE.fullmatch(title) and all(value.isdigit() for value in values):
        first = min(values, key=int)
        return {"train": [v for v in values if v != first], "val": [first]}
    return {}


def _is_name(value: str) -> bool:
    found = words.split_text(value)
    return found is not None and found.is_word and re.fullmatch(r"[\w -]+", value) is not None
