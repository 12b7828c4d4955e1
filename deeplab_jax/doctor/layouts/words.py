"""Words in names of folders and files: of images, of masks, of what lies beside them, of splits."""

import functools
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

IMAGE, MASK, SEMANTIC, COLOR, OTHER, SENSOR, RESULT, OLD = (
    "image", "mask", "semantic", "color", "other", "sensor", "result", "old",
)  # fmt: skip
_KINDS = {
    IMAGE: "image img photo photograph picture pic rgb satellite sat input raw frame still ortho "
    "orthophoto pansharpen pansharpened original orig source src scan slide jpeg jpegimages",
    MASK: "mask msk label lbl ann anno annot annotation gt gth gtfine gtcoarse groundtruth truth "
    "seg segm segmentation target tgt manual pixelmap stuffthingmap stuff "
    "labelmap classmap trimap bitmask matte matting",
    SEMANTIC: "semantic sem semseg",  # masks for certain, whatever else stands there
    # pictures of masks in colours
    COLOR: "color colour colored coloured colormap human palette",
    # other pictures of what is in an image
    OTHER: "instance instanceid inst ins object panoptic pan edge boundary boundaries border "
    "noboundary outline contour polygon skeleton overlay blend blended vis viz visual "
    "visualization visualisation",
    SENSOR: "depth disparity disp normal ir nir irrg infrared thermal dsm ndsm dem elevation "
    "lidar flow hha",
    RESULT: "pred prediction predicted result output inference infer submission prob probability "
    "probabilities heatmap confidence score logit softmax preview thumb thumbnail debug",
    OLD: "old older backup bak copy tmp temp archive archived trash deprecated obsolete draft "
    "augmented augmentation",
    # words without a meaning here, which other words may be glued to
    "": "set data dataset png jpg tif tiff class full machine train training val valid validation "
    "test testing id trainid labelid fine coarse new aug context fold split part list official",
}
_KIND = {word: kind for kind, words in _KINDS.items() for word in words.split()}
_WHOLE = {"x": IMAGE, "y": MASK, "l": MASK}  # words where nothing else stands
_FINE = {"fine", "gtfine", "hq", "refined", "accurate", "precise", "corrected", "cleaned"}
_COARSE = {"coarse", "gtcoarse", "lq", "rough", "weak", "noisy", "pseudo", "auto", "automatic"}
# of people that draw the same masks, who are no classes
_PEOPLE = {"annotator", "expert", "rater", "observer", "reader", "labeler", "labeller", "grader",
           "reviewer", "user"}  # fmt: skip
_ALSO_CLASSES = ("human", "normal")
_NO_CLASS = re.compile(r"\d(st|nd|rd|th)|(?<![a-z])v\d", re.IGNORECASE)
_NO_MASKS = re.compile(r"un(label|annotat|supervised)|no[tn]?[-_ ]?(label|annot|mask)|without|demo|"
                       r"challenge|pending|todo", re.IGNORECASE)  # fmt: skip

# Names of splits; "train", and the ones that are taken if that is not there.
TRAIN = ("trainaug", "train", "training", "trn", "trainval", "train_val", "train-val")
VAL = ("val", "valid", "validation", "validate", "holdout", "dev", "eval", "test", "testing", "tst")
TEST = ("test", "testing", "tst")
_CORES = sorted((*TRAIN, *VAL), key=len, reverse=True)
_CORE = re.compile("|".join(_CORES), re.IGNORECASE)
_SHORT = ("dev", "eval", "trn", "tst")  # no splits as part of a longer name
_PLURALS = ("s", "es")


@functools.cache
def words(text: str) -> tuple[str, ...]:
    """Returns the words of a name in lower case, without plural; known ones that are glued apart.

    "SegmentationClass" is ("segmentation", "class"), "trainannot" ("train", "annot").
    """
    found: list[str] = []
    for chunk in re.findall(r"[^\W\d_]+|\d+", text):
        glued = _unglue(chunk.lower())
        if glued:
            found += glued
            continue
        parts = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", chunk).lower()
        for part in parts.split("_"):
            found += _unglue(part) or (part,)
    return tuple(found)


