"""The splits of a place: names in its folders, or lists of its samples."""

import fnmatch
import os
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from deeplab_jax.config import DataConfig
from deeplab_jax.data.files import find_files
from deeplab_jax.data.patterns import IMAGE_SUFFIXES, Pattern
from deeplab_jax.doctor.findings import Finding
from deeplab_jax.doctor.layouts import words
from deeplab_jax.doctor.layouts.shapes import SPLIT, Place
from deeplab_jax.doctor.layouts.tree import LIST_SUFFIXES, Tree
from deeplab_jax.errors import DataError, clip

_ENOUGH = 0.5  # of a list's lines must name pairs
_MAX_LISTS = 24  # tried
_MAX_LIST_BYTES = 1 << 26


_FOLD = re.compile(r"(k?[-_ ]?fold|split|cv)s?[-_ ]*\d+", re.IGNORECASE)


class Lists(NamedTuple):
    """Lists of samples, one a split."""

    pattern: str  # `data.split_file`; "" without usable lists
    splits: tuple[str, ...]
    reasons: tuple[str, ...]  # files that look like lists and are not used, each with the reason
    rivals: tuple[str, ...] = ()  # patterns of other lists beside them
    others: tuple[str, ...] = ()  # patterns of lists of the same names in other folders
    num_pairs: int = 0  # that the lists name
    notes: tuple[str, ...] = ()  # what was guessed of their lines


def ordered(splits: Mapping[str, int]) -> tuple[str, ...]:
    """Returns a training split, a validation split, then those to test on.

    Args:
      splits: {name: pairs}; of two names that mean the same the larger is taken.
    """
    train = min((s for s in splits if words.is_train(s)), default="",
                key=lambda s: (words.rank(s, words.TRAIN)[0], -splits[s], s))  # fmt: skip
    year = "".join(filter(str.isdigit, train))
    others = [split for split in splits if not words.is_train(split)]
    val = sorted(others, key=lambda s: (words.rank(s, words.VAL)[0], year not in s, -splits[s], s))
    chosen = [*([train] if train else []), *val[:1]]
    return (*chosen, *sorted(val[1:]))


def with_missing(tree: Tree, place: Place) -> dict[str, int]:
    """Returns the splits, and those to train or validate on whose images pair with nothing.

    A test split without masks is usual, and is not added.
    """
    splits = dict(place.splits)
    if SPLIT not in place.images or not splits:
        return splits
    pattern = Pattern(place.images, None, IMAGE_SUFFIXES)
    paths = (os.path.join(folder, name) for folder, names in tree.pictures.items()
             for name in names[:1])  # fmt: skip
    there = {found.split for path in paths if (found := pattern.match(path))}
    known = {split for split in there if (text := words.split_text(split)) and text.is_word}
    for is_train in (True, False):
        if not any(words.is_train(split) == is_train for split in splits):
            splits |= {split: 0 for split in sorted(known) if words.is_train(split) == is_train
                       and words.rank(split, words.TEST)[0] == len(words.TEST)}  # fmt: skip
    return splits


def left_out(place: Place, used: Sequence[str]) -> list[Finding]:
    """Returns what is told of splits in folders that are not used."""
    items = [f'{split}: {number} pairs; data.train_split="{split}"'
             for split, number in place.splits.items() if split not in used]  # fmt: skip
    if not items:
        return []
    title = f"{len(items)} more split{'s' if len(items) > 1 else ''} to train on not used"
    fix = f"{used[0]} is used; to use another, set its field in the recipe"
    return [Finding("warning", "split", title, fix, tuple(items))]


def find_lists(tree: Tree, place: Place, data: DataConfig) -> Lists:
    """Returns the lists that split a place without splits, and why others are not used."""
    names = {PurePosixPath(name).stem for folder in tree.pictures
             for name in tree.pictures[folder]}  # fmt: skip
    reasons: dict[str, str] = {}
    # {pattern: {split: paths}}
    families: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for path in tree.lists:
        stem, suffix = os.path.splitext(os.path.basename(path))
        found = words.split_text(stem)
        if stem in names and suffix not in LIST_SUFFIXES:
            continue  # belongs to a picture
        if suffix.lower() not in LIST_SUFFIXES:
            reasons[path] = f"{suffix or 'no suffix'}: only lists of names, one a line, are read"
        elif found is None:
            reasons[path] = "names no split: write one list for training and one for validation"
        else:
            file = f"{stem[: found.start]}{SPLIT}{stem[found.stop :]}{suffix}"
            families[os.path.join(os.path.dirname(path), file)][found.core].append(path)
    _join_scenes(families, place)
    best: tuple[float, str, dict[str, set[str]]] = (0, "", {})
    notes: dict[str, list[str]] = defaultdict(list)
    for pattern in sorted(families, key=lambda p: _order(p, place))[:_MAX_LISTS]:
        told_lines = notes[pattern]
        counts, share = _try(tree, data, pattern, families[pattern], reasons, told_lines)
        if len({words.is_train(split) for split in counts}) < 2:
            for split in counts:
                kind = "to validate on" if words.is_train(split) else "to train on"
                reasons |= dict.fromkeys(
                    families[pattern][split], f"is usable, but there is no list {kind}"
                )
        elif share > best[0]:
            best = share, pattern, counts
            if share == 1:
                break
    _, pattern, counts = best
    told = tuple(f"{path}: {reason}" for path, reason in reasons.items())
    if not pattern:
        return Lists("", (), told)
    beside = (
        p for p in families if p != pattern and os.path.dirname(p) == os.path.dirname(pattern)
    )
    rivals = (p for p in beside if _is_split(families[p]))
    others = (p for p in families if p != pattern and _is_split(families[p])
              and os.path.basename(p) == os.path.basename(pattern))  # fmt: skip
    splits = ordered({split: len(pairs) for split, pairs in counts.items()})
    number = len(set().union(*counts.values()))
    return Lists(pattern, splits, told, tuple(sorted(rivals)), tuple(sorted(others)), number,
                 tuple(notes[pattern]))  # fmt: skip


