"""Masks of one class each, of which several belong to one image: they are told, and not used.

Known by names that differ in a class alone (masks/car/NAME.png, NAME_car.png, NAME/car.png, Label
Studio's tags), and by two values in each mask.
"""

import itertools
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from deeplab_jax.data.files import LOSSY_SUFFIXES
from deeplab_jax.doctor.findings import Finding
from deeplab_jax.doctor.layouts import contents, words
from deeplab_jax.doctor.layouts.matches import Match, num_shared, parts_of
from deeplab_jax.doctor.layouts.naming import Naming
from deeplab_jax.doctor.layouts.tree import Tree
from deeplab_jax.errors import DataError, shorten

_ALIKE = 0.6  # share of two masks' pixels in both, from which they are two drawings of one thing
_LOOKS = 4  # images whose masks are opened
_MAX_CLASSES = 8  # named with their value
_MAX_WORDS = 255
_BACKGROUND = ("background", "bg")
_TAGGED = re.compile(r"task-\d+-annotation-\d+-by-.+-tag-(.+)-\d+")  # Label Studio

_Masks = dict[str, dict[str, str]]  # {image: {class: mask}}
# folder of images, rule of names, parts before and after the class
_Key = tuple[str, Naming, tuple[str, ...], tuple[str, ...]]


class ClassMasks(NamedTuple):
    """Masks of one class each."""

    place: str  # such as masks/CLASS/NAME.png
    classes: tuple[tuple[str, int], ...]  # (name, number of masks)
    matches: tuple[Match, ...] = ()  # that they are part of
    target: str = "labels/NAME.png"  # place of merged masks
    is_tagged: bool = False  # by Label Studio, whose names do not tell the image

    def __str__(self) -> str:
        names = shorten([f"{name} {number}" for name, number in self.classes], _MAX_CLASSES)
        return f"{self.place}, masks of each CLASS: {names}"


def find(tree: Tree, matches: Sequence[Match]) -> list[ClassMasks]:
    """Returns masks of one class each, among the matches and among what pairs with nothing."""
    clusters: dict[_Key, dict[str, Match]] = defaultdict(dict)
    for match in matches:
        texts = (*parts_of(match.masks), match.naming.mask)
        for n, text in enumerate(texts):
            name = words.class_name(text)
            if name and not words.kinds_of(texts) & {words.RESULT, words.OLD}:
                rule = match.naming._replace(mask="")
                key = match.images, rule, texts[:n], texts[n + 1 :]
                clusters[key].setdefault(name, match)
    sets: list[ClassMasks] = []
    while found := _largest(tree, clusters):
        (_, rule, before, after), cluster = found
        names = cluster.keys()
        alike = {key: one for key, one in clusters.items() if names & one.keys()
                 and (key[1], len(key[2]), key[3]) == (rule, len(before), after)}  # fmt: skip
        counts: Counter[str] = Counter()
        for key, one in alike.items():
            counts.update(_count(tree, one))
            del clusters[key]
        members = tuple(match for one in alike.values() for match in one.values())
        name, first = next(iter(cluster.items()))
        place = _place(first, len(before), name)
        target = _target(min(members, key=lambda match: match.image_tier))
        sets.append(ClassMasks(place, tuple(sorted(counts.items())), members, target))
    used = {folder for match in matches for folder in (match.masks, match.images)}
    free = [folder for folder in tree.pictures if folder not in used]
    return sets + _tagged(tree, free) + _in_folders_of_images(tree, free)


def _largest(
    tree: Tree, clusters: dict[_Key, dict[str, Match]]
) -> tuple[_Key, dict[str, Match]] | None:
    """Returns the matches that are most classes of the same images; None without any."""
    for key, cluster in sorted(clusters.items(), key=lambda item: (-len(item[1]), item[0])):
        if len(cluster) < 2:
            break
        for name, match in list(cluster.items()):
            if contents.foreground(tree.root / match.pairs[0][1]) is None:
                del cluster[name]
        if len(cluster) > 1 and _are_classes(tree, _by_image(cluster)):
            return key, cluster
    return None


def _count(tree: Tree, cluster: dict[str, Match]) -> Counter[str]:
    """Returns {class: masks}, with classes that names tell in the same way beside the cluster's."""
    counts = Counter({name: len(match.pairs) for name, match in cluster.items()})
    first = next(iter(cluster.values()))
    if first.naming.place in ("start", "end") and len({m.masks for m in cluster.values()}) == 1:
        images = {PurePosixPath(image).stem for image, _ in first.pairs}
        for stem in tree.stems(first.masks):
            for cut in range(1, len(stem)):
                ends = stem[:cut], stem[cut:]
                image, text = ends if first.naming.place == "end" else ends[::-1]
                name = words.class_name(text) if image in images else ""
                counts[name] += bool(name) and name not in cluster
    return +counts


def _place(match: Match, n: int, name: str) -> str:
    """Returns the place of masks, NAME and CLASS in place of the image's name and the class."""
    texts = [*parts_of(match.masks), match.naming.mask]
    texts[n] = texts[n].replace(name, "CLASS")
    rule = match.naming.place
    file = texts[-1] if rule == "whole" else f"NAME{texts[-1]}"
    if rule == "whole" and (shared := num_shared([parts_of(match.images), texts])):
        texts[shared - 1] = "NAME"
    file = f"{texts[-1]}NAME" if rule == "start" else file
    return "/".join([*texts[:-1], file + os.path.splitext(match.pairs[0][1])[1]])


