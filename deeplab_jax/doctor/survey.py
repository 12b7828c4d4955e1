"""The survey of a data set: facts of all samples, the meaning of its masks' values, findings."""

import dataclasses
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deeplab_jax.config import IGNORE_INDEX, Config, DataConfig, LossConfig
from deeplab_jax.data import labels
from deeplab_jax.data.classes import CLASS_NAMES
from deeplab_jax.data.files import find_files
from deeplab_jax.doctor.findings import Finding, to_png
from deeplab_jax.doctor.layouts import GuessedLayout
from deeplab_jax.doctor.names import Masks, Named, find_names, is_names_file
from deeplab_jax.doctor.scan import COLOR_MODES, Color, Pair, SampleFacts, scan, scan_sample
from deeplab_jax.doctor.values import Values, infer_values
from deeplab_jax.errors import ConfigError, DataError
from deeplab_jax.utils.progress import counting

_BLACK = (0, 0, 0)
_MAX_CLASSES = 255
_MOSTLY = 6  # times as many masks in colour that encode an index as that do not
_COLORS = "holds colours"  # of a mask that would encode an index if the others did


@dataclass(frozen=True)
class Survey:
    """Facts of a data set from opening each of its files."""

    data: DataConfig  # as given or guessed
    splits: tuple[str, ...]  # names of the splits, the training split first
    facts: list[SampleFacts]  # one for each sample
    values: Values  # inferred meaning of the masks' values
    meaning: dict[int, int]  # {value: class or 255}; a value that is absent means nothing
    class_names: tuple[str, ...]  # of classes 0, ..., C - 1
    batch_size: int | None  # of the recipe; None without a recipe
    is_described: bool  # recipe, layout or `classes.json` say what values mean; else it is inferred
    palette: tuple[Color, ...]  # colours of the classes, where masks hold undeclared ones; else ()
    names_file: str  # what names the classes, in words: a file; "" where they are numbered
    unused_names: tuple[str, ...]  # other such files, each with the reason why it does not fit
    foreign: Counter[str]  # {suffix: number} of files that are no images or masks of the set
    faults: list[Finding]  # findings from before all files were opened
    weighs_classes: bool = False  # the recipe's loss is other than plain cross entropy

    @property
    def root(self) -> Path:
        """The folder that paths are shown relative to."""
        return Path(self.data.root)

    @property
    def color_masks(self) -> list[SampleFacts]:
        """Facts of the samples whose masks hold undeclared colours."""
        return [f for f in self.facts if f.mask_kind == "color"]

    @property
    def colors(self) -> Counter[Color]:
        """Pixels of each undeclared colour."""
        return _colors_of(self.color_masks)

    def of_split(self, split: str) -> list[SampleFacts]:
        """Returns the facts of a split's samples."""
        return [facts for facts in self.facts if facts.pair.split == split]

    def name(self, path: str) -> str:
        """Returns a path as it is shown: relative to the root, if it lies there."""
        return _shown(self.data, Path(path)) if path else path

    def further(self) -> dict[str, str]:
        """Returns {lone image or mask: image whose name it has, and more}: 1_inst.png beside 1."""
        end = re.fullmatch(r"\*([^*{}]+)\.\*", Path(self.data.images).name)  # of a pattern of files
        text = end[1] if end else ""
        whole = {(p.split, p.stem.removesuffix(text)): p.image
                 for p in self.pairs if p.image and p.mask}  # fmt: skip
        found = {}
        for pair in self.pairs:
            path, stem = pair.image or pair.mask, pair.stem.removesuffix(text)
            cuts = (cut.start() for cut in re.finditer(r"[-_. (]", stem))
            bases = [key for cut in cuts if (key := (pair.split, stem[:cut])) in whole]
            if bases and path and not (pair.image and pair.mask):
                found[path] = whole[bases[-1]]
        return found

    def in_black_and_white(self, suffix: str) -> str:
        """Returns a command that makes PNG of 0 and 255 of the masks with a suffix."""
        place = re.sub(r"\{[^{}]*\}", "*", self.data.masks)
        if not Path(place).suffix:
            place += f"/**/*{self.data.mask_suffix}.*"
        change = ".convert('L').point(lambda v: 255 * (v > 127))"
        return to_png(self.root, str(Path(place).with_suffix(suffix)), change)

    @property
    def pairs(self) -> list[Pair]:
        """Files of all samples."""
        return [facts.pair for facts in self.facts]

    def class_counts(self, facts: SampleFacts) -> dict[int, int]:
        """Returns {class or 255: pixels} of a mask, without values that mean nothing."""
        counts: dict[int, int] = defaultdict(int)
        for value, count in facts.counts.items():
            if value in self.meaning:
                counts[self.meaning[value]] += count
        if facts.transparent and self.data.mask_format != "color":  # else they are counted
            counts[IGNORE_INDEX] += facts.transparent
        return counts


