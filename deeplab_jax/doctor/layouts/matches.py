"""Folders whose pictures pair by name, of which one is named, or looks, as masks do."""

import itertools
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from deeplab_jax.data.files import LOSSY_SUFFIXES
from deeplab_jax.doctor.layouts import contents, naming, words
from deeplab_jax.doctor.layouts.naming import Naming
from deeplab_jax.doctor.layouts.tree import Tree

# How likely a folder holds what is wanted; candidates of one number are rivals.
LIKELY, COLORED, BESIDE, UNLIKELY = range(4)
_MAX_LONE = 30  # of them that may hold other masks of known images
# Kinds of words in names of folders that hold no other masks of known images.
_NO_STRANGERS = {words.IMAGE, words.COLOR, words.OTHER, words.SENSOR, words.RESULT, words.OLD}
_MAX_FAR = 400  # folders compared without a folder in common
_MAX_LOOKED = 100  # folders, and pairs of folders, that are opened because no name tells


class Match(NamedTuple):
    """Two folders, or one twice, whose pictures pair by one rule."""

    images: str
    masks: str
    naming: Naming
    pairs: tuple[tuple[str, str], ...]  # (image, mask): paths below the root
    image_tier: int  # LIKELY to UNLIKELY
    mask_tier: int


def parts_of(folder: str) -> tuple[str, ...]:
    """Returns the parts of a folder's path; none for the root."""
    return tuple(folder.split("/")) if folder else ()


def num_shared(paths: Sequence[Sequence[str]]) -> int:
    """Returns the number of parts that all paths share at their start."""
    columns = enumerate(zip(*paths, strict=False))
    return next((i for i, column in columns if len(set(column)) > 1), min(map(len, paths)))


def common(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[int, int]:
    """Returns the number of parts that two paths share at their start, and at their end."""
    start = num_shared([one, other])
    rest = [path[start:][::-1] for path in (one, other)]
    return start, num_shared(rest)


def roles(images: str, masks: str, rule: Naming = naming.SAME) -> tuple[int, int] | None:
    """Returns how likely two folders hold images and masks, None if their names deny it."""
    one, other = parts_of(images), parts_of(masks)
    start, end = common(one, other)
    own = (*one[start : len(one) - end], rule.image)
    theirs = (*other[start : len(other) - end], rule.mask)
    image_kinds, mask_kinds = words.kinds(own, theirs), words.kinds(theirs, own)
    if not mask_kinds & {words.MASK, words.RESULT} or words.MASK in image_kinds:
        return None
    if words.MASK not in mask_kinds and image_kinds & {words.RESULT}:
        return None
    return _image_tier(image_kinds), mask_tier(mask_kinds)


def mask_tier(kinds: frozenset[str]) -> int:
    """Returns how likely a folder holds the masks, by the kinds of its words."""
    if kinds & {words.RESULT, words.OLD}:
        return UNLIKELY
    if words.OTHER in kinds and words.SEMANTIC not in kinds:
        return BESIDE
    return COLORED if kinds & {words.COLOR, words.IMAGE, words.OTHER} else LIKELY


def _image_tier(kinds: frozenset[str]) -> int:
    if kinds & {words.RESULT, words.OLD}:
        return UNLIKELY
    if kinds & {words.SENSOR, words.OTHER}:
        return BESIDE
    return COLORED if words.COLOR in kinds and words.IMAGE not in kinds else LIKELY


def find(tree: Tree) -> list[Match]:
    """Returns the matches of all folders of a tree, sorted."""
    stems = {folder: tree.stems(folder) for folder in tree.pictures}
    found = _without_strange_images(tree, _of_two(tree, stems))
    paired = {path for match in found for pair in match.pairs for path in pair}
    of_masks = {match.masks for match in found}
    for folder in tree.pictures:
        if folder not in of_masks:
            found += _within(tree, folder, paired)
    paired = {folder for match in found for folder in (match.images, match.masks)}
    found += _of_strangers(tree, stems, paired, [m for m in found if m.image_tier == LIKELY])
    found = [match for match in found if not _is_result(tree, match)]
    return sorted(found, key=lambda match: (match.images, match.masks, match.naming))


def _without_strange_images(tree: Tree, matches: list[Match]) -> list[Match]:
    """Returns the matches without images that look like masks, where others are photographs."""
    by_masks: dict[str, list[Match]] = defaultdict(list)
    for match in matches:
        by_masks[match.masks].append(match)
    strange = set()
    for rivals in by_masks.values():
        named = [words.IMAGE in words.kinds_of(parts_of(m.images)) for m in rivals]
        if len(rivals) > 1 and not all(named):
            holds = [contents.look(tree.root, [image for image, _ in m.pairs]) for m in rivals]
            if contents.PHOTO in holds:
                looks = (contents.INDEX, contents.COLORS)
                strange |= {m for m, is_named, look in zip(rivals, named, holds, strict=True)
                            if look in looks and not is_named}  # fmt: skip
    return [match for match in matches if match not in strange]


def _is_result(tree: Tree, match: Match) -> bool:
    """Tells whether what is named as results, and not as masks, holds no classes."""
    if match.mask_tier != UNLIKELY or words.MASK in words.kinds_of(
        (*parts_of(match.masks), match.naming.mask)
    ):
        return False
    holds = contents.look(tree.root, [mask for _, mask in match.pairs])
    return holds not in (contents.INDEX, contents.COLORS)


def _of_two(tree: Tree, stems: dict[str, set[str]]) -> list[Match]:
    """Returns the matches of folders with the nearest ones that are named as masks are."""
    near = _index(stems)
    # Old masks and results are rivals, however far they lie.
    late = _index(f for f in stems if words.kinds_of(parts_of(f)) & {words.OLD, words.RESULT})
    found: list[tuple[int, Match]] = []
    for images in stems:
        done: set[int] = set()  # tiers that have matches nearer by
        for index, last in ((near, LIKELY), (late, UNLIKELY)):
            for nearness, level in _levels(images, index) if last not in done else ():
                matches = [
                    match for tier, masks in level if tier not in done
                    for match in _matches(tree, stems, images, masks)
                ]  # fmt: skip
                found += [(nearness, match) for match in matches]
                done |= {match.mask_tier for match in matches}
                if last in done:
                    break
    # Masks belong to the nearest images: numbered files have the same names in every folder.
    best: dict[tuple[str, int], int] = defaultdict(int)
    for nearness, match in found:
        key = match.masks, match.image_tier
        best[key] = max(best[key], nearness)
    return [match for nearness, match in found if nearness == best[match.masks, match.image_tier]]


_Index = dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]]


