"""Chooses among matches: one data set, its rivals, and what else holds pairs."""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from deeplab_jax.doctor.findings import Finding
from deeplab_jax.doctor.layouts import contents, unused, words
from deeplab_jax.doctor.layouts.matches import BESIDE, LIKELY, UNLIKELY, Match, num_shared, parts_of
from deeplab_jax.doctor.layouts.shapes import Place, Shape, places, shapes, shown
from deeplab_jax.doctor.layouts.tree import Tree

_FIX = "to use another, set its fields in the recipe that --write-config proposes"


@dataclass
class Group:
    """Matches of one shape, which are one data set."""

    matches: list[Match]
    is_old: bool  # whether it lies in a folder of copies, results and the like
    order: tuple[object, ...] = ()  # the least is preferred
    masks_hold: str = ""  # what was seen; "" if nothing was opened
    rivals: list["Group"] = field(default_factory=list)

    @property
    def tiers(self) -> tuple[int, int]:
        """How likely it holds images and masks, the larger the less."""
        return self.matches[0].image_tier, self.matches[0].mask_tier

    @property
    def is_last(self) -> bool:
        """Whether it is used only if there is nothing else."""
        return self.is_old or max(self.tiers) == UNLIKELY

    @property
    def num_pairs(self) -> int:
        """Number of pairs of image and mask."""
        return sum(len(match.pairs) for match in self.matches)


class Choice(NamedTuple):
    """The place to be used, and what is told of the others."""

    place: Place
    findings: list[Finding]
    own_splits: tuple[str, ...]  # that lie elsewhere, and are told


def choose(tree: Tree, matches: Sequence[Match]) -> Choice | None:
    """Returns the place of the largest data set; None without matches."""
    matches, unlikely = _best_images(tree, matches)
    shape_of = shapes(matches)
    winners = _without_rivals(_groups(matches, shape_of, tree))
    found = [(group, place) for group in winners
             for place in places(tree, {m: shape_of[m] for m in group.matches})]  # fmt: skip
    if not found:
        return None
    found.sort(key=lambda pair: (pair[0].is_last, pair[0].tiers[0], -pair[1].num_pairs,
                                 words.grade(parts_of(pair[1].masks)),
                                 pair[1].images.count("/"), pair[1]))  # fmt: skip
    (group, place), others = found[0], found[1:]
    findings, told = unused.of_others(tree, place, [(other, one.is_last) for one, other in others])
    texts = [(one.is_last, _told(other, one)) for one, other in others if other not in told]
    rivals: list[tuple[Group, Group, Place]] = [
        (one, rival, other)
        for one in winners for rival in one.rivals
        for other in places(tree, {m: shape_of[m] for m in rival.matches})
    ]  # fmt: skip
    used = {path for match in place.matches for pair in match.pairs for path in pair}
    findings += [*_last_resort(group, place), *_rival_findings(place, used, rivals)]
    folders = {match.masks for _, _, other in rivals for match in other.matches}
    other_pictures = _told_unlikely([m for m in unlikely if m.images not in folders])
    own = tuple(split for other in told for split in other.splits)
    return Choice(place, [*findings, *_left_out(texts), *other_pictures], own)


def _best_images(tree: Tree, matches: Sequence[Match]) -> tuple[list[Match], list[Match]]:
    """Returns the matches with the likeliest images of each mask, and others with pictures."""
    best: dict[str, int] = {}
    for match in matches:
        for _, mask in match.pairs:
            best[mask] = min(match.image_tier, best.get(mask, UNLIKELY))
    kept, unlikely = [], []
    for match in matches:
        if all(best[mask] == match.image_tier for _, mask in match.pairs):
            kept.append(match)
            continue
        kinds = words.kinds_of((*parts_of(match.images), match.naming.image))
        holds = contents.look(tree.root, [image for image, _ in match.pairs])
        if holds == contents.PHOTO or words.SENSOR in kinds:  # not masks of another kind
            unlikely.append(match)
    return kept, unlikely


def _told_unlikely(matches: Sequence[Match]) -> list[Finding]:
    texts = {}
    for match in matches:
        name = f"{match.images or '.'}{f' (*{match.naming.image})' if match.naming.image else ''}"
        texts[name] = f"{name}: {len(match.pairs)} pictures"
    if not texts:
        return []
    title = f"{len(texts)} folder{'s' if len(texts) > 1 else ''} of other pictures of the same "
    return [Finding("note", "layout", title + "names not used", _FIX, tuple(texts.values()))]


def _groups(matches: Sequence[Match], shape_of: Mapping[Match, Shape], tree: Tree) -> list[Group]:
    shared = num_shared([parts_of(match.images) for match in matches]) if matches else 0
    groups: dict[object, Group] = {}
    for match in matches:
        head = shape_of[match].head[shared:]
        is_old = bool(words.kinds_of(head) & {words.OLD, words.RESULT})
        key = shape_of[match].key, is_old, match.image_tier, match.mask_tier
        groups.setdefault(key, Group([], is_old)).matches.append(match)
    found = list(groups.values())
    uses = Counter(path for group in found for path in {*_paths(group.matches)})
    for group in found:
        contested = [path for path in _paths(group.matches) if uses[path] > 1]
        most = max((other.num_pairs for other in found if contested
                    and not {*contested}.isdisjoint(_paths(other.matches))), default=0)  # fmt: skip
        group.order = _order(tree, group, bool(contested), 2 * group.num_pairs < most)
    return sorted(found, key=lambda group: group.order)


