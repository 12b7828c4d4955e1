"""Patterns of `config.data.images` and `masks` for matches in several folders."""

import itertools
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from deeplab_jax.data.patterns import IMAGE_SUFFIXES, Pattern
from deeplab_jax.doctor.layouts import words
from deeplab_jax.doctor.layouts.matches import Match, common, num_shared, parts_of
from deeplab_jax.doctor.layouts.naming import Naming
from deeplab_jax.doctor.layouts.tree import Tree

SPLIT = "{split}"
_MAX_SHOWN = 4
Parts = tuple[str, ...]


class Shape(NamedTuple):
    """The folders of a match in four pieces, {split} in place of the split's name.

    Images lie in head/own/tail/below, masks in head/theirs/tail/below.
    """

    head: Parts
    own: Parts
    theirs: Parts
    tail: Parts
    below: Parts
    naming: Naming
    split: str  # "" without a split

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for the shapes of one data set."""
        return self.own, self.theirs, self.naming, SPLIT in self.tail, bool(self.split)


class Place(NamedTuple):
    """Fields of `config.data` that read matches, and these."""

    images: str
    masks: str
    mask_suffix: str
    matches: tuple[Match, ...]
    splits: dict[str, int]  # {name: pairs}

    @property
    def num_pairs(self) -> int:
        """Number of pairs of image and mask."""
        return sum(len(match.pairs) for match in self.matches)

    def settled(self) -> "Place":
        """Returns the place with the split's name in place of {split}, if there is but one."""
        if len(self.splits) != 1:
            return self
        (split,) = self.splits
        return self._replace(images=self.images.replace(SPLIT, split),
                             masks=self.masks.replace(SPLIT, split))  # fmt: skip

    def fields(self) -> str:
        """Returns the fields as they are typed."""
        texts = [f'data.images="{self.images}"', f'data.masks="{self.masks}"']
        return " ".join(texts + [f'data.mask_suffix="{self.mask_suffix}"'] * bool(self.mask_suffix))


def shown(pattern: str) -> str:
    """Returns a pattern with at most a few of the texts in braces."""

    def clip(found: re.Match[str]) -> str:
        texts = found[1].split(",")
        more = f",... {len(texts) - _MAX_SHOWN} more" if len(texts) > _MAX_SHOWN + 1 else ""
        return f"{{{','.join(texts[:_MAX_SHOWN] if more else texts)}{more}}}"

    return re.sub(r"\{([^{}]*)\}", clip, pattern)


def shapes(matches: Sequence[Match]) -> dict[Match, Shape]:
    """Returns the shapes; the split is the part that tells the most splits of one place."""
    seen: dict[object, set[str]] = defaultdict(set)
    options = {match: _options(match) for match in matches}
    for found in options.values():
        for shape in found:
            for key in (_text(shape), (_text(shape), shape.naming)):
                seen[key].add(shape.split)
    chosen = {}
    for match, found in options.items():
        known = [s for s in found if not s.split or _is_split(s.split, match, seen[_text(s)])]
        chosen[match] = max(known, key=lambda s: (
            len(seen[_text(s), s.naming]) > 1, len(seen[_text(s)]) > 1, bool(s.split)
        ))  # fmt: skip
    return chosen


def _text(shape: Shape) -> str:
    """Returns what the places of one data set's splits have in common; * is a scene."""
    head = shape.head
    if SPLIT in "/".join(head):
        ends = (part.partition(SPLIT) for part in head)
        head = tuple("*" * (start[-1:] in "-_ ") + split + end if split else "*"
                     for start, split, end in ends)  # fmt: skip
    return "/".join((*head, ">", *shape.own, ">", *shape.theirs, ">", *shape.tail))


def _is_split(split: str, match: Match, others: set[str]) -> bool:
    """Tells whether a split's name is one by its words, or beside a split of the other kind."""
    texts = (words.split_text(part) for part in parts_of(match.images))
    if any(text and text.is_word and text.core in split for text in texts):
        return True
    return len({words.is_train(other) for other in others}) == 2


