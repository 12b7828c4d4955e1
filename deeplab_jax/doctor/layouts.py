"""Guesses where the images and masks of a folder lie, as fields of `config.data`.

The three official layouts are known by name. All others are found by content: two folders whose
files have the same names (or the same but for a suffix), of which one has a name usual for masks.
"""

import functools
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from deeplab_jax.config import DataConfig, freeze, get_config
from deeplab_jax.data.files import IMAGE_SUFFIXES, LOSSY_SUFFIXES
from deeplab_jax.errors import DataError

_TRAIN = ("trainaug", "train", "training")
_VAL = ("val", "valid", "validation", "dev", "eval", "test", "testing")
# Whole words, of which some are written as one: "trainannot", "SegmentationClass", "pngmasks".
_MASK_WORDS = re.compile(
    r"(?<![a-z])((mask|label|annot|segm)(?!l?ed)[a-z]*"
    r"|[a-z]*(mask|label|annot|annotation|segmentation)s?|targets?|ground_?truths?"
    r"|gts?|gtfine|gtcoarse|segs?|semseg|l|y)(?![a-z])"
)
# Beside the masks of classes there often are pictures of them, instances or outlines.
_OTHER_WORDS = re.compile(
    r"(?<![a-z])([a-z]*objects?|instances?(ids?)?|colou?r(s|ed)?|edges?|boundar(y|ies)"
    r"|overlays?|vis|visuali[sz]ations?|panoptic)(?![a-z])"
)
_LIST_FOLDERS = ("", "ImageSets/Segmentation", "ImageSets", "splits", "lists")
_MAX_DEPTH = 6
_MAX_LIST_BYTES = 1 << 26
_MAX_SEEN = 8  # folders named where none match
_ENOUGH = 0.5  # of the smaller folder's names must be found in the other

_Folders = dict[str, set[str]]  # {folder under the root: stems of its images}; "" is the root


@dataclass(frozen=True)
class GuessedLayout:
    """Where a data set lies."""

    data: DataConfig  # reads the data set
    splits: tuple[str, ...]  # names, the training split first; one name if there is no split
    is_split: bool  # whether training and validation images are told apart
    why: str  # how the layout was recognised, in words


def guess(root: str | Path) -> GuessedLayout:
    """Returns the layout of the data set in a folder.

    Raises:
      DataError: `root` is no folder, or nothing in it looks like images with masks.
    """
    root = Path(root).resolve()
    if not root.is_dir():
        raise DataError(str(root), "is not a folder", "name the folder of your images and masks")
    if layout := _official(root):
        return layout
    folders = _folders(root)
    if layout := _by_content(root, folders):
        return layout
    seen = [f"{name or '.'} ({len(stems)})" for name, stems in folders.items()]
    more = f" and {len(seen) - _MAX_SEEN} more" if len(seen) > _MAX_SEEN else ""
    what = "holds no images with masks of the same names; folders with pictures: "
    what += ", ".join(seen[:_MAX_SEEN]) + more or "none"
    fix = "lay them out as images/train/NAME.jpg and labels/train/NAME.png, or describe where "
    fix += "they are in a recipe (config.data.images, masks, mask_suffix) and use --config"
    raise DataError(str(root), what, fix)


_TOPS = {"voc": ("VOCdevkit", "VOC2012"), "ade20k": ("ADE20k", "ADEChallengeData2016"),
         "cityscapes": ("CityScapes",)}  # fmt: skip
_VOC_VAL = 1449  # images


def _official(root: Path) -> GuessedLayout | None:
    """Returns an official layout at, above or below `root`."""
    for name, top in _TOPS.items():
        for depth in range(len(top) + 1):
            # Also where the user names a folder inside, such as VOCdevkit.
            if depth and root.parts[-depth:] != top[:depth]:
                continue
            base = root.parents[depth - 1] if depth else root
            if train := _official_train_split(name, base.joinpath(*top)):
                row = freeze(get_config(name)).data
                data = replace(row, root=str(base), train_split=train, val_split="val")
                return GuessedLayout(data, (train, "val"), True, f"the official layout of {name}")
    return None


def _official_train_split(name: str, top: Path) -> str:
    """Returns the training split of an official layout; "" where the layout is not there."""
    if name == "voc":
        lists = top / "ImageSets" / "Segmentation"
        # The development kit's own list of 1464 where SBD's masks were not merged.
        train = "trainaug" if (lists / "trainaug.txt").is_file() else "train"
        is_there = all((lists / f"{split}.txt").is_file() for split in (train, "val"))
        # Many data sets of other classes are laid out so: only this one has that many.
        is_there = is_there and len((lists / "val.txt").read_bytes().split()) == _VOC_VAL
        return train if is_there else ""
    folders = ("annotations/training", "annotations/validation")
    folders = folders if name == "ade20k" else ("gtFine/train", "gtFine/val")
    return "train" if all((top / folder).is_dir() for folder in folders) else ""


