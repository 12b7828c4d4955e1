"""Guesses where the images and masks of a folder lie."""

import fnmatch
import itertools
import os
import re
import shlex
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from deeplab_jax.config import DataConfig, freeze, get_config
from deeplab_jax.config.patterns import names_files
from deeplab_jax.data.patterns import IMAGE_SUFFIXES, Pattern
from deeplab_jax.doctor.findings import Finding, to_png
from deeplab_jax.doctor.layouts import (
    matches,
    official,
    per_class,
    splits,
    tables,
    unused,
    words,
)
from deeplab_jax.doctor.layouts.choose import choose
from deeplab_jax.doctor.layouts.official import Official
from deeplab_jax.doctor.layouts.shapes import SPLIT, Place, shown
from deeplab_jax.doctor.layouts.tree import Tree, read_tree
from deeplab_jax.errors import DataError

_MAX_SEEN = 8  # folders named where none match
# What Pillow or NumPy reads: {suffix: arguments of `to_png`}.
_CONVERTIBLE: dict[str, tuple[str, ...]] = dict.fromkeys(
    (".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jfif", ".jpe", ".tga"), ()
) | {".npy": ("", "Image.fromarray(numpy.load(path).astype('uint16'))")}
_MASK_FILES = (".gif", ".npy", ".npz", ".mat", ".json", ".xml", ".txt", ".jp2", ".nii", ".gz")


@dataclass(frozen=True)
class GuessedLayout:
    """Where a data set lies."""

    data: DataConfig  # reads the data set
    splits: tuple[str, ...]  # names, the training split first; one name if there is no split
    is_split: bool  # whether training and validation images are told apart
    why: str  # how the layout was recognised, in words
    findings: tuple[Finding, ...] = field(default=())  # what else was seen, and is not used


def guess(root: str | Path) -> GuessedLayout:
    """Returns the layout of the data set in a folder.

    Raises:
      DataError: `root` is no folder, nothing in it looks like images with masks, or its masks are
        of one class each.
    """
    root = Path(root).resolve()
    if not root.is_dir():
        raise DataError(str(root), "is not a folder", "name the folder of your images and masks")
    tree = read_tree(root)
    sets, reasons = official.find(tree)
    inner = {folder for found in sets for top in found.folders for folder in tree.pictures
             if folder == top or folder.startswith(f"{top}/")}  # fmt: skip
    rest = replace(tree, pictures={f: n for f, n in tree.pictures.items() if f not in inner})
    found = matches.find(rest)
    sets_of_classes = per_class.find(rest, found)
    taken = {match for one in sets_of_classes for match in one.matches}
    choice = choose(rest, [match for match in found if match not in taken])
    passed_over = [*_linked(tree), *_predicted(tree), *per_class.told(sets_of_classes)]
    if sets:
        return _official(tree, sets, choice.place if choice else None, passed_over)
    is_last = choice is None or all(m.mask_tier == matches.UNLIKELY for m in choice.place.matches)
    if sets_of_classes and is_last:
        raise per_class.refusal(tree, sets_of_classes)
    if choice is None:
        return _by_lists(tree)
    alone = _unlabelled(tree, choice.place)
    layout = _layout(tree, choice.place, alone, {*alone} - {*choice.own_splits})
    known = {folder for match in found for folder in (match.images, match.masks)}
    passed_over = [*unused.unlabelled(rest, choice.place, known, alone), *passed_over]
    why = "; ".join([layout.why, *reasons])
    return replace(layout, why=why, findings=(*choice.findings, *layout.findings, *passed_over))


def _by_lists(tree: Tree) -> GuessedLayout:
    """Returns the layout of lists that name an image and its mask a line, whatever their names."""
    largest = sorted(tree.pictures, key=lambda f: -len(tree.pictures[f]))[:_MAX_SEEN]
    for images, masks in itertools.permutations(largest, 2) if tree.lists else ():
        place = Place(images or ".", masks or ".", "", (), {})
        data = replace(freeze(get_config("folder")).data, root=str(tree.root), images=place.images,
                       masks=place.masks)  # fmt: skip
        found = splits.find_lists(tree, place, data)
        if found.pattern:
            data = replace(data, split_file=found.pattern, train_split=found.splits[0],
                           val_split=found.splits[1])  # fmt: skip
            why = f"{place.images} with {place.masks}, as the lists {found.pattern} pair them"
            return GuessedLayout(data, found.splits, True, why)
    raise _nothing(tree)