def _options(match: Match) -> list[Shape]:
    """Returns the shapes of a match: one for each part that may tell the split, one without."""
    one, other = parts_of(match.images), parts_of(match.masks)
    start, end = common(one, other)
    head, tail = one[:start], one[len(one) - end :]
    own, theirs = one[start : len(one) - end], other[start : len(other) - end]
    texts = [_whole(part) for part in (*head, *tail)]
    for part in own:
        found = words.split_text(part)
        texts += [found.core] if found else []
    options = [
        _shape(match, text, head, own, theirs, tail)._replace(naming=rule)
        for text in dict.fromkeys(texts) if text
        for rule in dict.fromkeys((_named(match.naming, text), match.naming))
    ]  # fmt: skip
    return [*options, Shape(head, own, theirs, (), tail, match.naming, "")]


def _whole(part: str) -> str:
    """Returns the name of the split in a part of both folders, with its year; "" without."""
    found = words.split_text(part)
    if found is None:
        return ""
    rest = [word for word in words.words(part[found.stop :]) if not word.isdigit()]
    is_whole = found.start == 0 and set(rest) <= {"set", "data", "split"}
    return part if is_whole else found.core


def _shape(match: Match, split: str, head: Parts, own: Parts, theirs: Parts, tail: Parts) -> Shape:
    head, own, theirs, tail = (
        tuple(_put(p, split) for p in ps) for ps in (head, own, theirs, tail)
    )
    below: Parts = ()
    if not own and not theirs:  # one folder
        cut = next((i + 1 for i, part in enumerate(head) if SPLIT in part), len(head))
        head, below = head[:cut], head[cut:]
    else:
        cut = next((i + 1 for i, part in enumerate(tail) if SPLIT in part), 0)
        tail, below = tail[:cut], tail[cut:]
    return Shape(head, own, theirs, tail, below, match.naming, split)


def _named(rule: Naming, split: str) -> Naming:
    """Returns a rule of names with {split} where it tells the split, as in 21_training.tif."""
    return rule._replace(image=_put(rule.image, split), mask=_put(rule.mask, split))


def _put(part: str, split: str) -> str:
    """Returns a part with {split} for the split's name where that is told."""
    found = words.split_text(part)
    start = found.start if found else 0
    if (found or part == split) and part[start:].startswith(split):
        return part[:start] + SPLIT + part[start + len(split) :]
    return part


def places(tree: Tree, members: dict[Match, Shape]) -> list[Place]:
    """Returns the fewest places that read the matches of one key and nothing else."""
    for is_listed in (False, True):
        for is_kept in (False, True):
            place = _place(tree, members, is_listed, is_kept)
            if not _has_more(tree, place):
                return [place]
    parts: dict[object, dict[Match, Shape]] = defaultdict(dict)
    heads = [shape.head for shape in members.values()]
    prefix = num_shared(heads)
    is_even = len({len(head) for head in heads}) == 1
    for match, shape in members.items():
        parts[shape.head[prefix : prefix + 1] if is_even else len(shape.head)][match] = shape
    if len(parts) < 2:
        return [_place(tree, members, False, False)]
    return [place for part in parts.values() for place in places(tree, part)]


def _place(tree: Tree, members: dict[Match, Shape], is_listed: bool, is_kept: bool) -> Place:
    """Returns a place for matches.

    Args:
      tree: where they were found.
      members: matches and shapes of one key.
      is_listed: write {a,b}, not *.
      is_kept: write the folders below, too.
    """
    found = list(members.values())
    if is_kept:
        found = [s._replace(tail=s.tail + s.below, below=()) if s.own or s.theirs
                 else s._replace(head=s.head + s.below, below=()) for s in found]  # fmt: skip
    first = found[0]
    if not (first.own or first.theirs or first.split or is_listed or is_kept):
        prefix = num_shared([s.head for s in found])
        found = [s._replace(head=s.head[:prefix], below=s.head[prefix:]) for s in found]
    head = _generalise([s.head for s in found], is_listed)
    tail = _generalise([s.tail for s in found], is_listed)
    images, masks = (*head, *first.own, *tail), (*head, *first.theirs, *tail)
    rule, is_flat = first.naming, not any(s.below for s in found)
    had_below = any(shape.below for shape in members.values())
    is_file = rule.is_pattern or (is_kept and not had_below)
    ends = rule.patterns(_heads(members)) if is_file else ("", "")
    is_one_folder = not first.own and not first.theirs
    if is_one_folder and rule.mask_suffix and (suffix := _own_suffix(tree, members)):
        is_file, ends = True, (f"*{suffix}", rule.patterns()[1])
    if is_file:
        below = () if is_flat else ("**",)
        images, masks = ((*p, *below, end) for p, end in zip((images, masks), ends, strict=True))
    splits: dict[str, int] = defaultdict(int)
    for match, shape in members.items():
        splits[shape.split] += len(match.pairs)
    splits.pop("", None)
    mask_suffix = "" if is_file else rule.mask_suffix
    one, other = ("/".join(path) or "." for path in (images, masks))
    return Place(one, other, mask_suffix, tuple(members), dict(splits))