class _Place(NamedTuple):
    """A pair of folders, {split} in place of the split's name."""

    images: str
    masks: str
    suffix: str


@dataclass
class _Group:
    splits: list[str] = field(default_factory=list)
    pairs: int = 0
    stems: set[str] = field(default_factory=set)


def _by_content(root: Path, folders: _Folders) -> GuessedLayout | None:
    groups: dict[_Place, _Group] = defaultdict(_Group)
    for images, masks, suffix, pairs in _matches(root, folders):
        place, split = _template(images, masks, suffix)
        group = groups[place]
        group.pairs += pairs
        group.stems |= folders[images]
        if split and split not in group.splits:
            group.splits.append(split)
    best = max(groups.items(), key=lambda item: (item[1].pairs, item[0]), default=None)
    return best and _layout(root, *best)


def _layout(root: Path, place: _Place, group: _Group) -> GuessedLayout:
    (images, masks, suffix), lists = place, ""
    why = f"{images} with {masks}" + (f", masks named NAME{suffix}" if suffix else "")
    splits = _ordered(_with_missing(root, place, group.splits))
    if not splits:
        lists, splits = _lists(root, place, group.stems)
        why += f", lists {lists}" if splits else ""
    data = freeze(get_config("folder")).data
    if (images, masks) == ("{split}", "{split}annot"):
        data = replace(data, ignore_values=(11,))
        why += " (CamVid's public layout, where 11 is void)"
    is_split = len(splits) > 1
    if not is_split:
        splits, why = splits[:1] or ("all",), f"{why}, without a split"
        images, masks = (folder.replace("{split}", splits[0]) for folder in (images, masks))
    data = replace(data, root=str(root), images=images, masks=masks, mask_suffix=suffix,
                   split_file=lists, train_split=splits[0], val_split=splits[:2][-1])  # fmt: skip
    return GuessedLayout(data, splits, is_split, why)


def _with_missing(root: Path, place: _Place, splits: list[str]) -> list[str]:
    """Returns the splits, and those to train or validate on that lack matching files.

    A test split without masks is usual, and is not added.
    """
    if "{split}" not in place.images:
        return splits
    for names in (_TRAIN, _VAL[:-2]):
        if not any(split.lower() in names for split in splits):
            there = (n for n in names if (root / place.images.replace("{split}", n)).is_dir())
            splits = [*splits, *there]
    return splits


def _ordered(splits: list[str]) -> tuple[str, ...]:
    """Returns a training split, a validation split, then the others; known names alone."""
    known = {split.lower(): split for split in splits}
    found = ([known[name] for name in names if name in known] for names in (_TRAIN, _VAL))
    chosen = [names[0] for names in found if names]
    return (*chosen, *sorted(set(splits) - set(chosen)))


def _folders(root: Path) -> _Folders:
    """Returns {folder under `root`: stems of its image files}; "" is `root` itself."""
    found = {}
    for path, names, files in os.walk(root):
        relative = Path(path).relative_to(root)
        names[:] = sorted(n for n in names if not n.startswith((".", "__")))
        if len(relative.parts) >= _MAX_DEPTH:
            names.clear()
        stems = {Path(file).stem for file in files if _is_image(file)}
        if stems:
            found["" if relative == Path(".") else relative.as_posix()] = stems
    return found


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def _matches(root: Path, folders: _Folders) -> list[tuple[str, str, str, int]]:
    """Returns (image folder, mask folder, suffix of masks, pairs) for all folders that match."""
    found = []
    for name, stems in folders.items():
        others = defaultdict(list)
        for other in folders:
            if _is_pair(name, other):
                others[sum(_common(name, other))].append(other)
        # The nearest first: numbered files have the same names in every folder.
        for nearness in sorted(others, reverse=True):
            pairs, suffix, other = max((*_suffix(stems, folders[o]), o) for o in others[nearness])
            if pairs:
                found.append((name, other, suffix, pairs))
                break
    # A folder with a name usual for pictures of masks holds images only if no other folder does.
    found = [f for f in found if not _is_other(f[0])] or found
    paired = {name for pair in found for name in pair[:2]}
    for name in folders.keys() - paired:
        stems = folders[name]
        if _is_other(name) or (paired and any(map(_is_mask_word, name.split("/")))):
            continue
        pairs, suffix = _longer(stems, stems, _ENOUGH * len(stems) / 2, _is_mask_word)
        if pairs := pairs or _twins(root / name):
            found.append((name, name, suffix, pairs))
    return sorted(found)