def _join_scenes(families: dict[str, dict[str, list[str]]], place: Place) -> None:
    """Makes one family of those that lie in, or are called like, different scenes of a place.

    A scene is a folder that holds some of the images, not all.
    """
    folders = [match.images for match in place.matches]
    groups: dict[tuple[str, bool], dict[str, str]] = defaultdict(dict)  # {..: {pattern: scene}}
    for pattern in families:
        folder, file = os.path.split(pattern)
        stem = os.path.splitext(file)[0].replace(SPLIT, "").strip("_-. ")
        if scene := _scene_of(folder, folders):
            groups[file, True][pattern] = scene
        elif stem and any(stem in path.split("/") for path in folders):
            groups[os.path.join(folder, file.replace(stem, "*", 1)), False][pattern] = stem
    for (name, is_folder), members in groups.items():
        texts = [os.path.dirname(p) if is_folder else members[p] for p in members]
        if len({*members.values()}) < 2 or any(set(text) & set("{},*?[") for text in texts):
            continue
        braces = f"{{{','.join(sorted(texts))}}}"
        pattern = os.path.join(braces, name) if is_folder else name.replace("*", braces, 1)
        if is_folder and len({text.count("/") for text in texts}) == 1:
            columns = [{*column} for column in zip(*(t.split("/") for t in texts), strict=True)]
            wide = "/".join("*" if len(c) > 1 else c.pop() for c in columns) + f"/{name}"
            others = [p for p in families if p not in members and p.count("/") == wide.count("/")]
            is_exact = not any(fnmatch.fnmatchcase(other, _escaped(wide)) for other in others)
            pattern = wide if is_exact else pattern
        joined: dict[str, list[str]] = defaultdict(list)
        for member in members:
            for split, paths in families.pop(member).items():
                joined[split] += paths
        families[pattern] = joined


def _escaped(pattern: str) -> str:
    return re.sub(r"[\[?]", r"[\g<0>]", pattern)


def _scene_of(folder: str, images: Sequence[str]) -> str:
    """Returns the folder around lists that holds some of the images, or is called like it."""
    above = folder
    while above:
        below = [path for path in images if path == above or path.startswith(f"{above}/")]
        if below:
            return above if len(below) < len(images) else ""
        above = os.path.dirname(above)
    name = os.path.basename(folder)
    named = [path for path in images if name and name in path.split("/")]
    return name if named and len(named) < len(images) else ""


def _is_split(names: Iterable[str]) -> bool:
    """Tells whether names of splits are of both kinds, to train and to validate on."""
    return len({words.is_train(split) for split in names}) == 2


def told_of(found: Lists, num_pairs: int) -> list[Finding]:
    """Returns what is told of the lists that are used: others, and pairs that they do not name."""
    fix = "to use others, set their field in the recipe that --write-config proposes"
    findings = []
    for severity, patterns, where in (("warning", found.rivals, "of like names"),
                                      ("note", found.others, "in several folders")):  # fmt: skip
        if patterns:
            title = f"lists {found.pattern} are chosen among {len(patterns) + 1} {where}"
            items = tuple(f'data.split_file="{pattern}"' for pattern in patterns)
            findings.append(Finding(severity, "split", title, fix, items))
    if found.notes:
        title = "files of the lists are named by paths of another machine"
        fix = "nothing to do, if these folders are meant; else correct the lists"
        findings.append(Finding("note", "split", title, fix, found.notes))
    if (number := num_pairs - found.num_pairs) > 0:
        title = f"{number} of {num_pairs} pairs are in no list of {found.pattern}"
        fix = "they are not used: add them to a list, if they are to be"
        findings.append(Finding("warning", "split", title, fix))
    return findings