def _official(
    tree: Tree, sets: Sequence[Official], other: Place | None, passed_over: list[Finding]
) -> GuessedLayout:
    def size(found: Official) -> int:
        return sum(len(names) for folder, names in tree.pictures.items()
                   if folder.startswith(tuple(f"{top}/" for top in found.folders)))  # fmt: skip

    best = max(sets, key=size)
    row = freeze(get_config(best.name)).data
    data = replace(row, root=best.root, train_split=best.train_split, val_split="val")
    items = [f"{found.name}: deeplab doctor --data {shlex.quote(str(tree.root / found.folders[0]))}"
             for found in sets if found is not best]  # fmt: skip
    if other:
        items.append(f"{other.images} with {other.masks}: {other.num_pairs} pairs")
    findings = list(passed_over)
    if items:
        title = f"{len(items)} other data set{'s' if len(items) > 1 else ''} not used"
        fix = f"{best.name} is used; name another's own folder with --data"
        findings.append(Finding("warning", "layout", title, fix, tuple(items)))
    why = f"the official layout of {best.name}"
    return GuessedLayout(data, (best.train_split, "val"), True, why, tuple(findings))


def _layout(
    tree: Tree, place: Place, alone: Mapping[str, int], to_tell: Collection[str]
) -> GuessedLayout:
    """Returns the layout of a place; `alone` are its splits without masks."""
    data = freeze(get_config("folder")).data
    counts = splits.with_missing(tree, place)
    findings = []
    if alone and len(counts) > len(alone):  # such as of a challenge
        counts = {split: n for split, n in counts.items() if split not in alone}
        for split in sorted(to_tell):
            title = f"split {split} has {alone[split]} images without masks, and is not used"
            fix = "add its masks; else the split that --write-config proposes is random"
            findings.append(Finding("warning", "split", title, fix))
    names, lists = splits.ordered(counts), ""
    place = place if len(names) > 1 else place.settled()
    images, masks, suffix = place[:3]
    why = f"{shown(images)} with {shown(masks)}" + (f", masks named NAME{suffix}" if suffix else "")
    if len(place.matches) > 1 and re.search(r"\*|\{.*,", images):
        why += f", all {place.num_pairs} pairs of {len(place.matches)} folders"
    if images.split("/")[-1] == "{split}" and masks.split("/")[-1] == "{split}annot":
        data = replace(data, ignore_values=(11,))
        why += " (CamVid's public layout, where 11 is void)"
    in_tables = tables.find(tree, place)
    if len(names) > 1:
        findings += splits.left_out(place, names)
    else:
        data = replace(data, root=str(tree.root), images=images, masks=masks, mask_suffix=suffix)
        found = splits.find_lists(tree, place, data)
        lists = found.pattern
        reasons = [r for r in found.reasons if r.partition(": ")[0] not in in_tables]
        told = None if lists or names else splits.by_names(place)
        if lists:
            names, why = found.splits, f"{why}, lists {lists}"
            findings += splits.told_of(found, place.num_pairs)
        elif told:
            images, masks, suffix = told[:3]
            names = splits.ordered(told.splits)
            why = f"{images} with {masks}, split by the images' names"
            findings += _unused_lists(reasons)
        else:
            findings += _unsplit(tree, place, reasons)
    is_split = len(names) > 1
    findings += tables.told_of(in_tables, is_split)
    if not is_split:
        names, why = names[:1] or ("all",), f"{why}, without a split"
    elif words.rank(names[1], words.TEST)[0] < len(words.TEST):
        why += f", validated on {names[1]}"
    data = replace(data, root=str(tree.root), images=images, masks=masks, mask_suffix=suffix,
                   split_file=lists, train_split=names[0], val_split=names[:2][-1])  # fmt: skip
    return GuessedLayout(data, names, is_split, why, tuple(findings))


def _unused_lists(
    reasons: Sequence[str], then: str = "the split of the folder is used"
) -> list[Finding]:
    if not reasons:
        return []
    title = (
        f"{len(reasons)} file{'s' if len(reasons) > 1 else ''} may tell a split and cannot be used"
    )
    fix = f"write train.txt and val.txt above the images, one name a line; without them {then}"
    return [Finding("warning", "split", title, fix, tuple(reasons))]


def _unsplit(tree: Tree, place: Place, reasons: Sequence[str]) -> list[Finding]:
    """Returns what is told before a random split is proposed."""
    then = "the split that --write-config proposes is random"
    findings = _unused_lists(reasons, then)
    folds, command = splits.in_folds(tree.root, place)
    if folds:
        title = f"the folders tell folds, which are all used together: {folds}"
        fix = f"to validate on the first, make lists, and run the doctor again; else {then}"
        findings.append(Finding("warning", "split", title, f"{fix}: {command}"))
    if told := splits.in_names(image for match in place.matches for image, _ in match.pairs):
        title = f"the images' names tell a split: {told}"
        fix = f"move each into a folder of its split, or write train.txt and val.txt; else {then}"
        findings.append(Finding("warning", "split", title, fix))
    return findings