@functools.cache
def _unglue(chunk: str) -> tuple[str, ...]:
    """Returns the known words that a chunk of letters consists of; () for an unknown chunk."""
    for word in (chunk, *(chunk.removesuffix(plural) for plural in _PLURALS)):
        if word in _KIND or (len(word) == 1 and word in _WHOLE):
            return (word,)
    for cut in range(len(chunk) - 2, 1, -1):
        if chunk[:cut] in _KIND and (rest := _unglue(chunk[cut:])) and len(rest[0]) > 1:
            return (chunk[:cut], *rest)
    return ()


def kinds(one: Sequence[str], other: Sequence[str]) -> frozenset[str]:
    """Returns the kinds of words in the names `one`, without words that `other` has, too."""
    common = {word for text in other for word in words(text)}
    found = set()
    for text in one:
        known = [word for word in words(text) if word not in common]
        found |= {_KIND.get(word, "") for word in known if len(word) > 1}
        if len([word for word in words(text) if not word.isdigit()]) == 1:
            found |= {_WHOLE[word] for word in known if word in _WHOLE}
    found |= {MASK} if SEMANTIC in found else set()
    return frozenset(found - {""})


def kinds_of(texts: Iterable[str]) -> frozenset[str]:
    """Returns the kinds of words in names."""
    return kinds(tuple(texts), ())


def grade(texts: Iterable[str]) -> int:
    """Returns -1 for names of masks drawn finely, 1 for coarse ones, 0 where nothing tells."""
    found = {word for text in texts for word in words(text)}
    return bool(found & _COARSE) - bool(found & _FINE)


def class_name(text: str) -> str:
    """Returns the class that a name tells beside words for masks: "car" of "mask_car"; "" without.

    Versions, people, numbers and words of any other meaning are no classes.
    """
    if _NO_CLASS.search(text) or grade([text]):
        return ""
    pieces = re.findall(r"[^\W\d_]+|\d+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", text))  # leftMask
    named = [p for p in pieces if not all(_KIND.get(w) in (MASK, "") for w in words(p))]
    has_class = "class" in words(text)
    if not named and has_class:
        named = [p for p in pieces if p.isdigit()]
        return f"class{named[0]}" if len(named) == 1 else ""
    known = {w for piece in named for w in words(piece)}
    is_plain = all(not w.isdigit() and (w not in _KIND or w in _ALSO_CLASSES) for w in known)
    is_plain &= any(len(word) > 1 for word in known)
    return "_".join(named) if named and is_plain and not known & _PEOPLE else ""


def is_unlabelled(path: str) -> bool:
    """Tells whether a path is of images that are to have no masks: to test on, not yet labelled."""
    splits = (split_text(part) for part in path.split("/"))
    return bool(_NO_MASKS.search(path)) or any(s and s.core.lower() in TEST for s in splits)


class SplitText(NamedTuple):
    """The name of a split within a name."""

    start: int
    stop: int
    core: str  # as it is written, such as "Train"
    is_word: bool  # whether all other words of the name are known or numbers


@functools.cache
def split_text(name: str) -> SplitText | None:
    """Returns where a name tells a split: "train2017", "Val_set", "trainannot", "images_test"."""
    for found in _CORE.finditer(name):
        before, after, core = name[: found.start()], name[found.end() :], found[0]
        if before[-1:].isalpha() and not (core[0].isupper() and before[-1].islower()):
            continue
        letters = re.match(r"[^\W\d_]*", after)
        glued = letters[0] if letters else ""
        if glued and not (glued[0].isupper() and core[-1].islower()) and not _unglue(glued.lower()):
            continue
        others = [word for word in (*words(before), *words(after)) if not word.isdigit()]
        if core.lower() in _SHORT and others:
            continue
        is_word = all(word in _KIND for word in others)
        return SplitText(found.start(), found.end(), core, is_word)
    return None


def is_train(split: str) -> bool:
    """Tells whether the name of a split, such as "train2017", is one to train on."""
    found = split_text(split)
    return found is not None and found.core.lower() in TRAIN


def rank(split: str, names: tuple[str, ...]) -> tuple[int, str]:
    """Returns the place of a split among names, the first of which is preferred."""
    found = split_text(split)
    core = found.core.lower() if found else ""
    return (names.index(core) if core in names else len(names)), split