def _order(pattern: str, place: Place) -> tuple[object, ...]:
    """Returns a sort key: lists made for masks first, such as ImageSets/Segmentation's."""
    folder, file = os.path.split(pattern)
    theirs = {word for part in place.masks.split("/") for word in words.words(part)}
    own = {word for part in folder.split("/") for word in words.words(part)}
    return -len(own & theirs), len(words.words(file)), pattern.count("/"), pattern


def _try(
    tree: Tree, data: DataConfig, pattern: str, family: Mapping[str, Sequence[str]],
    reasons: dict[str, str], notes: list[str],
) -> tuple[dict[str, set[str]], float]:  # fmt: skip
    """Returns ({split: pairs} of the usable lists, the share of their lines that name pairs)."""
    counts: dict[str, set[str]] = {}
    lines = 0
    for split, paths in family.items():
        odd = [path for path in paths if not _is_small(tree.root / path)]
        reasons |= dict.fromkeys(odd, "is no file, or too large for a list")
        if odd:
            continue
        try:
            files = find_files(replace(data, split_file=pattern), split, lambda fault: None)
        except DataError as error:
            reasons |= dict.fromkeys(paths, f"{error.what}: {error.fix}")
            continue
        pairs = [stem for stem in files.stems if stem in files.images and stem in files.masks]
        if len(pairs) > _ENOUGH * len(files.stems):
            counts[split] = set(pairs)
            lines += len(files.stems)
            notes += files.notes
        elif files.stems:
            wrong = next(stem for stem in files.stems if stem not in pairs)
            number = len(files.stems) - len(pairs)
            why = f"{number} of {len(files.stems)} lines name no pair ({clip(wrong)})"
            reasons |= dict.fromkeys(paths, why)
        else:
            reasons |= dict.fromkeys(paths, "is empty")
    return counts, sum(map(len, counts.values())) / lines if lines else 0.0


def _is_small(path: Path) -> bool:  # a pipe would wait
    return path.is_file() and path.stat().st_size <= _MAX_LIST_BYTES


def by_names(place: Place) -> Place | None:
    """Returns the place split by how its images' names begin, as in train_01.jpg, test_01.jpg."""
    counts: dict[str, int] = defaultdict(int)
    ends = set()
    for match in place.matches:
        for image, _ in match.pairs:
            name = PurePosixPath(image).name
            found = words.split_text(PurePosixPath(image).stem)
            if found is None or found.start:
                return None
            counts[found.core] += 1
            ends.add(name[found.stop : found.stop + 1])
    parts = [path.split("/") for path in place[:2]]
    is_file = [bool(PurePosixPath(path).suffix) and "*" in path for path in place[:2]]
    is_simple = all(
        not f or part[-1].startswith("*") for part, f in zip(parts, is_file, strict=True)
    )
    if len({words.is_train(core) for core in counts}) < 2 or len(ends) > 1 or not is_simple:
        return None
    if not all(is_file):
        is_flat = all(match.images == place.images.removeprefix(".") for match in place.matches)
        below = [] if is_flat else ["**"]
        lasts = ("*.*", f"*{place.mask_suffix}.*")
        parts = [[*(p for p in part if p != "."), *below, last]
                 for part, last in zip(parts, lasts, strict=True)]  # fmt: skip
    start = SPLIT + ends.pop()
    images, masks = ("/".join([*part[:-1], start + part[-1]]) for part in parts)
    return place._replace(images=images, masks=masks, mask_suffix="", splits=dict(counts))


def in_folds(root: Path, place: Place) -> tuple[str, str]:
    """Returns the folds that a place's folders tell, and a command that makes lists of them.

    Both are "" without folds.
    """
    paths = [match.images.split("/") for match in place.matches]
    depths = range(min(map(len, paths)))
    for depth in depths:
        folds = sorted({"/".join(path[: depth + 1]) for path in paths})
        names = [os.path.basename(fold) for fold in folds]
        if 1 < len(folds) == len({*names}) and all(map(_FOLD.fullmatch, names)):
            parts = {"val": folds[:1], "train": folds[1:]}
            steps = (
                f"printf '%s\\n' {' '.join(map(shlex.quote, lines))} > "
                f"{shlex.quote(str(root / name))}.txt"
                for name, lines in parts.items()
            )
            return ", ".join(names), " && ".join(steps)
    return "", ""


def in_names(images: Iterable[str]) -> str:
    """Returns the part of the images' names that tells a split, "" unless all have one."""
    cores: dict[str, int] = defaultdict(int)
    for path in images:
        found = words.split_text(PurePosixPath(path).stem)
        if found is None:
            return ""
        cores[found.core] += 1
    is_split = len({words.is_train(core) for core in cores}) == 2
    return ", ".join(f"{core} ({number})" for core, number in cores.items()) if is_split else ""