def survey_recipe(config: Config) -> Survey:
    """Returns a survey of the data of a checked recipe, masks read as the recipe says.

    Raises:
      ConfigError: the classes do not fit together, or the source is no folder.
      DataError: `classes.json` cannot be used.
    """
    data = config.data
    if data.source != "folder":
        fix = "check the folder it was made from: --config.data.source=folder"
        raise ConfigError("config.data.source", f"is {data.source}, not folder", fix)
    splits = tuple(dict.fromkeys((data.train_split, data.val_split)))
    classes = labels.open_classes(data, config.model.num_classes)
    found = _survey(data, splits, classes, batch_size=config.train.batch_size)
    return dataclasses.replace(found, weighs_classes=config.loss != LossConfig())


def survey_folder(layout: GuessedLayout) -> Survey:
    """Returns a survey of a folder, classes inferred where nothing names them.

    Raises:
      DataError: `classes.json` cannot be used.
    """
    found = _survey_folder(layout.data, layout.splits)
    return dataclasses.replace(found, faults=[*found.faults, *layout.findings])


def _survey_folder(data: DataConfig, splits: tuple[str, ...]) -> Survey:
    if data.dataset in CLASS_NAMES:
        return _survey(data, splits, labels.open_classes(data, len(CLASS_NAMES[data.dataset])))
    path = Path(data.root) / "classes.json"
    if not path.is_file():
        return _survey(data, splits, None)
    classes = labels.read_classes(path, "color")
    if _holds_colors(data, splits[0], classes.palette):
        data = dataclasses.replace(data, mask_format="color")
    classes = labels.read_classes(path, data.mask_format)
    return _survey(data, splits, classes, is_certain=data.mask_format == "color")


def _holds_colors(data: DataConfig, split: str, palette: np.ndarray) -> bool:
    """Tells whether masks hold colours: those of `classes.json`, or any that encode no index."""
    try:
        paths = find_files(data, split).masks.values()
    except DataError:
        return False
    declared = {*map(tuple, palette.tolist())}
    for path in paths:
        facts = scan_sample(Pair(split, "", "", path))
        if facts.mask_kind == "color":
            return True
        # An index, or the very colours that the file says.
        if facts.colors and facts.colors.keys() != {_BLACK}:
            return facts.colors.keys() <= declared
        if facts.mask_kind and facts.mask_mode not in COLOR_MODES:
            return False
    return False


def _survey(
    data: DataConfig, splits: tuple[str, ...], classes: labels.Classes | None,
    batch_size: int | None = None, is_certain: bool = True,
) -> Survey:  # fmt: skip
    """Opens every file; infers the values' meaning unless `classes` are named and `is_certain`."""
    pairs, foreign, faults = _find_pairs(data, splits)
    table = labels.ColorTable(classes) if classes and data.mask_format == "color" else None
    facts = []
    with counting(len(pairs), "images read", sys.stderr, "images") as count:
        for found in scan(pairs, table):
            facts.append(found)
            count()
    is_described = classes is not None and is_certain
    palette: tuple[Color, ...] = ()
    names_file = ""
    unused: tuple[str, ...] = ()
    if not is_described:
        palette = _settle_colors(facts) if classes is None else ()
        values = infer_values(facts, data.ignore_values)
        values = values._replace(classes=_filled(values.classes))
        names = tuple(f"class_{i}" for i in range(len(palette or values.classes)))
        if classes is None:
            named, unused = _find_names(data, facts, values, palette)
            if named is not None:
                names, palette = named.names, named.palette
                names_file = _shown(data, named.path) + named.more
                values = values._replace(classes=named.values)
        if palette:
            values = Values(tuple(range(len(palette))), (), {}, {}, {}, {})
            _count_classes(facts, palette)
        meaning = dict.fromkeys(values.ignored, IGNORE_INDEX)
        meaning |= {value: number for number, value in enumerate(values.classes)}
    if classes is not None:
        # Named classes count, whether or not they occur.
        is_described = is_described or len(classes.names) != len(values.classes)
        names = classes.names
    if is_described:
        known = labels.label_map(data, len(names))
        meaning = {int(v): int(known[v]) for v in (known != labels.INVALID).nonzero()[0]}
        values = infer_values(facts, [v for v, c in meaning.items() if c == IGNORE_INDEX])
    return Survey(data, splits, facts, values, meaning, names, batch_size, is_described, palette,
                  names_file, unused, foreign, faults)  # fmt: skip


def _shown(data: DataConfig, path: Path) -> str:
    root = Path(data.root)
    return str(path.relative_to(root) if root in path.parents else path)