def _index(folders: Iterable[str]) -> _Index:
    """Returns {(first parts, last parts): folders with a word for masks in between}."""
    near: _Index = defaultdict(list)
    for folder in folders:
        parts = parts_of(folder)
        for start in range(len(parts)):
            for end in range(len(parts) - start):
                middle = parts[start : len(parts) - end]
                if words.kinds_of(middle) & {words.MASK, words.RESULT}:
                    near[parts[:start], parts[len(parts) - end :]].append(folder)
    return near


def _levels(images: str, near: _Index) -> Iterator[tuple[int, list[tuple[int, str]]]]:
    """Yields (parts in common, (tier, folder) that may hold the masks), the nearest first."""
    parts, seen = parts_of(images), {images}
    cuts = [(start, end) for start in range(len(parts) + 1) for end in range(len(parts) + 1)]
    for nearness, group in itertools.groupby(sorted(cuts, key=sum, reverse=True), key=sum):
        level = []
        for start, end in group:
            others = near.get((parts[:start], parts[len(parts) - end :]), ())
            for other in others if nearness or len(others) <= _MAX_FAR else ():
                if other in seen or sum(common(parts, parts_of(other))) != nearness:
                    continue
                seen.add(other)
                if is_one_split(images, other) and (tiers := roles(images, other)):
                    level.append((tiers[1], other))
        if level:
            yield nearness, level


def is_one_split(images: str, masks: str) -> bool:
    """Tells whether two folders may belong to one split, by their names."""
    found = []
    for folder in (images, masks):
        texts = (words.split_text(part) for part in parts_of(folder))
        found.append({text.core.lower() for text in texts if text})
    return not (found[0] and found[1]) or bool(found[0] & found[1])


def _matches(tree: Tree, stems: dict[str, set[str]], images: str, masks: str) -> list[Match]:
    found = []
    for rule, pairs in _pair(stems[images], stems[masks]):
        tiers = roles(images, masks, rule)
        if tiers:
            found.append(_match(tree, images, masks, rule, pairs, tiers))
    return found


def _pair(images: set[str], masks: set[str]) -> list[tuple[Naming, naming.Pairs]]:
    """Returns `naming.pair`; names of two Unicode forms are compared in one (see `in_form_of`)."""
    if not _is_mixed(images | masks):
        return naming.pair(images, masks)
    one, other = ({_composed(stem): stem for stem in sorted(stems)} for stems in (images, masks))
    return [(rule, [(one[image], other[mask]) for image, mask in pairs])
            for rule, pairs in naming.pair({*one}, {*other})]  # fmt: skip


def _pair_within(stems: set[str]) -> list[tuple[Naming, naming.Pairs]]:
    """Returns `naming.pair_within`, as `_pair` does."""
    if not _is_mixed(stems):
        return naming.pair_within(stems)
    names = {_composed(stem): stem for stem in sorted(stems)}
    return [(rule, [(names[image], names[mask]) for image, mask in pairs])
            for rule, pairs in naming.pair_within({*names})]  # fmt: skip


def _is_mixed(stems: set[str]) -> bool:
    """Tells whether some names are composed and others are not."""
    if all(map(str.isascii, stems)):
        return False
    return len({unicodedata.is_normalized("NFC", stem) for stem in stems if not stem.isascii()}) > 1


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _match(
    tree: Tree, images: str, masks: str, rule: Naming, pairs: naming.Pairs, tiers: tuple[int, int]
) -> Match:
    one, other = (_by_stem(folder, tree.pictures[folder]) for folder in (images, masks))
    paths = tuple((one[stem], other[mask]) for stem, mask in pairs)
    return Match(images, masks, rule, paths, *tiers)