def _paths(matches: Iterable[Match]) -> Iterable[str]:
    return (path for match in matches for pair in match.pairs for path in pair)


def _order(tree: Tree, group: Group, is_contested: bool, is_small: bool) -> tuple[object, ...]:
    """Returns a sort key: by names, then by what a few pictures hold, then by number."""
    image_rank = mask_rank = 0
    if is_contested:
        images, masks = zip(*(pair for match in group.matches for pair in match.pairs), strict=True)
        group.masks_hold = contents.look(tree.root, masks)
        mask_rank = contents.AS_MASKS.index(group.masks_hold)
        image_rank = contents.AS_IMAGES.index(contents.look(tree.root, images))
    image_tier, mask_tier = group.tiers
    is_bad = mask_rank >= contents.AS_MASKS.index(contents.SHADES)
    first = group.matches[0]
    is_named = words.IMAGE in words.kinds_of((*parts_of(first.images), first.naming.image))
    return (
        group.is_last, is_bad, max(mask_tier, image_tier) >= BESIDE, is_small, mask_tier,
        image_tier, mask_rank, image_rank, not is_named, -group.num_pairs,
        words.grade((*parts_of(first.masks), first.naming.mask)),
        *_oddness(first.masks, first.naming.mask), *_oddness(first.images, first.naming.image),
        first.masks, first.images, first.naming,
    )  # fmt: skip


def _oddness(folder: str, part: str) -> tuple[int, tuple[int, ...], int]:
    """Returns a sort key: names drawn by hand first, late versions, few words."""
    names = [*parts_of(folder), part]
    found = [word for name in names for word in words.words(name)]
    versions = re.findall(r"(?<![a-z])v(\d+)", "/".join(names).lower())
    return -("manual" in found), tuple(-int(v) for v in versions), len(found)


def _without_rivals(groups: list[Group]) -> list[Group]:
    """Returns the groups, in order, whose files none before has; the others become rivals."""
    owner: dict[str, Group] = {}
    winners = []
    for group in groups:
        free: list[Match] = []
        taken: dict[int, list[Match]] = defaultdict(list)
        for match in group.matches:
            first = next((owner[path] for path in _paths([match]) if path in owner), None)
            (free if first is None else taken[id(first)]).append(match)
            if first is not None and len(taken[id(first)]) == 1:
                first.rivals.append(Group(taken[id(first)], group.is_old, group.order,
                                          group.masks_hold))  # fmt: skip
        if free:
            winner = Group(free, group.is_old, group.order, group.masks_hold)
            winners.append(winner)
            owner |= dict.fromkeys(_paths(free), winner)
    return winners


def _told(place: Place, group: Group) -> str:
    place = place.settled()
    holds = f" ({group.masks_hold})" if group.masks_hold else ""
    number = f"{place.num_pairs} pair{'' if place.num_pairs == 1 else 's'}"
    return f"{shown(place.images)} with {shown(place.masks)}{holds}: {number}; {place.fields()}"


def _last_resort(group: Group, place: Place) -> list[Finding]:
    if not group.is_last and max(group.tiers) < BESIDE:
        return []
    place = place.settled()
    title = f"{shown(place.images)} with {shown(place.masks)} is used: nothing else pairs"
    fix = "look whether these are the masks you mean: the names are those of results, copies or "
    return [Finding("warning", "layout", title, fix + "other pictures")]


def _rival_findings(
    place: Place, used: set[str], rivals: Sequence[tuple[Group, Group, Place]]
) -> list[Finding]:
    """Returns what is told of folders that could take the place of others."""
    alike, late, unlike = [], [], []
    named: set[str] = set()  # folders of masks that are told
    for winner, rival, other in rivals:
        pairs = [pair for match in other.matches for pair in match.pairs]
        is_new = not any(image in used for image, _ in pairs)
        if used.issuperset(itertools.chain(*pairs)):
            continue  # the same files, paired otherwise or in part
        folders = {match.masks for match in other.matches}
        if rival.is_last and folders <= named:
            continue  # more kinds of results in one folder
        named |= folders
        if not rival.is_last and max(rival.tiers) <= max(LIKELY, *winner.tiers):
            alike.append(_told(other, rival))
        elif rival.is_last and (not is_new or rival.tiers[0] == winner.tiers[0]):
            late.append(_told(other, rival))
        elif rival.is_last or is_new or rival.tiers[0] > winner.tiers[0]:
            unlike.append(_told(other, rival))
    found = []
    if alike:
        place = place.settled()
        names = f"{shown(place.images)} with {shown(place.masks)}"
        title = f"{names} is chosen among {len(alike) + 1} of like names"
        found.append(Finding("warning", "layout", title, _FIX, tuple(alike)))
    for severity, texts in (("warning", late), ("note", unlike)):
        if texts:
            title = f"{len(texts)} place{'s' if len(texts) > 1 else ''} of the same names not used"
            found.append(Finding(severity, "layout", title, _FIX, tuple(texts)))
    return found


def _left_out(texts: Sequence[tuple[bool, str]]) -> list[Finding]:
    """Returns what is told of pairs that are not used; `texts` are (whether unlikely, text)."""
    found = []
    for is_last, severity in ((False, "warning"), (True, "note")):
        items = tuple(text for is_unlikely, text in texts if is_unlikely == is_last)
        if items:
            title = f"{len(items)} other place{'s' if len(items) > 1 else ''} with pairs not used"
            fix = f"{_FIX}; to use all at once, lay them out alike"
            found.append(Finding(severity, "layout", title, fix, items))
    return found