def _unlabelled(tree: Tree, place: Place) -> dict[str, int]:
    """Returns {split: images} of the splits whose images have no masks.

    A training split with a folder for masks is not among them: its masks are missing.
    """
    found = splits.with_missing(tree, place).items()
    masks = os.path.dirname(place.masks) if names_files(place.masks) else place.masks
    masks = masks.partition("/**")[0]
    counts = {
        split: 0 for split, number in found
        if not number and not (words.is_train(split) and SPLIT in masks and fnmatch.filter(
            tree.folders, masks.replace(SPLIT, split)))
    }  # fmt: skip
    pattern = Pattern(place.images, None, IMAGE_SUFFIXES)
    for folder, names in tree.pictures.items() if counts else ():
        for name in names:
            match = pattern.match(os.path.join(folder, name))
            if match and match.split in counts:
                counts[match.split] += 1
    return counts


def _linked(tree: Tree) -> list[Finding]:
    if not tree.links:
        return []
    title = f"{len(tree.links)} linked folder{'s' if len(tree.links) > 1 else ''} not looked into"
    copy = shlex.quote(f"{tree.root}-copy")
    fix = "name a folder that holds links and their targets with --data, or copy what they lead "
    fix += f"to: cp -rL {shlex.quote(str(tree.root))} {copy}"
    return [Finding("warning", "layout", title, fix, tuple(tree.links))]


def _predicted(tree: Tree) -> list[Finding]:
    items = tuple(f"{folder or '.'}: {number}" for folder, number in tree.predicted.items())
    if not items:
        return []
    title = f"results of deeplab predict in {len(items)} folder(s) passed over"
    return [Finding("note", "layout", title, "nothing to do", items)]


def _nothing(tree: Tree) -> DataError:
    """Returns the error of a folder without pairs; says why the nearest did not pair."""
    counts = {folder: len(names) for folder, names in tree.pictures.items()}
    seen = [f"{folder or '.'} ({number})" for folder, number in counts.items()]
    more = f" and {len(seen) - _MAX_SEEN} more" if len(seen) > _MAX_SEEN else ""
    what = "holds no images with masks of the same names; folders with pictures: "
    what += ", ".join(seen[:_MAX_SEEN]) + more or "none"
    masks = [f for f in counts if words.MASK in words.kinds_of(matches.parts_of(f))]
    images = [f for f in counts if f not in masks]
    if masks and images:
        one, other = (max(folders, key=lambda f: counts[f]) for folders in (images, masks))
        names = [PurePosixPath(tree.pictures[folder][0]).stem for folder in (one, other)]
        what += f"; names differ: {one or '.'} has {names[0]}, {other} {names[1]}"
    for folder, suffixes in tree.others.items():
        if words.MASK in words.kinds_of(matches.parts_of(folder)):
            unread = [f"{n} {s}" for s, n in suffixes.most_common() if s in _MASK_FILES]
            if unread:
                what += f"; {folder} holds {', '.join(unread[:3])}, which are no masks to be read"
    if tree.links:
        what += f"; not looked into, for they are links that lead out: {', '.join(tree.links[:3])}"
    for folder, number in tree.predicted.items():
        what += f"; {folder or '.'} holds {number} results of deeplab predict"
    fix = "lay them out as images/train/NAME.jpg and labels/train/NAME.png, or describe where "
    fix += "they are in a recipe (config.data.images, masks, mask_suffix) and use --config"
    several = [
        folder
        for folder in masks
        if counts[folder] > 1
        and any(
            counts[one] == 1 and os.path.dirname(one) == os.path.dirname(folder) for one in images
        )
    ]
    if several and 2 * len(several) >= len(masks):
        what = f"holds several masks for each image, in folders such as {several[0]}"
        fix = "merge them, mask[object > 0] = 1 in zeros of uint8, and save as masks/NAME.png "
        fix += "beside images/NAME.png in one folder for all"
    found: Counter[str] = sum(tree.others.values(), Counter())
    if several:
        pass
    elif others := [suffix for suffix in _CONVERTIBLE if found[suffix]]:
        what += f"; not read: {', '.join(f'{found[suffix]} {suffix}' for suffix in others)}"
        globs = {s: re.sub("[a-z]", lambda c: f"[{c[0]}{c[0].upper()}]", s) for s in others}
        commands = (to_png(tree.root, f"**/*{globs[s]}", *_CONVERTIBLE[s]) for s in others)
        fix = f"store them as PNG, and run the doctor again: {' && '.join(commands)}"
    elif archives := [s for s in (".zip", ".tar", ".gz", ".tgz", ".rar", ".7z") if found[s]]:
        what += f"; archives: {', '.join(f'{found[s]} {s}' for s in archives)}"
        fix = f"unpack the archives, and run the doctor again; or {fix}"
    elif texts := [s for s in (".json", ".xml", ".txt") if found[s] and images]:
        what += f"; {found[texts[0]]} {texts[0]}, which may be annotations, are no masks"
        fix = f"export masks, one PNG an image, from the tool that draws them; or {fix}"
    return DataError(str(tree.root), what, fix)
