"""The rules that a data set is checked by, as a table over its survey."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import NamedTuple

from deeplab_jax.config import IGNORE_INDEX
from deeplab_jax.data.labels import value_ranges
from deeplab_jax.data.pictures.masks import CHANNELS
from deeplab_jax.doctor.advice import depth, rare
from deeplab_jax.doctor.findings import NAMED_OTHERWISE, Finding, set_aside, worst_first
from deeplab_jax.doctor.layouts.matches import num_shared
from deeplab_jax.doctor.scan import Color, Pair, SampleFacts
from deeplab_jax.doctor.survey import Survey
from deeplab_jax.doctor.values import is_scale, objects_of, of_other_scale

_USUAL_BATCH = 8
_SHIFTS = {-1: "subtracted", 1: "added"}


class Case(NamedTuple):
    """A finding whose text depends on more than the number of places."""

    items: tuple[str, ...] = ()  # the places; a case without places is a finding, too
    # values of the names in braces in the rule's title and fix
    words: Mapping[str, str | int] = MappingProxyType({})


Find = Callable[[Survey], Iterable[str | Case]]


class Rule(NamedTuple):
    """One check, and the text of its finding; see `Finding`."""

    severity: str
    kind: str
    title: str  # {n} is the number of places; {s}, {es}, {v} and {be} agree with it
    fix: str | Callable[[Survey], str]
    find: Find  # returns the places, which make one finding together; or cases, a finding each


def check(survey: Survey) -> list[Finding]:
    """Returns all findings of a data set, worst first."""
    found = (finding for rule in RULES for finding in _apply(rule, survey))
    return worst_first([*survey.faults, *found])


def _apply(rule: Rule, survey: Survey) -> Iterator[Finding]:
    found = list(rule.find(survey))
    cases = [case for case in found if isinstance(case, Case)]
    places = tuple(place for place in found if isinstance(place, str))
    for items, words in [*cases, Case(places)] if places else cases:
        words = {**_count(len(items)), **words}
        title = rule.title.format(**words)
        fix = rule.fix.format(**words) if isinstance(rule.fix, str) else rule.fix(survey)
        yield Finding(rule.severity, rule.kind, title, fix, items)


def _count(number: int) -> dict[str, str | int]:
    """Returns the words of a title that depend on a number."""
    if number == 1:
        return {"n": 1, "s": "", "es": "", "v": "s", "be": "is"}
    return {"n": number, "s": "s", "es": "es", "v": "", "be": "are"}


def _each(kind: str, text_of: Callable[[SampleFacts], str]) -> Find:
    """Returns a search for samples with a text, shown by the path of their "image" or "mask"."""
    return lambda survey: (f"{survey.name(getattr(f.pair, kind))}: {text}"
                           for f in survey.facts if (text := text_of(f)))  # fmt: skip


def _fixes(fixes: Iterable[str]) -> str:
    """Returns the fixes of unreadable files in one text, without repetitions."""
    found = Counter(fix for fix in fixes if fix)
    special = [fix for fix, _ in found.most_common() if not fix.startswith("replace")]
    rest = ["replace or remove the files" if not special else "replace or remove the others"]
    return "; ".join(special[:3] + rest * (len(special) < len(found) or len(special) > 3))


def _key(pair: Pair) -> tuple[str, str]:
    return pair.split, pair.stem.lower()


def _case_twins(survey: Survey) -> dict[tuple[str, str], str]:
    """Returns {key: text} of lone images and lone masks whose names differ in case alone."""
    alone: dict[bool, dict[tuple[str, str], Pair]] = {True: {}, False: {}}  # by whether an image
    for f in survey.facts:
        if not f.pair.image or not f.pair.mask:
            alone[bool(f.pair.image)].setdefault(_key(f.pair), f.pair)
    return {
        key: f"{survey.name(alone[True][key].image)} and {survey.name(alone[False][key].mask)}"
        for key in sorted(alone[True].keys() & alone[False].keys())
    }


def _pairs(survey: Survey) -> list[Pair]:
    """Returns the pairs without those of `_case_twins`, and those of masks named otherwise."""
    twins = _case_twins(survey)
    told = {text for fault in survey.faults if fault.kind == NAMED_OTHERWISE
            for item in fault.items for text in item.split(" with ")}  # fmt: skip
    told |= {survey.name(path) for path in survey.further()}
    return [pair for pair in survey.pairs if _key(pair) not in twins
            and survey.name(pair.image or pair.mask) not in told]  # fmt: skip


def _further_fix(survey: Survey) -> str:
    names = set()
    for path, image in survey.further().items():
        name, stem = PurePosixPath(path).name, PurePosixPath(image).stem
        own = num_shared([name, stem])
        names.add(f"*{name[max(name.rfind(mark, 0, own + 1) for mark in '-_. (') :]}")
    fix = "merge them into those masks, or set them aside, and run the doctor again: "
    return fix + set_aside(survey.root, sorted(names))


def _names_in_two_cases(survey: Survey) -> Iterator[str]:
    same: dict[tuple[str, str], set[str]] = defaultdict(set)
    for pair in _pairs(survey):
        same[_key(pair)].add(pair.stem)
    return (f"{split}: {', '.join(sorted(s))}" for (split, _), s in same.items() if len(s) > 1)


def _by_hash(facts: Iterable[SampleFacts], kind: str) -> Iterable[list[SampleFacts]]:
    groups: dict[bytes, list[SampleFacts]] = defaultdict(list)
    for f in facts:
        if f.image_hash:
            groups[getattr(f, kind)].append(f)
    return groups.values()


def _duplicates(survey: Survey, is_leak: bool) -> Iterator[str]:
    """Yields equal pictures: of more than one split, or of one."""
    for group in _by_hash(survey.facts, "image_hash"):
        num_splits = len({f.pair.split for f in group})
        if len(group) > 1 and is_leak == (num_splits > 1):
            differ = not is_leak and any(f.counts != group[0].counts for f in group)
            names = " = ".join(survey.name(f.pair.image) for f in group)
            yield names + (" (their masks differ)" if differ else "")


def _masks_of_several(survey: Survey) -> Iterator[str]:
    drawn = [f for f in survey.facts if f.mask_hash and len(f.counts) > 1 and not f.is_same_file]
    for group in _by_hash(drawn, "mask_hash"):
        if len({f.image_hash for f in group}) > 1:
            yield " = ".join(survey.name(f.pair.mask) for f in group)


def _few_images(survey: Survey, batch: int | None) -> Iterator[Case]:
    number = len(survey.of_split(survey.splits[0]))
    if batch and 0 < number < batch:
        yield Case(words={"number": number, "batch": batch})


def _kinds(counts: Counter[str], limit: int | None = None) -> Iterator[Case]:
    if counts:
        kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common(limit))
        yield Case(words={"number": counts.total(), "kinds": kinds})


def _disagreement(f: SampleFacts) -> dict[str, str]:
    """Returns {case: text} of how image and mask disagree in size or orientation, {} if not."""
    if f.image_size is None:
        return {}
    size, turned, mask_size = f.image_size, f.image_size[::-1], f.mask_size
    if f.mask_orientation != 1 and f.orientation == 1 and mask_size in (size, turned):
        case = "turned mask, same size" if mask_size == size else "turned mask"
        return {case: f"EXIF orientation {f.mask_orientation}"}
    if mask_size is None or mask_size == size:
        is_turned = f.orientation != 1
        return {"turned image, same size": f"EXIF orientation {f.orientation}"} if is_turned else {}
    image, mask = (f"{height}x{width}" for height, width in (size, mask_size))
    if f.orientation > 4 and mask_size == turned:  # 5 to 8 swap the sides
        return {"turned image": f"upright {image}, mask {mask}"}
    return {"differ": f"{mask}, its image {image}"}


def _color_text(facts: SampleFacts) -> str:
    if facts.mask_kind != "color":
        return ""
    number = len(facts.colors)
    if number > 8:
        return f"{'1000 or more' if number >= 1000 else number} colours"
    return "colours " + ", ".join(f"({r}, {g}, {b})" for r, g, b in facts.colors)


def _index_in_color(survey: Survey) -> Iterator[Case]:
    kinds = Counter(f.mask_mode for f in survey.facts
                    if f.mask_kind == "index" and f.mask_mode in CHANNELS)  # fmt: skip
    if kinds and survey.data.mask_format != "color":
        yield Case(words=_count(kinds.total()) | {"kinds": " or ".join(sorted(kinds))})


def _transparent_text(facts: SampleFacts) -> str:
    if not facts.transparent or facts.mask_size is None:
        return ""
    share = facts.transparent / (facts.mask_size[0] * facts.mask_size[1])
    return f"{facts.transparent} pixels ({100 * share:.1f} %)"


def _color_fix(survey: Survey) -> str:
    if survey.palette:
        return 'declare the colours: config.data.mask_format="color"; --write-config proposes it'
    return "export class indices as grey or palette PNG"


def _unknown_values(survey: Survey) -> Iterator[str]:
    masks = {f.pair.mask: f.counts for f in survey.facts}
    for path, counts in masks.items():
        values = sorted(counts.keys() - survey.meaning.keys())
        if values and path not in survey.values.blended:
            shown = ", ".join(f"{v} ({counts[v]} pixels)" for v in values[:5])
            more = f", ... ({len(values) - 5} more)" if len(values) > 5 else ""
            yield f"{survey.name(path)}: {shown}{more}"


def _unknown_fix(survey: Survey) -> str:
    known = sorted(v for v, c in survey.meaning.items() if c != IGNORE_INDEX)
    ignored = sorted(v for v, c in survey.meaning.items() if c == IGNORE_INDEX)
    fix = f"classes are {_values(known)}, ignored {_values(ignored)}: mend the masks"
    if not survey.is_described:
        return fix
    seen = {value for f in survey.facts for value in f.counts}
    if known == list(range(len(known))) and 0 not in seen and len(known) in seen:
        return f"values are 1..{len(known)}, one too high: set config.data.reduce_zero_label=true"
    if (survey.root / "classes.json").is_file():
        return f"{fix}, or name all classes in classes.json, which names {len(known)}"
    return f"{fix}, or config.model.num_classes and config.data"


def _values(values: Iterable[int]) -> str:
    """Returns whole numbers as text, at most 8 runs: "0..4, 255"."""
    numbers = sorted(values)
    runs = value_ranges(numbers)
    more = f", ... ({len(numbers)} values)" if len(runs) > 8 else ""
    return ", ".join(runs[:8]) + more or "none"


def _no_zero(survey: Survey) -> Iterator[Case]:
    classes = survey.values.classes
    if not survey.is_described and classes and classes[0] > 0:
        more = ": masks look shifted by one" if classes[0] == 1 else ""
        field = "config.data.class_values to the values found"
        if classes == tuple(range(1, len(classes) + 1)):
            field = "config.data.reduce_zero_label=true (value k is class k-1, 0 ignored)"
        ends: dict[str, str | int] = {"first": classes[0], "last": classes[-1]}
        yield Case(words=ends | {"more": more, "field": field})


def _blended_fix(survey: Survey) -> str:
    fix = "JPEG or smooth resizing leaves these: export again as PNG, resize with 'nearest'"
    if survey.values.is_binary and not survey.is_described:
        paths = [PurePosixPath(mask) for mask in survey.values.blended]
        fix += f"; or make them black and white: {survey.in_black_and_white(paths[0].suffix)}"
    return fix


def _lossy_fix(survey: Survey) -> str:
    path = next(f.pair.mask for f in survey.facts if f.mask_kind == "lossy")
    command = survey.in_black_and_white(PurePosixPath(path).suffix)
    return ("export the masks again as PNG; converting them keeps the damage, unless they are "
            f"meant to be black and white: {command}")  # fmt: skip


def _ignored_white(survey: Survey) -> Iterator[Case]:
    """Yields a case where 255 is ignored, and the last of evenly spaced greys."""
    values = (*survey.values.classes, 255)
    if 255 in survey.values.ignored and not survey.is_described and is_scale(values):
        number = sum(255 in f.counts for f in survey.facts)
        texts = ", ".join(map(str, values))
        yield Case(words={**_count(number), "values": texts, "number": len(values)})


def _objects(survey: Survey) -> Iterator[Case]:
    values = survey.values.classes
    if not survey.is_described and (factor := objects_of(values)):
        number = len({value // factor for value in values})
        yield Case(words={"factor": factor, "example": values[-1], "values": len(values),
                          "classes": number})  # fmt: skip


def _odd_palettes(survey: Survey) -> Iterator[str]:
    colors: dict[int, Counter[Color]] = defaultdict(Counter)
    for f in survey.facts:
        for value, color in f.palette.items():
            colors[value][color] += 1
    usual = {value: counts.most_common(1)[0][0] for value, counts in colors.items()}
    for f in survey.facts:
        if odd := [(v, c) for v, c in f.palette.items() if c != usual[v]]:
            texts = (f"{v} is {c}, mostly {usual[v]}" for v, c in odd[:2])
            yield f"{survey.name(f.pair.mask)}: {', '.join(texts)}"


def _mixed_masks(survey: Survey) -> Iterator[Case]:
    masks = [f for f in survey.facts if f.palette]
    grey = [f for f in survey.facts if f.mask_kind == "index"]
    few, kind = (masks, "palette") if len(masks) <= len(grey) else (grey, "grey")
    if few and survey.data.mask_format != "color":
        items = tuple(survey.name(f.pair.mask) for f in few)
        yield Case(items, {"kind": kind, "others": max(len(masks), len(grey))})


def _absent_classes(survey: Survey) -> Iterator[Case]:
    loss = "they cannot be learnt"  # in the training split, which comes first
    for split in survey.splits:
        seen = {c for f in survey.of_split(split) for c in survey.class_counts(f)}
        absent = [f"{i}: {n}" for i, n in enumerate(survey.class_names) if i not in seen]
        if seen and absent:
            yield Case(tuple(absent), {"split": split, "loss": loss})
        loss = "their IoU is undefined and left out of the mean"


def _depths(survey: Survey) -> Iterator[Case]:
    is_refused = survey.batch_size and not survey.data.value_range
    if (number := len(depth.deep(survey))) and not is_refused:
        yield Case(words={"number": number, "range": depth.in_words(survey)})


def _mixed_depths(survey: Survey) -> Iterator[Case]:
    number = len(depth.deep(survey))
    others = sum(bool(f.image_size) for f in survey.facts) - number
    if number and others:
        few = [
            f for f in survey.facts if f.image_size and bool(f.image_values) == (number <= others)
        ]
        items = tuple(survey.name(f.pair.image) for f in few)
        yield Case(items, {"number": number, "others": others})


_TURNED_MASK = ("{n} mask{s} {be} turned by EXIF data, the image{s} not",
                "save these masks as they are meant to lie, without EXIF orientation")  # fmt: skip

# Findings of equal severity and number of places keep this order.
# fmt: off
RULES = (
    Rule("error", "unreadable-image", "{n} image{s} cannot be opened",
         lambda s: _fixes(f.image_fix for f in s.facts),
         _each("image", lambda f: f.image_error)),
    Rule("error", "unreadable-mask", "{n} mask{s} cannot be opened",
         lambda s: _fixes(f.mask_fix for f in s.facts if not f.mask_kind),
         _each("mask", lambda f: "" if f.mask_kind else f.mask_error)),
    Rule("error", "lossy-mask", "{n} mask{s} {be} JPEG or WebP, which change class values",
         _lossy_fix,
         _each("mask", lambda f: f.mask_error if f.mask_kind == "lossy" else "")),
    Rule("error", "case", "{n} pair{s} of image and mask differ{v} in upper and lower case",
         "rename one of each pair: some systems tell them apart, others do not",
         lambda s: _case_twins(s).values()),
    Rule("error", "further", "{n} more picture{s} belong{v} to images that have masks",
         _further_fix,
         lambda s: (f"{s.name(path)} beside {s.name(image)}"
                    for path, image in s.further().items())),
    Rule("error", "no-image", "{n} image{s} {be} missing",
         "add the images, or remove these masks or lines of the list",
         lambda s: (f"{s.name(p.mask)} has no image" if p.mask else f"{p.stem} of split {p.split}"
                    for p in _pairs(s) if not p.image)),
    Rule("error", "no-mask", "{n} mask{s} {be} missing",
         "add the masks, or remove these images or lines of the list",
         lambda s: (f"{s.name(p.image)} has no mask"
                    for p in _pairs(s) if p.image and not p.mask)),
    Rule("warning", "case", "{n} name{s} occur{v} in upper and in lower case",
         "rename one of each: on some systems one replaces the other", _names_in_two_cases),
    Rule("error", "exif", "{n} image{s} {be} turned by EXIF data, the mask{s} not",
         "save these images upright without EXIF orientation, or turn the masks",
         _each("image", lambda f: _disagreement(f).get("turned image", ""))),
    Rule("error", "size", "{n} mask{s} differ{v} from the image in size (height x width)",
         "export the masks again at the size of the images; never smooth when resizing",
         _each("mask", lambda f: _disagreement(f).get("differ", ""))),
    Rule("warning", "exif", *_TURNED_MASK,
         _each("mask", lambda f: _disagreement(f).get("turned mask, same size", ""))),
    Rule("error", "exif", *_TURNED_MASK,
         _each("mask", lambda f: _disagreement(f).get("turned mask", ""))),
    Rule("warning", "exif", "{n} image{s} {be} turned by EXIF data",
         "they are opened upright; look whether the masks are drawn so too",
         _each("image", lambda f: _disagreement(f).get("turned image, same size", ""))),
    Rule("error", "color-mask", "{n} mask{s} hold{v} colours, not class indices",
         _color_fix, _each("mask", _color_text)),
    Rule("error", "blended-mask", "{n} mask{s} hold{v} values mixed from others",
         _blended_fix,
         lambda s: (f"{s.name(mask)}: {_values(v)}" for mask, v in s.values.blended.items())),
    Rule("error", "unknown-value", "{n} mask{s} hold{v} values that are no class",
         _unknown_fix, _unknown_values),
    Rule("warning", "rare-value", "{n} value{s} occur{v} in very few masks",
         "taken as classes; if they are mistakes, mend these masks",
         lambda s: (f"value {value} in {len(masks)}: {', '.join(map(s.name, masks[:3]))}"
                    for value, masks in s.values.rare.items() if not s.is_described)),
    Rule("warning", "white", "255 is ignored in {n} mask{s}, and may be a class: of {values}",
         "if so, change the recipe of --write-config: c.data.ignore_values = (), "
         "c.data.class_values = ({values}), c.model.num_classes = {number}, and a name more",
         _ignored_white),
    Rule("warning", "white", "{n} mask{s} hold{v} 0 and 255 alone, others have classes and no 255",
         "255 is ignored there; if it is a class, write that class's value in its place",
         lambda s: (s.name(f.pair.mask) for f in of_other_scale(s.facts)
                    if s.meaning.get(255) == IGNORE_INDEX)),
    Rule("warning", "objects",
         "values such as {example} look like class x {factor} + number of an object: {values} "
         "values of {classes} classes",
         "if so, store the classes alone: mask // {factor}", _objects),
    Rule("warning", "shifted", "value 0 never occurs, classes are {first}..{last}{more}",
         "set {field}; --write-config does", _no_zero),
    Rule("warning", "shifted", "{n} mask{s} look{v} shifted by one against the others",
         "compare them with their images, and correct the values",
         lambda s: (f"{s.name(mask)}: values fit the others once 1 is {_SHIFTS[step]}"
                    for mask, step in s.values.shifted.items())),
    Rule("error", "leak", "{n} picture{s} {be} in more than one split",
         "remove them from one: a network is scored on what it was trained on",
         lambda s: _duplicates(s, True)),
    Rule("warning", "duplicate", "{n} picture{s} {be} more than once in a split",
         "remove the copies, unless they are meant to weigh more",
         lambda s: _duplicates(s, False)),
    Rule("warning", "image-as-mask", "{n} mask{s} {be} the same file as the image",
         "put the masks there",
         lambda s: (s.name(f.pair.mask) for f in s.facts if f.is_same_file)),
    Rule("warning", "same-mask", "{n} mask{s} belong{v} to several images that differ",
         "compare them with their images: one mask may have been copied over others",
         _masks_of_several),
    Rule("warning", "absent-class", "{n} class{es} never occur{v} in split {split}",
         "{loss}: add images with them, or drop the classes", _absent_classes),
    Rule("note", "rare-class", "{n} class{es} with under 1 % of the pixels of the training split",
         rare.fix,
         lambda s: iter(() if s.weighs_classes else rare.in_words(s))),
    Rule("error", "one-class", "the masks hold fewer than two classes",
         "count the background",
         lambda s: [Case()] if len(s.class_names) < 2 and any(f.counts for f in s.facts) else []),
    Rule("warning", "all-ignored", "{n} mask{s} ignore{v} every pixel",
         "nothing is learnt from them: draw the masks or remove the samples",
         lambda s: (f"{s.name(f.pair.mask)}: 100 % ignored"
                    for f in s.facts if s.class_counts(f).keys() == {IGNORE_INDEX})),
    Rule("error", "empty", "split {split} has no images", "check the folder or list of ids",
         lambda s: (Case(words={"split": split})
                    for split in s.splits if not s.of_split(split)
                    and not any(fault.severity == "error" for fault in s.faults))),
    Rule("error", "few-images", "{number} training images do not fill one batch of {batch}",
         "lower config.train.batch_size, or add images", lambda s: _few_images(s, s.batch_size)),
    Rule("warning", "few-images", "{number} training images are fewer than a usual batch, {batch}",
         "add images; the recipe of --write-config has a batch that they fill",
         lambda s: _few_images(s, None if s.batch_size else _USUAL_BATCH)),
    Rule("warning", "palette-differs",
         "{n} palette mask{s} show{v} a value in another colour than most",
         "a value then may mean another class there: export all with one palette",
         _odd_palettes),
    Rule("warning", "mixed-masks", "{n} mask{s} {be} {kind} among {others} that are not",
         "look whether a value means the same class in both, and export all alike",
         _mixed_masks),
    Rule("note", "palette", "{n} mask{s} {be} palette PNG: indices count, colours do not",
         "nothing to do",
         lambda s: [Case(words=_count(n))] if (n := sum(bool(f.palette) for f in s.facts)) else []),
    Rule("note", "index-in-color",
         "{n} mask{s} store{v} class indices in {kinds}, and {be} read like grey ones",
         "nothing to do; grey or palette PNG is smaller", _index_in_color),
    Rule("warning", "transparent", "{n} mask{s} {be} partly or wholly transparent",
         "these pixels are ignored; if they should count, flatten the masks on the colour of the "
         "background, or drop the alpha channel",
         _each("mask", _transparent_text)),
    Rule("note", "class-names", "{n} file{s} of class names {be} passed over",
         "where one should count, mend it, or list the classes in classes.json",
         lambda s: iter(s.unused_names)),
    Rule("error", "depth", "{n} image{s} {be} of 16 bits a channel, and the recipe has no range",
         lambda s: f"values are {depth.in_words(s)}: set "
                   f"{depth.as_flag(depth.proposed_range(s))}, or 0,65535 for the upper 8 bits",
         lambda s: (s.name(f.pair.image) for f in depth.deep(s)
                    if s.batch_size and not s.data.value_range)),
    Rule("warning", "depth", "{n} image{s} of 16 bits a channel keep{v} fewer than 64 levels",
         lambda s: f"all are scaled by {depth.as_flag(depth.used_range(s))}: "
                   + ("scale these files like the others, or mend what spreads the range"
                      if depth.used_range(s) == depth.proposed_range(s) else
                      f"that of all images is {depth.as_flag(depth.proposed_range(s))}"),
         depth.with_few_levels),
    Rule("warning", "depth", "{n} image{s} with values outside config.data.value_range",
         lambda s: f"they are clipped by {depth.as_flag(depth.used_range(s))}; that of all images "
                   + (f"is {depth.as_flag(depth.proposed_range(s))}" if s.data.value_range else
                      f"is {depth.in_words(s)}, and most would keep fewer than 64 levels"),
         depth.clipped),
    Rule("warning", "depth", "{number} image(s) of 16 bits a channel among {others} of 8",
         "config.data.value_range scales those of 16 alone: look whether both then look alike, or "
         "store all with one depth", _mixed_depths),
    Rule("note", "depth", "{number} image(s) of 16 bits a channel, values {range}",
         lambda s: f"scaled to 8 bits by {depth.as_flag(depth.used_range(s))}"
                   + ("" if s.data.value_range else ", which --write-config proposes"),
         _depths),
    Rule("warning", "extra-band",
         "{n} TIFF image{s} hold{v} a fourth band that nothing marks as transparency: not read",
         "nothing to do if it is no colour, such as near infrared; else store the three that count:"
         " gdal_translate -b 1 -b 2 -b 3 -co PHOTOMETRIC=RGB IN.tif OUT.tif",
         lambda s: (s.name(f.pair.image) for f in s.facts if f.has_more_bands)),
    Rule("note", "image-mode", "{number} image(s) of other kinds than RGB ({kinds})",
         "they are opened as 8-bit RGB, alpha dropped",
         lambda s: _kinds(Counter(f.image_mode for f in s.facts
                                  if f.image_mode not in ("", "RGB")
                                  and not f.image_mode.startswith("I;16")))),
    Rule("note", "foreign-files", "{number} other or hidden file(s) passed over ({kinds})",
         "nothing to do", lambda s: _kinds(s.foreign, 6)),
)
# fmt: on
