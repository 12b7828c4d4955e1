"""The survey of a data set: facts of all samples, the meaning of its masks' values, findings."""

import dataclasses
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from deeplab_jax.config import IGNORE_INDEX, Config, DataConfig
from deeplab_jax.data import labels
from deeplab_jax.data.classes import CLASS_NAMES
from deeplab_jax.data.files import find_files
from deeplab_jax.data.images import read_size
from deeplab_jax.doctor.findings import Finding
from deeplab_jax.doctor.layouts import GuessedLayout
from deeplab_jax.doctor.scan import Color, Pair, SampleFacts, scan
from deeplab_jax.doctor.values import Values, infer_values
from deeplab_jax.errors import ConfigError, DataError
from deeplab_jax.utils.progress import counting


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
    foreign: Counter[str]  # {suffix: number} of files that are no images or masks of the set
    faults: list[Finding]  # findings from before all files were opened

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
        total: Counter[Color] = Counter()
        for facts in self.color_masks:
            total.update(facts.colors)
        return total

    @property
    def is_mostly_color(self) -> bool:
        """Whether more than half of the readable masks hold undeclared colours."""
        return 2 * len(self.color_masks) > sum(bool(f.mask_size) for f in self.facts)

    def of_split(self, split: str) -> list[SampleFacts]:
        """Returns the facts of a split's samples."""
        return [facts for facts in self.facts if facts.pair.split == split]

    def name(self, path: str) -> str:
        """Returns a path as it is shown: relative to the root, if it lies there."""
        return str(Path(path).relative_to(self.root)) if self.root in Path(path).parents else path

    def class_counts(self, facts: SampleFacts) -> dict[int, int]:
        """Returns {class or 255: pixels} of a mask, without values that mean nothing."""
        counts: dict[int, int] = defaultdict(int)
        for value, count in facts.counts.items():
            if value in self.meaning:
                counts[self.meaning[value]] += count
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
    return _survey(data, splits, classes, batch_size=config.train.batch_size)


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
    if _holds_colors(data, splits[0]):
        data = dataclasses.replace(data, mask_format="color")
    classes = labels.read_classes(path, data.mask_format)
    return _survey(data, splits, classes, is_certain=data.mask_format == "color")


def _holds_colors(data: DataConfig, split: str) -> bool:
    """Tells whether the first mask that can be opened holds colours."""
    try:
        paths = find_files(data, split).masks.values()
    except DataError:
        return False
    for path in paths:
        try:
            read_size(path)  # refuses pipes, which would wait
        except DataError:
            continue
        with Image.open(path) as mask:
            return mask.mode in ("RGB", "RGBA")
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
    if not is_described:
        values = infer_values(facts, data.ignore_values)
        meaning = dict.fromkeys(values.ignored, IGNORE_INDEX)
        meaning |= {value: number for number, value in enumerate(values.classes)}
        names = tuple(f"class_{i}" for i in range(len(values.classes)))
    if classes is not None:
        # Named classes count, whether or not they occur.
        is_described = is_described or len(classes.names) != len(values.classes)
        names = classes.names
    if is_described:
        known = labels.label_map(data, len(names))
        meaning = {int(v): int(known[v]) for v in (known != labels.INVALID).nonzero()[0]}
        values = infer_values(facts, [v for v, c in meaning.items() if c == IGNORE_INDEX])
    return Survey(data, splits, facts, values, meaning, names, batch_size, is_described, foreign,
                  faults)  # fmt: skip


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
                   for path in paths if path.is_file())  # fmt: skip


def _faults(title: str, errors: Sequence[DataError]) -> list[Finding]:
    """Returns one finding for each way to mend the errors."""
    by_fix: dict[str, list[str]] = {}
    for error in errors:
        by_fix.setdefault(error.fix, []).append(f"{error.where}: {error.what}")
    return [Finding("error", "files", title, fix, tuple(items)) for fix, items in by_fix.items()]