def _own_suffix(tree: Tree, members: Iterable[Match]) -> str:
    """Returns the suffix of the images in the masks' folder, where it tells them from others."""
    images, others = set(), set()
    for match in members:
        pairs = {*itertools.chain(*match.pairs)}
        images |= {os.path.splitext(image)[1] for image, _ in match.pairs}
        paths = (os.path.join(match.images, name) for name in tree.pictures[match.images])
        others |= {os.path.splitext(path)[1] for path in paths if path not in pairs}
    return images.pop() if others and len(images) == 1 and not images & others else ""


def _heads(members: Iterable[Match]) -> set[str]:
    """Returns the texts before the part in the middle of the images' names."""
    found = set()
    for match in members:
        if match.naming.place == "middle":
            for image, mask in match.pairs:
                names = [os.path.basename(path) for path in (image, mask)]
                cut = names[1].find(match.naming.mask, num_shared(names) - 1)
                part = match.naming.image
                found.add(names[0][: names[0].find(part)] if part else names[1][: max(cut, 0)])
    return found


def _generalise(paths: list[Parts], is_listed: bool) -> Parts:
    """Returns a pattern for paths: * for each part that differs, ** where their number does.

    With `is_listed` it is {a,b/c}, the texts that differ.
    """
    unique = sorted(set(paths))
    if len(unique) == 1:
        return unique[0]
    if all(SPLIT in path for path in unique):
        cuts = [path.index(SPLIT) for path in unique]
        before = _generalise(
            [path[:cut] for path, cut in zip(unique, cuts, strict=True)], is_listed
        )
        after = [path[cut + 1 :] for path, cut in zip(unique, cuts, strict=True)]
        return (*before, SPLIT, *_generalise(after, is_listed))
    prefix = num_shared(unique)
    rest = [path[prefix:] for path in unique]
    suffix = num_shared([path[::-1] for path in rest])
    middle = [path[: len(path) - suffix] for path in rest]
    end = rest[0][len(rest[0]) - suffix :]
    if is_listed and all(middle) and not any(SPLIT in part for path in middle for part in path):
        texts = ("/".join(path) for path in middle)
        return (*unique[0][:prefix], f"{{{','.join(texts)}}}", *end)
    if len({len(path) for path in middle}) > 1:
        return (*unique[0][:prefix], "**", *end)
    columns = (sorted(set(column)) for column in zip(*middle, strict=True))
    return (*unique[0][:prefix], *map(_any_of, columns), *end)


def _any_of(texts: list[str]) -> str:
    """Returns a part of a pattern, such as *_{split} for scene1_{split} and scene2_{split}."""
    if len(texts) == 1:
        return texts[0]
    split, end = (SPLIT, texts[0].partition(SPLIT)[2]) if SPLIT in texts[0] else ("", "")
    return f"*{split}{end}" if all(text.endswith(split + end) for text in texts) else "*"


def _has_more(tree: Tree, place: Place) -> bool:
    """Tells whether a place reads pictures in folders beyond those of its matches."""
    known = {folder for match in place.matches for folder in (match.images, match.masks)}
    masks = tuple(place.mask_suffix + suffix for suffix in IMAGE_SUFFIXES)
    for pattern, suffixes in ((place.images, IMAGE_SUFFIXES), (place.masks, masks)):
        found = Pattern(pattern, None, suffixes)
        for folder, names in tree.pictures.items():
            if folder in known:
                continue
            start = "/" if pattern == "." else ""
            paths = (start + os.path.join(folder, name) for name in names)
            if any((file := found.match(path)) and (not file.split or file.split in place.splits)
                   for path in paths):  # fmt: skip
                return True
    return False