def _by_stem(folder: str, names: Iterable[str]) -> dict[str, str]:
    return {PurePosixPath(name).stem: os.path.join(folder, name) for name in names}


def _within(tree: Tree, folder: str, paired: set[str]) -> list[Match]:
    """Returns the matches of pictures of one folder that are in no other match."""
    free = [n for n in tree.pictures[folder] if os.path.join(folder, n) not in paired]
    named: list[Match] = []
    unnamed: list[Match] = []
    for rule, pairs in _pair_within({PurePosixPath(name).stem for name in free}):
        tiers = roles(folder, folder, rule)
        match = _match(tree, folder, folder, rule, pairs, tiers or (LIKELY, LIKELY))
        (named if tiers else unnamed).append(match)
    used = {path for match in named for pair in match.pairs for path in pair}
    found = named + _twins(tree, folder, [n for n in free if os.path.join(folder, n) not in used])
    # Among masks and results, names alone tell too little.
    is_doubted = words.kinds_of(parts_of(folder)) & {words.MASK, words.OTHER, words.RESULT}
    if is_doubted or not found:
        found = [match for match in found or unnamed if _look_paired(tree, match.pairs)]
    return found


def _twins(tree: Tree, folder: str, names: list[str]) -> list[Match]:
    """Returns a match of the stems that a folder has with two suffixes, such as .jpg and .png."""
    by_suffix: dict[str, dict[str, str]] = defaultdict(dict)
    for name in names:
        stem, suffix = os.path.splitext(name)
        key = "lossy" if suffix.lower() in LOSSY_SUFFIXES else suffix
        by_suffix[key][_composed(stem)] = os.path.join(folder, name)
    for one, other in itertools.permutations(sorted(by_suffix), 2):
        both = sorted(by_suffix[one].keys() & by_suffix[other].keys())
        pairs = tuple((by_suffix[one][stem], by_suffix[other][stem]) for stem in both)
        if pairs and one == "lossy":
            return [Match(folder, folder, naming.SAME, pairs, LIKELY, LIKELY)]
        if len(pairs) >= max(2, len(by_suffix[one]) / 2) and _look_paired(tree, pairs):
            rule = Naming("suffix", one, other)
            return [Match(folder, folder, rule, pairs, LIKELY, LIKELY)]
    return []


def _look_paired(tree: Tree, pairs: tuple[tuple[str, str], ...]) -> bool:
    """Tells whether the first of each pair holds a photograph, and the second classes."""
    one, other = (contents.look(tree.root, names) for names in zip(*pairs, strict=True))
    is_photo = one == contents.PHOTO or (one, other) == (contents.SHADES, contents.INDEX)
    return is_photo and other in (contents.INDEX, contents.COLORS)


def _looks_drawn(tree: Tree, path: str) -> bool:
    return contents.look(tree.root, [path]) in (contents.INDEX, contents.COLORS)


def _of_strangers(
    tree: Tree, stems: dict[str, set[str]], paired: set[str], known: Sequence[Match]
) -> list[Match]:
    """Returns matches of folders whose names tell nothing, but whose files' names or pixels do.

    Args:
      tree: the files.
      stems: of each folder.
      paired: folders that are in a match by their names.
      known: matches with likely images; strangers may hold other masks of these.
    """
    free = [folder for folder in stems if folder not in paired][:_MAX_LOOKED]
    masks_of_known = {match.masks for match in known}
    hosts = sorted({match.images for match in known} - masks_of_known)[:_MAX_LOOKED]
    # Masks that pair with unlikely images alone, such as thumbnails, may be these images', too.
    lone = [f for f in stems if f not in masks_of_known and f not in hosts
            and not words.kinds_of(parts_of(f)) & _NO_STRANGERS][:_MAX_LONE]  # fmt: skip
    if hosts:
        lone = [f for f in lone if _looks_drawn(tree, os.path.join(f, tree.pictures[f][0]))]
    found: list[Match] = []
    looked = 0
    for images in (*free, *hosts):
        one = parts_of(images)
        others = [o for o in (lone if images in paired else free)
                  if o != images and is_one_split(images, o)]  # fmt: skip
        others.sort(key=lambda o: -sum(common(one, parts_of(o))))
        nearest = 0
        for masks in others:
            nearness = sum(common(one, parts_of(masks)))
            if nearness < nearest:
                break
            for rule, pairs in _pair(stems[images], stems[masks]):
                tiers = roles(images, masks, rule)
                match = _match(tree, images, masks, rule, pairs, tiers or (LIKELY, LIKELY))
                # Masks that are named so, or nearer, go first.
                is_late = images in paired and not words.grade((*parts_of(masks), rule.mask))
                if not tiers:
                    looked += 1
                    if rule.place or looked > _MAX_LOOKED or not _look_paired(tree, match.pairs):
                        continue
                    kinds = words.kinds_of(parts_of(masks)[len(one) - 1 :])
                    match = match._replace(mask_tier=mask_tier(kinds))
                found.append(match._replace(mask_tier=UNLIKELY) if is_late else match)
                nearest = nearness
    return found
