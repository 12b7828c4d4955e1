"""All that is known of a data set once each of its files was opened."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from deeplab_jax.config import Config, DataConfig, freeze, get_config
from deeplab_jax.data.classes import CLASS_NAMES
from deeplab_jax.data.files import find_files, find_layout
from deeplab_jax.data.images import read_size
from deeplab_jax.data.labels import (
    INVALID,
    Classes,
    ColorTable,
    label_map,
    open_classes,
    read_classes,
)
from deeplab_jax.doctor.findings import Finding
from deeplab_jax.doctor.inspect import Facts, Sample, Values, infer_values, scan
from deeplab_jax.doctor.layouts import Layout
from deeplab_jax.errors import ConfigError, DataError

# Wraps the facts as they come, to show how far the reading is; also gets their number.
Watch = Callable[[Iterator[Facts], int], Iterator[Facts]]


@dataclass
class Survey:
    """All that is known of a data set.

    Attributes:
      root: paths are told relative to it.
      data: `config.data` as given or guessed.
      facts: of every sample.
      splits: the training split first.
      values: what the masks' values seem to mean.
      meaning: {value: class or 255}; a value that is absent means nothing.
      class_names: of the classes.
      batch_size: of the recipe, or None without one.
      is_described: it was said what values mean; else they were inferred.
      foreign: suffixes of files that are neither images nor masks of the data set.
      faults: what was found before any file was opened.
    """

    root: Path
    data: DataConfig
    facts: list[Facts]
    splits: tuple[str, ...]
    values: Values
    meaning: dict[int, int]
    class_names: tuple[str, ...]
    batch_size: int | None = None
    is_described: bool = False
    foreign: Counter[str] = field(default_factory=Counter)
    faults: list[Finding] = field(default_factory=list)

    def of_split(self, split: str) -> list[Facts]:
        """Returns the facts of a split's samples."""
        return [facts for facts in self.facts if facts.sample.split == split]

    def name(self, path: str) -> str:
        """Returns a path as it is shown."""
        return str(Path(path).relative_to(self.root)) if self.root in Path(path).parents else path

    def class_counts(self, facts: Facts) -> dict[int, int]:
        """Returns {class or 255: pixels} of a mask, without what means nothing."""
        counts: dict[int, int] = defaultdict(int)
        for value, count in facts.counts.items():
            if value in self.meaning:
                counts[self.meaning[value]] += count
        return counts


def survey_recipe(config: Config, watch: Watch) -> Survey:
    """Returns what a recipe's own data holds, masks read as the recipe says.

    Args:
      config: checked.
      watch: sees every sample as it comes.

    Raises:
      ConfigError: its classes do not fit together, or its source is no folder.
      DataError: `classes.json` cannot be used.
    """
    data = config.data
    if data.source != "folder":
        fix = "check the folder it was made from: --config.data.source=folder"
        raise ConfigError("config.data.source", f"is {data.source}, not folder", fix)
    splits = tuple(dict.fromkeys((data.train_split, data.val_split)))
    classes = open_classes(data, config.model.num_classes)
    return _survey(data, splits, classes, watch, batch_size=config.train.batch_size)


def survey_folder(layout: Layout, watch: Watch) -> Survey:
    """Returns what a folder holds, classes inferred where nothing names them.

    Args:
      layout: where its images and masks lie.
      watch: sees every sample as it comes.

    Raises:
      DataError: `classes.json` cannot be used.
    """
    recipe = freeze(get_config(layout.fields["dataset"]))
    data = dataclasses.replace(recipe.data, root=str(layout.root), **layout.fields)
    if data.dataset in CLASS_NAMES:
        return _survey(
            data, layout.splits, open_classes(data, len(CLASS_NAMES[data.dataset])), watch
        )
    classes = None
    path = layout.root / "classes.json"
    if path.is_file():
        classes = read_classes(path)
        if _holds_colors(data, layout.splits[0]):
            data = dataclasses.replace(data, mask_format="color")
    return _survey(data, layout.splits, classes, watch, is_certain=data.mask_format == "color")


def _holds_colors(data: DataConfig, split: str) -> bool:
    """Tells whether the first mask that can be opened is one of colours."""
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
    data: DataConfig,
    splits: tuple[str, ...],
    classes: Classes | None,
    watch: Watch,
    batch_size: int | None = None,
    is_certain: bool = True,
) -> Survey:
    """Opens everything; `is_certain` tells that masks hold what `data` says of `classes`."""
    samples, foreign, faults = _find_samples(data, splits)
    table = ColorTable(classes) if classes and data.mask_format == "color" else None
    facts = list(watch(scan(samples, table), len(samples)))
    values = None if classes and is_certain else infer_values(facts, data.ignore_values)
    if classes and values and len(classes.names) != len(values.classes):
        values = None  # named ones count, whether or not they occur
    is_described = classes is not None and values is None
    if classes is not None and values is None:
        known = label_map(data, len(classes.names))
        meaning = {int(v): int(known[v]) for v in (known != INVALID).nonzero()[0]}
        ignored = [value for value, number in meaning.items() if number == 255]
        values = infer_values(facts, ignored)
    else:
        assert values is not None
        meaning = dict.fromkeys(values.ignored, 255)
        meaning |= {value: number for number, value in enumerate(values.classes)}
    names = classes.names if classes else tuple(f"class_{i}" for i in range(len(values.classes)))
    root = Path(data.root)
    return Survey(root, data, facts, splits, values, meaning, names, batch_size, is_described,
                  foreign, faults)  # fmt: skip


def _find_samples(
    data: DataConfig, splits: Sequence[str]
) -> tuple[list[Sample], Counter[str], list[Finding]]:
    """Returns the samples of all splits, the suffixes of other files, and what is wrong so far."""
    samples, faults = [], []
    used: set[str] = set()
    folders: set[Path] = set()
    for split in splits:
        passed_over: list[DataError] = []
        try:
            files = find_files(data, split, passed_over.append)
        except DataError as error:
            faults += _faults(f"split {split} cannot be listed", [error])
            continue
        faults += _faults(f"links or names of split {split} that cannot be", passed_over)
        layout = find_layout(data, split)
        folders |= {Path(data.root, layout.images), Path(data.root, layout.masks)}
        used |= {*files.images.values(), *files.masks.values()}
        for stem in files.stems:
            samples.append(
                Sample(split, stem, files.images.get(stem, ""), files.masks.get(stem, ""))
            )
    inside = {folder for folder in folders if not folders & set(folder.parents)}
    foreign = Counter(
        "hidden" if path.name.startswith(".") else path.suffix or "without suffix"
        for folder in inside
        for path in folder.rglob("*")
        if str(path) not in used and path.is_file()
    )
    return samples, foreign, faults


def _faults(title: str, errors: Sequence[DataError]) -> list[Finding]:
    """Returns a finding for each way to mend the errors."""
    by_fix: dict[str, list[str]] = {}
    for error in errors:
        by_fix.setdefault(error.fix, []).append(f"{error.where}: {error.what}")
    return [Finding("error", "files", title, fix, tuple(items)) for fix, items in by_fix.items()]
