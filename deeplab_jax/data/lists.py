"""Lists of samples: their text in any usual encoding, and the images and masks that lines name."""

import codecs
import csv
import os
import re
import stat
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from deeplab_jax.config.patterns import IMAGE_SUFFIXES
from deeplab_jax.errors import DataError, clip, shorten

_MAX_BYTES = 64 << 20
_MAX_LINE = 8192  # characters of two paths
_FORM = "write one image a line, or an image and its mask"
_SEPARATOR = re.compile(r"[\t,;]|\s+")
_NUMBERS = ("-1", "0", "1")  # of VOC's lists of a class
_TITLE = re.compile(  # of a table's column
    r"\W*(image|img|mask|label|annotation|file|filename|name|path|id)s?"
    r"([ _]?(path|name|file|id))?\W*",
    re.IGNORECASE,
)
_TITLE_OF_MASK = re.compile(r"mask|label|annot|gt|truth|seg", re.IGNORECASE)
_SPLIT_TITLE = re.compile(
    r"(data_?)?(split|subset|set|k?_?fold|partition|usage|phase)|(is_?)?(train|val|valid|validation|test)",
    re.IGNORECASE,
)
_FOREIGN = re.compile(r"/|[A-Za-z]:/|~/")  # begins an absolute path, of any system
_LOOKS = 100  # rows of a table that tell what its columns hold


def read_lines(path: Path) -> list[str]:
    """Returns the lines of a text file that are not blank, without their ends.

    The text is UTF-8 or UTF-16, with or without a byte order mark, else Windows' code page 1252.

    Raises:
      DataError: it is no file, too large, no text, or cannot be read.
    """
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):  # a pipe would wait for a writer
            raise DataError(str(path), "is no file", _FORM)
        if info.st_size > _MAX_BYTES:
            what = f"is too large for a list ({info.st_size} bytes, limit {_MAX_BYTES})"
            raise DataError(str(path), what, _FORM)
        text = _decode(path.read_bytes())
    except OSError as error:
        raise DataError(str(path), f"cannot be read ({error.strerror})", _FORM) from error
    except UnicodeDecodeError as error:
        what = "is no text in UTF-8, UTF-16 or Windows-1252"
        raise DataError(str(path), what, f"save it as UTF-8, and {_FORM}") from error
    return [line for line in re.split(r"\r\n|\r|\n", text) if line.strip()]