def _target(match: Match) -> str:
    """Returns the place of merged masks: labels stands for what names the images."""
    parts = list(parts_of(match.images))
    if match.naming.place == "whole":
        return "/".join([*parts[:-1], "NAME/label.png"])
    place = next((n for n, part in enumerate(parts) if words.IMAGE in words.kinds_of([part])), None)
    if place is None:
        return "/".join([*parts, "labels/NAME.png"])
    return "/".join([*parts[:place], "labels", *parts[place + 1 :], "NAME.png"])


def _by_image(cluster: dict[str, Match]) -> _Masks:
    found: _Masks = defaultdict(dict)
    for name, match in cluster.items():
        for image, mask in match.pairs:
            found[image][name] = mask
    return found


def _are_classes(tree: Tree, masks: _Masks) -> bool:
    """Tells whether masks of one image hold two values, and differ as classes do."""
    several = [list(of_one.values()) for of_one in masks.values() if len(of_one) > 1]
    shares = []
    for paths in several[:: max(1, len(several) // _LOOKS)][:_LOOKS]:
        drawn = [contents.foreground(tree.root / path) for path in paths[:_LOOKS]]
        for one, other in itertools.combinations(drawn, 2):
            if one is None or other is None:
                return False
            if one.shape == other.shape and (union := (one | other).sum()):
                shares.append((one & other).sum() / union)
    return bool(several) and (not shares or sum(shares) < _ALIKE * len(shares))


def _tagged(tree: Tree, folders: Iterable[str]) -> list[ClassMasks]:
    sets = []
    for folder in folders:
        tags = (_TAGGED.fullmatch(stem) for stem in tree.stems(folder))
        counts = Counter(found[1] for found in tags if found)
        if counts:
            file = "task-N-annotation-N-by-N-tag-CLASS-N.png"
            classes = tuple(sorted(counts.items()))
            sets.append(ClassMasks(os.path.join(folder, file), classes, is_tagged=True))
    return sets


def _in_folders_of_images(tree: Tree, folders: Iterable[str]) -> list[ClassMasks]:
    """Returns the masks of NAME/CLASS.png, or NAME/masks/CLASS.png: one folder for each image."""
    by_place: dict[tuple[str, str], list[str]] = defaultdict(list)
    for folder in folders:
        parts = parts_of(folder)
        for n in (len(parts) - 1, len(parts) - 2):
            if n >= 0 and (n == len(parts) - 1 or words.MASK in words.kinds_of(parts[n + 1 :])):
                key = "/".join(parts[:n]), "/".join(parts[n + 1 :])
                by_place[key].append(folder)
    sets = []
    for (above, below), found in by_place.items():
        masks: _Masks = {}
        for folder in found:
            names = [n for n in tree.pictures[folder] if not n.lower().endswith(LOSSY_SUFFIXES)]
            stems = {PurePosixPath(name).stem: os.path.join(folder, name) for name in names}
            masks[folder] = {name: p for s, p in stems.items() if (name := words.class_name(s))}
        counts = Counter(name for of_one in masks.values() for name in of_one)
        counts = Counter({name: number for name, number in counts.items() if number > 1})
        if 1 < len(counts) <= _MAX_WORDS and _are_classes(tree, masks):
            place = "/".join(filter(None, (above, "NAME", below, "CLASS.png")))
            has_image = any(len(tree.pictures[folder]) > len(masks[folder]) for folder in found)
            target = "labels/NAME.png"
            if below or has_image:
                end = "labels/NAME.png" if below else "label.png"
                target = "/".join(filter(None, (above, "NAME", end)))
            sets.append(ClassMasks(place, tuple(sorted(counts.items())), (), target))
    return sets


def refusal(tree: Tree, sets: Sequence[ClassMasks]) -> DataError:
    """Returns the error of a folder that holds no other masks."""
    what = f"holds one mask for each class of an image, which is no index mask: {sets[0]}"
    return DataError(str(tree.root), what, _fix(sets[0]))


def told(sets: Sequence[ClassMasks]) -> list[Finding]:
    """Returns what is told of masks of one class each beside those that are used."""
    if not sets:
        return []
    items = tuple(map(str, sets))
    title = f"{len(sets)} place{'s' if len(sets) > 1 else ''} with one mask for each class not used"
    return [Finding("warning", "layout", title, _fix(sets[0]), items)]


def _fix(found: ClassMasks) -> str:
    names = [name for name, _ in found.classes if name.lower() not in _BACKGROUND]
    steps = [f"mask[{name} > 0] = {n}" for n, name in enumerate(names[:_MAX_CLASSES], 1)]
    steps += ["..."] * (len(names) > _MAX_CLASSES)
    fix = "merge those of an image into one mask: mask = zeros of uint8, then " + ", ".join(steps)
    fix += " (where classes overlap the last decides; 0 is background), "
    fix += f"saved as {found.target}"
    if any(match.images == match.masks for match in found.matches):
        fix += "; then move the masks of each class out of the images' folder"
    if found.is_tagged:
        fix += ", NAME that of the image of the task's id in Label Studio's JSON export"
    return fix
