"""How a mask's name follows from its image's: equal, longer, or with another part in its place."""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from deeplab_jax.doctor.layouts import words

_SAMPLE = 100  # images that rules are learnt from
_MAX_PIECES = 16  # that a name is cut into, so that long ones do not take long
_ENOUGH = 0.5  # of the images or masks that a rule speaks of must be paired
_MAX_RULES = 6
_MAX_HEADS = 6  # texts before a part in the middle, else any text

_NUMBER = re.compile(r"(?<![^\W_])\d+(?![^\W_])")  # apart from letters
_LOOSE_NUMBER = re.compile(r"(?<![^\W\d_])\d+(?![^\W_])")  # also the end of T01, not of T1

Pairs = list[tuple[str, str]]  # (stem of the image, stem of the mask)


class Naming(NamedTuple):
    """A rule from the stem of an image to that of its mask."""

    # of the part that differs: "" (none), "start", "middle", "end", "whole", or "suffix" of a file
    place: str
    image: str = ""  # that part of the image
    mask: str = ""  # that part of the mask

    @property
    def mask_suffix(self) -> str:
        """What the mask's stem adds to the image's, if that is all."""
        return self.mask if self.place == "end" and not self.image else ""

    @property
    def is_pattern(self) -> bool:
        """Whether patterns of files must tell the rule."""
        return bool(self.place) and not self.mask_suffix

    def patterns(self, heads: Iterable[str] = ()) -> tuple[str, str]:
        """Returns the patterns of images and masks; `heads` stand before a part in the middle."""
        if self.place == "middle":
            texts = sorted(set(heads))
            head = texts[0] if len(texts) == 1 else f"{{{','.join(texts)}}}"
            head = head if 0 < len(texts) <= _MAX_HEADS else "*"
            return f"{head}{self.image}*.*", f"{head}{self.mask}*.*"
        forms = {"start": "{}*.*", "end": "*{}.*", "whole": "{}.*", "suffix": "*{}", "": "*.*"}
        form = forms[self.place]
        return form.format(self.image), form.format(self.mask)


SAME = Naming("")


def pair(images: set[str], masks: set[str]) -> list[tuple[Naming, Pairs]]:
    """Returns the rules that pair most of the stems of two folders."""
    same = images & masks
    if same and len(same) >= _ENOUGH * min(len(images), len(masks)):
        return [(SAME, [(stem, stem) for stem in sorted(same)])]
    return _learn(images, masks, is_one_folder=False)


def pair_within(stems: set[str]) -> list[tuple[Naming, Pairs]]:
    """Returns the rules that pair stems of one folder."""
    return _learn(stems, stems, is_one_folder=True)


def _learn(images: set[str], masks: set[str], is_one_folder: bool) -> list[tuple[Naming, Pairs]]:
    ordered = sorted(images)
    # At random: every second name may be a mask's.
    sample = random.Random(0).sample(ordered, min(_SAMPLE, len(ordered)))
    numbers = {number for stem in sample for number in re.findall(r"\d+", stem)}
    near = [m for m in masks if not numbers or numbers.intersection(re.findall(r"\d+", m))]
    parts_of: dict[tuple[str, str], set[str]] = defaultdict(set)
    for mask in near:
        for key, part in _cuts(mask):
            parts_of[key].add(part)
    counts: Counter[Naming] = Counter()
    for stem in sample:
        rules = set()
        for (head, tail), part in _cuts(stem):
            for other in parts_of.get((head, tail), ()):
                place = ("whole", "end", "start", "middle")[bool(head) + 2 * bool(tail)]
                if _is_rule(place, part, other, is_one_folder):
                    rules.add(Naming(place, part, other))
        counts.update(rules)
    found: list[tuple[Naming, Pairs]] = []
    seen = set()
    best = sorted(counts, key=lambda rule: (-counts[rule], *_length(rule), rule))
    for rule in best[: 3 * _MAX_RULES]:
        pairs = _apply(rule, images, masks)
        speaks = [sum(_has(stem, part, rule.place) for stem in stems)
                  for stems, part in ((images, rule.image), (masks, rule.mask))]  # fmt: skip
        if pairs and frozenset(pairs) not in seen and len(pairs) >= _ENOUGH * min(speaks):
            found.append((rule, pairs))
            seen.add(frozenset(pairs))
    return found[:_MAX_RULES]


def _length(rule: Naming) -> tuple[int, int]:
    """Returns a sort key: parts that are cut at a separator, "_rgb" and not "rgb", then short."""
    parts = [part for part in (rule.image, rule.mask) if part]
    edge = 0 if rule.place == "end" else -1
    return sum(part[edge].isalnum() for part in parts), len(rule.image) + len(rule.mask)


def _cuts(stem: str) -> list[tuple[tuple[str, str], str]]:
    """Returns ((text before, text after), part) for each part that can be cut from a stem."""
    pieces = re.findall(r"[^\W\d_]+|\d+|[\W_]+(?=[\W_])|[\W_]", stem)  # ")_" is two pieces
    if len(pieces) > _MAX_PIECES:  # such as a hash: roles stand near the ends
        half = _MAX_PIECES // 2
        pieces[half : 1 - half] = ["".join(pieces[half : 1 - half])]
    ends = [0]
    for piece in pieces:
        ends.append(ends[-1] + len(piece))
    return [((stem[:i], stem[j:]), stem[i:j]) for n, i in enumerate(ends) for j in ends[n:]]


def _is_rule(place: str, image: str, mask: str, is_one_folder: bool) -> bool:
    """Tells whether two parts may differ by their role alone: "_rgb" and "_label"."""
    if image == mask or re.search(r"[{}*?\[\],]", image + mask):
        return False
    if not all(any(map(str.isalnum, part or "a")) for part in (image, mask)):
        return False
    theirs, own = words.kinds((mask,), (image,)), words.kinds((image,), (mask,))
    is_mask = words.MASK in theirs or words.RESULT in theirs
    number = _LOOSE_NUMBER if is_one_folder and not is_mask else _NUMBER
    if _LOOSE_NUMBER.search(image) or number.search(mask):
        return False  # another number is another sample
    if place == "whole" and (not image or not mask or re.search(r"\d", image + mask)):
        return False
    if words.MASK in own or ("r" in words.words(image) and "l" in words.words(mask)):
        return False  # or right and left
    return is_mask or not image or (not is_one_folder and (words.IMAGE in own or not mask))


def _has(stem: str, part: str, place: str) -> bool:
    if place == "start":
        return stem.startswith(part)
    return stem.endswith(part) if place == "end" else part in stem


def _apply(rule: Naming, images: set[str], masks: set[str]) -> Pairs:
    found = {}
    for stem in sorted(images):
        others: Sequence[str] = ()
        if rule.place == "whole":
            others = (rule.mask,) if stem == rule.image else ()
        elif rule.place == "start" and stem.startswith(rule.image):
            others = (rule.mask + stem[len(rule.image) :],)
        elif rule.place == "end" and stem.endswith(rule.image):
            others = (stem[: len(stem) - len(rule.image)] + rule.mask,)
        elif rule.place == "middle":
            others = [head + rule.mask + tail for (head, tail), part in _cuts(stem)
                      if part == rule.image and head and tail]  # fmt: skip
        mask = next((name for name in others if name in masks and name != stem), None)
        if mask is not None:
            found[stem] = mask
    masks_used = set(found.values())
    return [(stem, mask) for stem, mask in found.items() if stem not in masks_used]