def _decode(data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    for start, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        if 4 * data[start::2].count(0) > len(data):  # more than half of these are zeros
            return data.decode(encoding)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        if re.search(rb"[\x00-\x08\x0e-\x1f]", data):
            raise
        return data.decode("cp1252")


class Sample(NamedTuple):
    """What a line of a list names."""

    stem: str  # of the image; the line itself where it names no image that was found
    mask: str = ""  # path of the mask named there; "" where the names join them


class Known(NamedTuple):
    """What was found of a split, and where; lines are looked up in it."""

    root: Path
    images: Mapping[str, str]  # {stem: path}
    masks: Mapping[str, str]  # {stem of the image: path}
    image_folder: Path  # that holds all images
    mask_folder: Path
    suffixes: tuple[str, ...]  # that may follow a stem in a list
    mask_suffixes: tuple[str, ...]  # of masks, with `config.data.mask_suffix`
    aliases: Mapping[str, Iterable[str]]  # {another name of an image: stems}


class Resolved(NamedTuple):
    """What a list names."""

    samples: list[Sample]
    notes: list[str]  # what was guessed, a line each


def resolve(lines: Sequence[str], list_file: Path, known: Known) -> Resolved:
    r"""Returns what the lines of a list name, in order.

    A line names an image by its stem, its file's name, or its path under the images' folder, under
    the root or in full, with or without the suffix, and after it perhaps the image's mask. It may
    also name the mask alone, or a folder, which stands for all images below. A name that stands as
    it is goes before one without quotes and spaces around it, and with `/` for `\`. A list of a
    scene means the scene's images before others: it lies around some images, or has their folder's
    name in its own. Absolute paths of another machine are read by their ends, where each names one
    file alone. A first line of column titles and lines that begin with `#` name nothing.

    Raises:
      DataError: lines of columns that name no image and mask, or a name of several images.
    """
    names = _Names(known, list_file)
    lines = names.of_table(lines, list_file)
    moves = names.moves(lines)
    samples: list[Sample] = []
    faults: list[DataError] = []
    masks: dict[str, str] = {}
    num_moved = 0
    for line in lines:
        try:
            if moved := names.moved(line, moves):
                line, num_moved = moved, num_moved + 1
            found = names.samples(line)
            is_known = found[0].stem in known.images or found[0].stem in known.masks
            is_title = not samples and all(map(_TITLE.fullmatch, re.split("[\t,;]", line)))
            if not is_known and (is_title or line.lstrip().startswith("#")):
                continue
            for sample in found:
                mask = sample.mask or known.masks.get(sample.stem, "")
                if masks.setdefault(sample.stem, mask) != mask:
                    what = f"names {sample.stem} twice, with other masks"
                    raise _UnusableError(what, "leave one line of each image")
            samples += found
        except _UnusableError as error:
            what = f"{error.what} ({clip(line.strip())})"
            faults.append(DataError(str(list_file), what, error.fix))
    if faults:
        more = f", and {len(faults) - 1} more such" if len(faults) > 1 else ""
        raise DataError(faults[0].where, faults[0].what + more, faults[0].fix)
    if not num_moved:
        return Resolved(samples, [])
    ends = ", ".join(f"{clip(head)} is taken as {known.root / own}" for head, own in moves.items())
    return Resolved(samples, [f"{list_file} names files of another machine: {ends}"])


def is_outside(name: str) -> bool:
    """Tells whether a listed name leads out of where it is looked for."""
    name = name.replace("\\", "/")
    return bool(re.match(r"/|[A-Za-z]:/", name)) or ".." in PurePosixPath(name).parts


class _UnusableError(Exception):
    def __init__(self, what: str, fix: str = _FORM):
        super().__init__(what, fix)
        self.what, self.fix = what, fix


class _Names:
    """Looks names up among the images and masks found."""

    def __init__(self, known: Known, list_file: Path):
        self._known, self._beside = known, list_file.parent
        self._words = re.split(r"[_\-. ]+", list_file.stem)
        places = os.path.abspath(known.root), os.path.realpath(known.root), str(known.root)
        self._roots = tuple(os.path.join(place, "") for place in places)
        self._found_masks = frozenset(known.masks.values())
        inside = map(os.path.realpath, (known.root, known.mask_folder))
        self._inside = tuple(os.path.join(place, "") for place in inside)

    def samples(self, line: str) -> list[Sample]:
        """Returns what a line names: one sample, or those of a folder."""
        text = _clean(line)
        local = self._local(text)
        stem = self._stem(line)
        if stem not in self._known.images:  # spaces around a name count only if an image has them
            stem = self._stem(line.strip())
        if local and stem in self._known.images and local != stem:
            what = f"has a line that is the name of 2 images: {clip(stem)}, {clip(local)}"
            raise _UnusableError(what, "write their paths in full")
        if local or stem in self._known.images or stem in self._known.masks:
            return [Sample(local or stem)]
        if stems := self._by_folder.get(text.rstrip("/")):
            return [Sample(stem) for stem in stems]
        if found := self._image(text) or self._of_mask(text):
            return [Sample(found)]
        return [self._columns(text) or Sample(stem)]

    @cached_property
    def _scene(self) -> dict[str, str]:
        """{path in the list's own scene, or name there: stem}; empty where the list has none."""
        if not self._beside.is_relative_to(self._known.root):
            return {}
        above = self._beside
        images: dict[str, str] = {}
        while not images and above != self._known.root:
            below = os.path.join(str(above), "")
            images = {p: s for s, p in self._known.images.items() if p.startswith(below)}
            above = above.parent
        if not images:  # called like one: lists/A/train.txt, A_train.txt
            called = {self._beside.name, *(self._words if len(self._words) > 1 else ())}
            folders = {os.path.dirname(path) for path in self._known.images.values()}
            own = {folder: called.intersection(self._parts(folder)) for folder in folders}
            wanted = set().union(*own.values())
            images = {p: s for s, p in self._known.images.items()
                      if wanted and own[os.path.dirname(p)] == wanted}  # fmt: skip
        if not images or len(images) == len(self._known.images):
            return {}
        found: dict[str, str] = {}
        for path, stem in images.items():
            parts = self._parts(_plain(path))
            for start in range(len(parts)):
                end = "/".join(parts[start:])
                found[end] = "" if end in found else stem  # "" is the name of several
        return {end: stem for end, stem in found.items() if stem}

    def _parts(self, path: str) -> list[str]:
        return os.path.relpath(path, self._known.root).split(os.sep)

    def _local(self, name: str) -> str:
        """Returns the stem of the image with a name in the list's own scene; "" without."""
        return self._scene.get(_plain(name), "") if self._scene else ""

    @cached_property
    def _by_folder(self) -> dict[str, list[str]]:
        """{path of a folder under the images' folder, under the root or in full: stems below}."""
        found: dict[str, dict[str, None]] = defaultdict(dict)
        inner: dict[str, list[str]] = defaultdict(list)
        for stem, path in sorted(self._known.images.items()):
            inner[os.path.dirname(path)].append(stem)
        places = [*self._known.image_folder.parents, self._known.image_folder]
        starts = [p for p in places if p.is_relative_to(self._known.root)]
        for folder, stems in inner.items():
            for above in (Path(folder), *Path(folder).parents):
                names = [os.path.relpath(above, p) for p in starts if p in above.parents]
                for name in {*names, *([str(above), above.name] if names else [])}:
                    found[name] |= dict.fromkeys(stems)
        return {folder: list(stems) for folder, stems in found.items()}

    def _of_mask(self, name: str) -> str:
        """Returns the stem of the image whose mask has a path; "" without."""
        for path in self._paths(name, self._known.mask_folder):
            if stem := self._by_mask.get(_plain(path)):
                return stem
        return ""

    @cached_property
    def _by_mask(self) -> dict[str, str]:
        return {_plain(path): stem for stem, path in self._known.masks.items()}

    def moves(self, lines: Sequence[str]) -> dict[str, str]:
        """Returns {folder of another machine: folder under the root} of what lines name in full.

        A folder is the one that most of these lines agree on, each by the longest end of its path
        that one file alone has.
        """
        rows = [names for line in lines if (names := self._foreign(line))]
        moves: dict[str, str] = {}
        for column in range(2):
            found: Counter[tuple[str, str]] = Counter()
            cells = [row[column] for row in rows if len(row) > column]
            for cell in cells:
                tables = (self._ends[1],) if column else self._ends
                options = [move for table in tables if (move := self._move(cell, table))]
                found[min(options, key=lambda move: len(move[0]), default=("", ""))] += 1
            if found and (best := found.most_common(1)[0])[1] * 2 > len(cells) and best[0][0]:
                moves |= dict([best[0]])
        return moves

    def moved(self, line: str, moves: Mapping[str, str]) -> str:
        """Returns a line with folders of another machine replaced; "" where there are none."""
        text = _clean(line) if moves and self._foreign(line) else ""
        if not any(f"{head}/" in text for head in moves):
            return ""
        for head in sorted(moves, key=len, reverse=True):
            own = f"{moves[head]}/" if moves[head] else ""
            text = text.replace(f"{head}/", own)
        return text

    def _foreign(self, line: str) -> list[str]:
        """Returns the absolute paths, one or two, of a line that names nothing on this machine."""
        text = _clean(line)
        if not _FOREIGN.match(text) or len(text) > _MAX_LINE or "\0" in text:
            return []
        names = [text]
        for match in _SEPARATOR.finditer(text):
            both = [_clean(text[: match.start()]), _clean(text[match.end() :])]
            if all(name.lower().endswith(IMAGE_SUFFIXES) for name in both):
                names = both
                break
        is_own = any(name.startswith(self._roots) or os.path.lexists(name) for name in names)
        return [] if is_own or self._image(text) or ".." in text.split("/") else names

    @cached_property
    def _ends(self) -> tuple[dict[str, str], dict[str, str]]:
        """{end of an image's path: its folder under the root}, and of masks; unique ends alone."""
        tables = []
        for paths in (self._known.images.values(), self._known.masks.values()):
            found: dict[str, str | None] = {}
            for path in paths:
                parts = self._parts(_plain(path))
                for start in range(len(parts)):
                    end = "/".join(parts[start:])
                    found[end] = None if end in found else "/".join(parts[:start])
            tables.append({end: folder for end, folder in found.items() if folder is not None})
        return tables[0], tables[1]

    def _move(self, name: str, ends: Mapping[str, str]) -> tuple[str, str] | None:
        parts = _plain(name).split("/")
        for start in range(1, len(parts)):
            if (own := ends.get("/".join(parts[start:]))) is not None:
                return "/".join(parts[:start]), own
        return None

    def of_table(self, lines: Sequence[str], list_file: Path) -> Sequence[str]:
        """Returns the images, or images and masks, of a table whose first line is titles.

        Lines of any other list stay as they are.
        """
        mark = next((letter for letter in "\t;," if lines and letter in lines[0]), "")
        if not mark or len(lines) < 2 or max(map(len, lines)) > _MAX_LINE:
            return lines
        titles = next(csv.reader(lines[:1], delimiter=mark))
        if len(titles) < 2 or any(map(self._is_image, titles)):
            return lines
        rows = [*csv.reader(lines[1:], delimiter=mark, skipinitialspace=True)]
        if any(len(row) != len(titles) for row in rows):
            return lines
        looks = [*zip(*rows[:_LOOKS], strict=True)]
        images = [n for n, cells in enumerate(looks)
                  if sum(map(self._is_image, cells)) * 2 > len(cells)]  # fmt: skip
        if not images:
            return lines
        image = max(images, key=lambda n: (bool(_TITLE.fullmatch(titles[n])), -n))
        masks = [n for n, title in enumerate(titles) if n != image and _TITLE_OF_MASK.search(title)
                 and all(cell.lower().endswith(IMAGE_SUFFIXES) for cell in looks[n])]  # fmt: skip
        if len(titles) == 1 + len(masks[:1]):  # columns as they are without titles
            has_files = any(
                title.strip(" \"'").lower().endswith(IMAGE_SUFFIXES) for title in titles
            )
            return lines if has_files else lines[1:]
        for number, title in enumerate(titles):
            values = sorted({row[number].strip() for row in rows})
            if _SPLIT_TITLE.fullmatch(title.strip()) and 1 < len(values) <= 20:
                what = f"is a table of several splits, told by its column {clip(title)}"
                fix = "write one list for each; deeplab doctor gives the command"
                raise DataError(str(list_file), f"{what} ({shorten(values, 5)})", fix)
        wanted = (image, *masks[:1])
        return [mark.join(f'"{row[number].strip()}"' for number in wanted) for row in rows]

    def _is_image(self, cell: str) -> bool:
        """Tells whether a cell of a table names an image, or a folder of images."""
        try:
            name = _clean(cell)
            is_folder = name.rstrip("/") in self._by_folder
            return is_folder or bool(self._local(name) or self._image(name))
        except _UnusableError:  # the name of several
            return True

    def _stem(self, name: str) -> str:
        """Returns the stem of a name, which may be a file's."""
        while name.startswith("./"):
            name = name[2:]
        if name in self._known.images:
            return name
        for suffix in self._known.suffixes:
            if suffix and name.lower().endswith(suffix.lower()):
                return name[: -len(suffix)]
        return name

    def _image(self, name: str) -> str:
        """Returns the stem of the image with a name; "" where none was found."""
        if self._stem(name) in self._known.images:
            return self._stem(name)
        for path in self._paths(name, self._known.image_folder):
            if stem := self._by_path.get(_plain(path)):
                return stem
        stems = self._by_name.get(_plain(name), ())
        if len(stems) > 1:
            what = f"is the name of {len(stems)} images: {shorten(stems, 3)}"
            raise _UnusableError(f"has a line that {what}", "write their paths under the root")
        return next(iter(stems), "")

    def _paths(self, name: str, folder: Path) -> Iterator[str]:
        """Yields the paths under the root that a name may stand for."""
        for start in self._roots:
            if name.startswith(start):
                yield str(self._known.root / name.removeprefix(start))
                return
        if ".." not in PurePosixPath(name).parts and not re.match(r"[A-Za-z]:/", name):
            for place in (folder, *folder.parents):
                yield str(place / name.lstrip("/"))
                if place == self._known.root:
                    break

    @cached_property
    def _by_path(self) -> dict[str, str]:
        return {_plain(path): stem for stem, path in self._known.images.items()}

    @cached_property
    def _by_name(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = defaultdict(set)
        for stem in self._known.images:
            found[_plain(stem)].add(stem)
            found[_plain(os.path.basename(stem))].add(stem)
        for alias, stems in self._known.aliases.items():
            found[_plain(alias)] |= set(stems)
        return found

    def _refuse_two_images(self, stem: str, second: str) -> None:
        """Refuses a second column that is the name of another image, not the path of a mask."""
        if second.lower().endswith(IMAGE_SUFFIXES):
            return
        other = self._image(second)
        if other and other != stem:
            what = f"has a line of two images, {clip(stem)} and {clip(other)}"
            fix = "write one image a line, or an image and its mask with the mask's suffix"
            raise _UnusableError(what, fix)

    def _columns(self, text: str) -> Sample | None:
        """Returns the image and mask that a line names; None for a line of one name."""
        samples, absent = set(), ""
        if len(text) > _MAX_LINE or "\0" in text:
            return None
        for match in _SEPARATOR.finditer(text):
            first, second = _clean(text[: match.start()]), _clean(text[match.end() :])
            local = self._local(first)
            stem = first and second and (local or self._image(first))
            if not stem or second in _NUMBERS:
                continue
            if local and self._known.masks.get(local, "").endswith(f"/{second}"):
                samples.add(Sample(local))
                continue
            if mask := self._mask(second):
                self._refuse_two_images(stem, second)
                samples.add(Sample(stem, "" if mask == self._known.masks.get(stem) else mask))
            elif second.lower().endswith(IMAGE_SUFFIXES) and not _SEPARATOR.search(second):
                absent = second
        if len(samples) == 1:
            return samples.pop()
        if samples:
            what = "has a line that names several pairs"
            raise _UnusableError(what, "put the names in quotes")
        if absent and is_outside(absent) and not absent.startswith(self._roots):
            what = f"names a mask that lies outside {self._known.root}; it was not opened"
            raise _UnusableError(what, "name a folder above both as --config.data.root")
        if absent:
            places = dict.fromkeys(self._paths(absent, self._known.mask_folder))
            what = f"names a mask that is not there: looked for {' and '.join(places)}"
            raise _UnusableError(what, "add it, or correct the line")
        self._refuse(text)
        return None

    def _refuse(self, text: str) -> None:
        """Refuses a line of several names, or of a name and a number."""
        fields = [field for field in re.split(r"[\s,;]+", text) if field]
        names = [field for field in fields if field not in _NUMBERS]
        is_known = all(name.lower().endswith(IMAGE_SUFFIXES)
                       or self._image(name) for name in names)  # fmt: skip
        if len(fields) < 2 or not is_known or is_outside(text):
            return
        what = f"has a line of {len(fields)} columns"
        if len(fields) == 2 and fields[1] not in _NUMBERS:
            places = dict.fromkeys(self._paths(_clean(fields[0]), self._known.image_folder))
            what += f" whose image is not there: looked for {' and '.join(places)}"
        raise _UnusableError(what)

    def _mask(self, name: str) -> str:
        """Returns the path of a listed mask; "" where there is none under the root."""
        has_suffix = name.lower().endswith(IMAGE_SUFFIXES)
        for path in self._paths(name, self._known.mask_folder):
            for suffix in ("",) if has_suffix else self._known.mask_suffixes:
                if path + suffix in self._found_masks:
                    return path + suffix
                target = os.path.realpath(path + suffix)
                if target.startswith(self._inside) and os.path.isfile(target):
                    return path + suffix
        return ""


def _clean(text: str) -> str:
    r"""Returns a name without spaces and quotes around it, with `/` for `\`."""
    text = text.strip(" \t,;")
    if len(text) > 1 and text[0] in "\"'" and text.find(text[0], 1) == len(text) - 1:
        text = text[1:-1].strip()
    text = text.replace("\\", "/")
    while text.startswith("./"):
        text = text[2:]
    return text


def _plain(path: str) -> str:
    """Returns a path without the suffix of a picture, in one form of Unicode."""
    stem, suffix = os.path.splitext(path)
    return unicodedata.normalize("NFC", stem if suffix.lower() in IMAGE_SUFFIXES else path)