def _is_pair(images: str, masks: str) -> bool:
    """Tells whether two folders of one split have names of images and masks, common parts aside."""
    start, end = _common(images, masks)
    one, other = (n.split("/")[start : n.count("/") + 1 - end] for n in (images, masks))
    is_named = any(map(_is_mask_word, other)) and not any(map(_is_mask_word, one))
    is_one_split = len({_split_of(images), _split_of(masks)} - {None}) < 2
    return is_named and is_one_split and not any(map(_is_other, other))


def _common(one: str, other: str) -> tuple[int, int]:
    """Returns the number of parts that two paths share at their start, and at their end."""
    parts = [name.split("/") if name else [] for name in (one, other)]
    start = _num_equal(*parts)
    return start, _num_equal(*(part[start:][::-1] for part in parts))


def _num_equal(one: list[str], other: list[str]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _words(part: str) -> str:
    """Returns a part of a path in lower case, "gtFine" and "SegmentationClass" as two words."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", part).lower()


@functools.cache
def _is_mask_word(part: str) -> bool:
    return bool(_MASK_WORDS.search(_words(part)))


@functools.cache
def _is_other(folder: str) -> bool:
    return bool(_OTHER_WORDS.search(_words(folder.rsplit("/", 1)[-1])))


def _split_of(folder: str) -> str | None:
    """Returns the name of a split in a path, as it is written there."""
    for part in folder.split("/"):
        for split in sorted((*_TRAIN, *_VAL), key=len, reverse=True):
            # "train", and "trainannot" or "train_labels"
            rest = part.lower().removeprefix(split)
            if rest != part.lower() and (not rest or _MASK_WORDS.match(rest.lstrip("_- "))):
                return part[: len(split)]
    return None


def _suffix(stems: set[str], masks: set[str]) -> tuple[int, str]:
    """Returns (pairs, suffix) of the masks' names over the images'; (0, "") where few match."""
    enough = _ENOUGH * min(len(stems), len(masks))
    pairs = len(stems & masks)
    return (pairs, "") if pairs >= enough else _longer(stems, masks, enough, lambda suffix: True)


def _longer(
    stems: set[str], masks: set[str], enough: float, is_wanted: Callable[[str], bool]
) -> tuple[int, str]:
    """Returns (pairs, suffix) of the suffix that most often follows a stem in `masks`."""
    cuts = ((mask[:cut], mask[cut:]) for mask in masks for cut in range(1, len(mask)))
    counts = Counter(end for stem, end in cuts if stem in stems and is_wanted(end))
    suffix, pairs = max(counts.items(), key=lambda c: (c[1], c[0]), default=("", 0))
    return (pairs, suffix) if pairs >= enough else (0, "")


def _twins(folder: Path) -> int:
    """Returns the number of stems that a folder has both as a photograph and as a PNG."""
    files = [Path(name) for name in os.listdir(folder) if _is_image(name)]
    kinds = [{f.stem for f in files if (f.suffix.lower() in LOSSY_SUFFIXES) == is_lossy}
             for is_lossy in (True, False)]  # fmt: skip
    return len(kinds[0] & kinds[1])


def _template(images: str, masks: str, suffix: str) -> tuple[_Place, str | None]:
    """Returns the place with {split} for the split's name, and that name."""
    split = _split_of(images)
    one, other = images.split("/"), masks.split("/")
    # Folders inside a split, such as cities, are alike on both sides, and found by themselves.
    while len(one) > 1 and len(other) > 1 and one[-1] == other[-1] != split:
        one, other = one[:-1], other[:-1]
    if split is not None:
        one = ["{split}" if part == split else part for part in one]
        other = [re.sub(rf"^{split}(?=$|[^a-z]|annot|label|mask|gt)", "{split}", p) for p in other]
        if "{split}" not in "/".join(one):
            split = None
    return _Place("/".join(one) or ".", "/".join(other) or ".", suffix), split


def _lists(root: Path, place: _Place, stems: set[str]) -> tuple[str, tuple[str, ...]]:
    """Returns the pattern of list files, one a split, and the splits; ("", ()) without."""
    parents = dict.fromkeys(["", *map(str, Path(place.images).parents)])
    for folder in (Path(parent, name) for parent in parents for name in _LIST_FOLDERS):
        paths = [p for p in sorted((root / folder).glob("*.txt"))
                 if p.stem.lower() in (*_TRAIN, *_VAL) and _is_list(p, stems)]  # fmt: skip
        if len(paths) > 1:
            return (folder / "{split}.txt").as_posix(), _ordered([path.stem for path in paths])
    return "", ()


def _is_list(path: Path, stems: set[str]) -> bool:
    """Tells whether most lines of a file are names of images."""
    if not path.is_file() or path.stat().st_size > _MAX_LIST_BYTES:  # a pipe would wait
        return False
    lines = path.read_text("utf-8", errors="replace").split("\n")
    names = [line.strip() for line in lines if line.strip()]
    known = sum(Path(name).name in stems or Path(name).stem in stems for name in names)
    return known > _ENOUGH * len(names)