def _filled(classes: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the classes with the values between that never occur, unless most do not."""
    first, last = (classes[0], classes[-1]) if classes else (0, -1)
    is_row = first <= 1 and 2 * len(classes) > last
    return tuple(range(first, last + 1)) if is_row else classes


def _colors_of(facts: Iterable[SampleFacts]) -> Counter[Color]:
    total: Counter[Color] = Counter()
    for f in facts:
        total.update(f.colors)
    return total


def _settle_colors(facts: Sequence[SampleFacts]) -> tuple[Color, ...]:
    """Decides whether masks stored in colour hold an index, alike for all of them.

    Returns:
      The colours to be declared, the most frequent first; () where masks hold an index, or too few
      or too many colours.
    """
    stored = [f for f in facts if f.colors]
    if 2 * len(stored) <= sum(bool(f.mask_size) for f in facts):
        return ()
    odd = [f for f in stored if f.mask_kind == "color"]
    index = [f for f in stored if f.mask_kind != "color" and f.colors.keys() != {_BLACK}]
    used = _colors_of(index)
    is_grey = all(r == g == b for r, g, b in used)
    is_index = is_grey or sum(any(color[c] for color in used) for c in range(3)) == 1
    if is_index and _MOSTLY * len(odd) <= len(index):  # few odd ones are mistakes
        return ()
    for f in stored:
        if f.mask_kind != "color":
            f.mask_kind, f.mask_error, f.counts, f.interior = "color", _COLORS, {}, {}
    colors = _colors_of(stored)
    is_few = 2 <= len(colors) <= _MAX_CLASSES
    return tuple(color for color, _ in colors.most_common()) if is_few else ()


def _count_classes(facts: Sequence[SampleFacts], palette: tuple[Color, ...]) -> None:
    """Counts the classes of masks in colours by their colours."""
    number = {color: n for n, color in enumerate(palette)}
    for f in facts:
        if f.mask_kind == "color":
            f.counts = {number[color]: count for color, count in f.colors.items()}


def _find_names(
    data: DataConfig, facts: Sequence[SampleFacts], values: Values, palette: tuple[Color, ...]
) -> tuple[Named | None, tuple[str, ...]]:  # fmt: skip
    """Returns the classes that a file beside the masks names, and the files that do not fit."""
    root = Path(data.root)
    place = next((Path(f.pair.mask) for f in facts if f.pair.mask), root)
    folders = [root, *(folder for folder in place.parents if root in folder.parents)]
    shown: dict[int, set[Color]] = defaultdict(set)
    for f in facts:
        for value, color in f.palette.items():
            shown[value].add(color)
    agreed = {value: next(iter(found)) for value, found in shown.items() if len(found) == 1}
    ignored = {*data.ignore_values, *values.ignored}
    masks = Masks(values.classes, ignored, palette, agreed)
    named, unused = find_names(folders, masks, data.masks)
    return named, tuple(f"{_shown(data, path)}: {reason}" for path, reason in unused)


def _find_pairs(
    data: DataConfig, splits: Sequence[str]
) -> tuple[list[Pair], Counter[str], list[Finding]]:
    """Returns the files of all splits, the suffixes of other files, and the findings so far."""
    pairs: list[Pair] = []
    faults: list[Finding] = []
    folders: set[Path] = set()
    used: set[str] = set()
    for split in splits:
        passed_over: list[DataError] = []
        try:
            files = find_files(data, split, passed_over.append)
        except DataError as error:
            faults += _faults(f"split {split} cannot be listed", [error])
            continue
        faults += _faults(f"links or names of split {split} that cannot be", passed_over)
        folders |= set(map(Path, files.folders))
        used |= {*files.images.values(), *files.masks.values()}
        images, masks = files.images, files.masks
        pairs += [Pair(split, s, images.get(s, ""), masks.get(s, "")) for s in files.stems]
    return pairs, _foreign(folders, used), faults


def _foreign(folders: set[Path], used: set[str]) -> Counter[str]:
    """Returns {suffix: number} of the files in the folders that are not used."""
    outer = {folder for folder in folders if not folders & set(folder.parents)}
    paths = (path for folder in outer for path in folder.rglob("*") if str(path) not in used)
    return Counter("hidden" if path.name.startswith(".") else path.suffix or "without suffix"
                   for path in paths if path.is_file() and not is_names_file(path))  # fmt: skip


def _faults(title: str, errors: Sequence[DataError]) -> list[Finding]:
    """Returns one finding for each way to mend the errors."""
    by_fix: dict[str, list[str]] = {}
    for error in errors:
        by_fix.setdefault(error.fix, []).append(f"{error.where}: {error.what}")
    return [Finding("error", "files", title, fix, tuple(items)) for fix, items in by_fix.items()]
