"""What is wrong with a data set, all of it at once: rules over the facts of its samples.

An error is what training would stop at, or learn something false from; a warning is legal but
probably not meant; a note is only good to know.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from deeplab_jax.config import IGNORE_INDEX
from deeplab_jax.doctor.inspect import Facts

if TYPE_CHECKING:
    from deeplab_jax.doctor.survey import Survey

SEVERITIES = ("error", "warning", "note")
_USUAL_BATCH = 8
_MAX_CLASSES = 255


class Finding(NamedTuple):
    """One kind of fault and where it was found.

    Attributes:
      severity: "error", "warning" or "note".
      kind: a short name, such as "unreadable-image".
      title: what is wrong, with the number of places.
      fix: what to do.
      items: the places, with what is wrong there.
    """

    severity: str
    kind: str
    title: str
    fix: str
    items: tuple[str, ...] = ()


def check(survey: "Survey") -> list[Finding]:
    """Returns everything that is to be said of a data set, worst first."""
    rules: tuple[Callable[[Survey], Iterable[Finding]], ...] = (
        _unreadable, _missing, _sizes, _colors, _unknown, _shifted, _duplicates, _copied_masks,
        _classes, _ignored, _numbers, _palettes, _notes,
    )  # fmt: skip
    found = [*survey.faults, *(finding for rule in rules for finding in rule(survey))]
    return sorted(found, key=lambda f: (SEVERITIES.index(f.severity), -len(f.items)))


def _find(
    severity: str, kind: str, title: str, fix: str, items: Iterable[str]
) -> Iterator[Finding]:
    """Yields a finding if there are items; {n} in the title is their number."""
    items = tuple(items)
    if items:
        yield Finding(severity, kind, _count(title, len(items)), fix, items)


def _count(title: str, number: int) -> str:
    """Returns "{n} mask{s} {be} odd" with the number filled in, and what depends on it."""
    if number == 1:
        return title.format(n=1, s="", es="", v="s", be="is")
    return title.format(n=number, s="s", es="es", v="", be="are")


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _unreadable(survey: "Survey") -> Iterator[Finding]:
    yield from _find(
        "error",
        "unreadable-image",
        "{n} image{s} cannot be opened",
        "replace or remove the files",
        (f"{survey.name(f.sample.image)}: {f.image_error}" for f in survey.facts if f.image_error),
    )
    yield from _find(
        "error",
        "unreadable-mask",
        "{n} mask{s} cannot be opened",
        "replace or remove the files",
        (
            f"{survey.name(f.sample.mask)}: {f.mask_error}"
            for f in survey.facts
            if f.mask_error and not f.mask_kind
        ),
    )
    yield from _find(
        "error",
        "lossy-mask",
        "{n} mask{s} {be} JPEG, which changes class values",
        "export the masks again as PNG; converting the JPEGs keeps the damage",
        (
            f"{survey.name(f.sample.mask)}: {f.mask_error}"
            for f in survey.facts
            if f.mask_kind == "lossy"
        ),
    )


def _missing(survey: "Survey") -> Iterator[Finding]:
    alone: dict[bool, dict] = {True: {}, False: {}}  # by whether it is the image that is there
    for f in survey.facts:
        if not f.sample.image or not f.sample.mask:
            key = (f.sample.split, f.sample.stem.lower())
            alone[bool(f.sample.image)].setdefault(key, f.sample)
    twins = alone[True].keys() & alone[False].keys()
    yield from _find(
        "error",
        "case",
        "{n} pair{s} of image and mask differ{v} in upper and lower case",
        "rename one of each pair: some systems tell them apart, others do not",
        (
            f"{survey.name(alone[True][k].image)} and {survey.name(alone[False][k].mask)}"
            for k in sorted(twins)
        ),
    )
    samples = [s for f in survey.facts if ((s := f.sample).split, s.stem.lower()) not in twins]
    yield from _find(
        "error",
        "no-image",
        "{n} image{s} {be} missing",
        "add the images, or remove these masks or lines of the list",
        (
            f"{survey.name(s.mask)} has no image" if s.mask else f"{s.stem} of split {s.split}"
            for s in samples
            if not s.image
        ),
    )
    yield from _find(
        "error",
        "no-mask",
        "{n} mask{s} {be} missing",
        "add the masks, or remove these images or lines of the list",
        (f"{survey.name(s.image)} has no mask" for s in samples if s.image and not s.mask),
    )
    same: dict[tuple[str, str], set[str]] = defaultdict(set)
    for s in samples:
        same[s.split, s.stem.lower()].add(s.stem)
    yield from _find(
        "warning",
        "case",
        "{n} name{s} occur{v} in upper and in lower case",
        "rename one of each: on some systems one replaces the other",
        (f"{split}: {', '.join(sorted(s))}" for (split, _), s in same.items() if len(s) > 1),
    )


def _sizes(survey: "Survey") -> Iterator[Finding]:
    turned, differing, rotated = [], [], []
    odd_masks: dict[bool, list[str]] = {True: [], False: []}  # by whether they fit nevertheless
    for f in survey.facts:
        if f.image_size is None:
            continue
        name = survey.name(f.sample.image)
        if f.mask_orientation != 1 and f.orientation == 1:
            text = f"{survey.name(f.sample.mask)}: EXIF orientation {f.mask_orientation}"
            if f.mask_size in (f.image_size, f.image_size[::-1]):
                odd_masks[f.mask_size == f.image_size].append(text)
                continue
        if f.mask_size is None or f.mask_size == f.image_size:
            if f.orientation != 1:
                rotated.append(f"{name}: EXIF orientation {f.orientation}")
            continue
        if f.orientation > 4 and f.mask_size == f.image_size[::-1]:  # 5 to 8 swap the sides
            turned.append(f"{name}: upright {_size(f.image_size)}, mask {_size(f.mask_size)}")
        else:
            sizes = f"{_size(f.mask_size)}, its image {_size(f.image_size)}"
            differing.append(f"{survey.name(f.sample.mask)}: {sizes}")
    yield from _find(
        "error",
        "exif",
        "{n} image{s} {be} turned by EXIF data, the mask{s} not",
        "save these images upright without EXIF orientation, or turn the masks",
        turned,
    )
    yield from _find(
        "error",
        "size",
        "{n} mask{s} differ{v} from the image in size (height x width)",
        "export the masks again at the size of the images; never smooth when resizing",
        differing,
    )
    for fits, items in odd_masks.items():
        yield from _find(
            "warning" if fits else "error",
            "exif",
            "{n} mask{s} {be} turned by EXIF data, the image{s} not",
            "save these masks as they are meant to lie, without EXIF orientation",
            items,
        )
    yield from _find(
        "warning",
        "exif",
        "{n} image{s} {be} turned by EXIF data",
        "they are opened upright; look whether the masks are drawn so too",
        rotated,
    )


def _colors(survey: "Survey") -> Iterator[Finding]:
    masks = [f for f in survey.facts if f.mask_kind == "color"]
    few = len(all_colors(masks)) <= _MAX_CLASSES + 1
    fix = "export class indices as grey or palette PNG"
    if few and len(masks) * 2 > sum(bool(f.mask_size) for f in survey.facts):
        fix = 'declare the colours: config.data.mask_format="color"; --write-config proposes it'
    if masks and all(f.is_grey for f in masks):
        fix = "save one of their equal channels as grey PNG: its values are class indices"
    yield from _find(
        "error",
        "color-mask",
        "{n} mask{s} hold{v} colours, not class indices",
        fix,
        (f"{survey.name(f.sample.mask)}: {_color_text(f)}" for f in masks),
    )


def all_colors(masks: Iterable[Facts]) -> Counter:
    """Returns {colour: pixels} over colour masks."""
    total: Counter = Counter()
    for facts in masks:
        total.update(facts.colors)
    return total


def _color_text(facts: Facts) -> str:
    if facts.is_grey:
        return f"grey stored as RGB, values {_values_text(facts.counts)}"
    number = len(facts.colors)
    if number > 8:
        return f"{'1000 or more' if number >= 1000 else number} colours"
    return "colours " + ", ".join(f"({r}, {g}, {b})" for r, g, b in facts.colors)


def _unknown(survey: "Survey") -> Iterator[Finding]:
    blended = survey.values.blended
    yield from _find(
        "error",
        "blended-mask",
        "{n} mask{s} hold{v} values mixed from others",
        "JPEG or smooth resizing leaves these: export again as PNG, resize with 'nearest'",
        (f"{survey.name(path)}: {_values_text(v)}" for path, v in blended.items()),
    )
    unknown = {
        f.sample.mask: sorted(f.counts.keys() - survey.meaning.keys())
        for f in survey.facts
        if f.sample.mask not in blended
    }
    pixels = {f.sample.mask: f.counts for f in survey.facts}
    known = sorted(v for v, c in survey.meaning.items() if c != IGNORE_INDEX)
    ignored = sorted(v for v, c in survey.meaning.items() if c == IGNORE_INDEX)
    fix = f"classes are {_values_text(known)}, ignored {_values_text(ignored)}: mend the masks"
    if survey.is_described:
        fix += ", or config.model.num_classes and config.data"
        seen = {value for f in survey.facts for value in f.counts}
        if known == list(range(len(known))) and 0 not in seen and len(known) in seen:
            fix = (
                f"values are 1..{len(known)}, one too high: set config.data.reduce_zero_label=true"
            )
    yield from _find(
        "error",
        "unknown-value",
        "{n} mask{s} hold{v} values that are no class",
        fix,
        (
            f"{survey.name(path)}: "
            + ", ".join(f"{v} ({pixels[path][v]} pixels)" for v in values[:5])
            + (f", ... ({len(values) - 5} more)" if len(values) > 5 else "")
            for path, values in unknown.items()
            if values
        ),
    )
    if not survey.is_described:
        yield from _find(
            "warning",
            "rare-value",
            "{n} value{s} occur{v} in very few masks",
            "taken as classes; if they are mistakes, mend these masks",
            (
                f"value {value} in {len(paths)}: {', '.join(map(survey.name, paths[:3]))}"
                for value, paths in survey.values.rare.items()
            ),
        )


def _values_text(values: Iterable[int]) -> str:
    """Returns whole numbers as text, at most 8 runs: "0..4, 255"."""
    numbers = np.array(sorted(values))
    if not numbers.size:
        return "none"
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs]
    return ", ".join(texts[:8]) + (f", ... ({len(numbers)} values)" if len(texts) > 8 else "")


def _shifted(survey: "Survey") -> Iterator[Finding]:
    values = survey.values
    if values.classes and values.classes[0] > 0 and not survey.is_described:
        first, last = values.classes[0], values.classes[-1]
        yield Finding(
            "warning",
            "shifted",
            f"value 0 never occurs, classes are {first}..{last}: masks look shifted by one"
            if first == 1
            else f"value 0 never occurs, classes are {first}..{last}",
            "set config.data.reduce_zero_label=true (value k is class k-1, 0 ignored); "
            "--write-config does",
        )
    words = {-1: "subtracted", 1: "added"}
    yield from _find(
        "warning",
        "shifted",
        "{n} mask{s} look{v} shifted by one against the others",
        "compare them with their images, and correct the values",
        (
            f"{survey.name(path)}: values fit the others once 1 is {words[step]}"
            for path, step in values.shifted.items()
        ),
    )


def _duplicates(survey: "Survey") -> Iterator[Finding]:
    groups: dict[bytes, list[Facts]] = defaultdict(list)
    for f in survey.facts:
        if f.image_hash:
            groups[f.image_hash].append(f)
    leaks, repeats = [], []
    for group in groups.values():
        if len(group) < 2:
            continue
        names = " = ".join(survey.name(f.sample.image) for f in group)
        if len({f.sample.split for f in group}) > 1:
            leaks.append(names)
        else:
            differ = any(f.counts != group[0].counts for f in group)
            repeats.append(names + (" (their masks differ)" if differ else ""))
    yield from _find(
        "error",
        "leak",
        "{n} picture{s} {be} in more than one split",
        "remove them from one: a network is scored on what it was trained on",
        leaks,
    )
    yield from _find(
        "warning",
        "duplicate",
        "{n} picture{s} {be} more than once in a split",
        "remove the copies, unless they are meant to weigh more",
        repeats,
    )


def _copied_masks(survey: "Survey") -> Iterator[Finding]:
    yield from _find(
        "warning",
        "image-as-mask",
        "{n} mask{s} {be} the same file as the image",
        "put the masks there",
        (survey.name(f.sample.mask) for f in survey.facts if f.is_same_file),
    )
    groups: dict[bytes, list[Facts]] = defaultdict(list)
    for f in survey.facts:
        if f.image_hash and f.mask_hash and len(f.counts) > 1 and not f.is_same_file:
            groups[f.mask_hash].append(f)
    yield from _find(
        "warning",
        "same-mask",
        "{n} mask{s} belong{v} to several images that differ",
        "compare them with their images: one mask may have been copied over others",
        (
            " = ".join(survey.name(f.sample.mask) for f in group)
            for group in groups.values()
            if len({f.image_hash for f in group}) > 1
        ),
    )


def _classes(survey: "Survey") -> Iterator[Finding]:
    names = survey.class_names
    fixes = ("they cannot be learnt", "their IoU is undefined and left out of the mean")
    for number, split in enumerate(survey.splits):
        seen: set[int] = set()
        for f in survey.of_split(split):
            seen |= survey.class_counts(f).keys()
        if not seen:
            continue
        yield from _find(
            "warning",
            "absent-class",
            f"{{n}} class{{es}} never occur{{v}} in split {split}",
            f"{fixes[number > 0]}: add images with them, or drop the classes",
            (f"{i}: {name}" for i, name in enumerate(names) if i not in seen),
        )
    if len(names) < 2 and any(f.counts for f in survey.facts):
        yield Finding(
            "error",
            "one-class",
            "the masks hold fewer than two classes",
            "count the background",
            (),
        )


def _ignored(survey: "Survey") -> Iterator[Finding]:
    empty = []
    for f in survey.facts:
        counts = survey.class_counts(f)
        if counts and counts.keys() == {IGNORE_INDEX}:
            empty.append(f"{survey.name(f.sample.mask)}: 100 % ignored")
    yield from _find(
        "warning",
        "all-ignored",
        "{n} mask{s} ignore{v} every pixel",
        "nothing is learnt from them: draw the masks or remove the samples",
        empty,
    )


def _numbers(survey: "Survey") -> Iterator[Finding]:
    for split in survey.splits:
        if not survey.of_split(split) and not survey.faults:
            fix = "check the folder or list of ids"
            yield Finding("error", "empty", f"split {split} has no images", fix, ())
    number, batch = len(survey.of_split(survey.splits[0])), survey.batch_size or _USUAL_BATCH
    if 0 < number < batch:
        severity = "error" if survey.batch_size else "warning"
        title = f"{number} training images do not fill one batch of {batch}"
        fix = "lower config.train.batch_size, or add images"
        yield Finding(severity, "few-images", title, fix, ())


def _palettes(survey: "Survey") -> Iterator[Finding]:
    masks = [f for f in survey.facts if f.palette]
    colors: dict[int, Counter] = defaultdict(Counter)
    for f in masks:
        for value, color in f.palette.items():
            colors[value][color] += 1
    usual = {value: counts.most_common(1)[0][0] for value, counts in colors.items()}
    yield from _find(
        "warning",
        "palette-differs",
        "{n} palette mask{s} show{v} a value in another colour than most",
        "a value then may mean another class there: export all with one palette",
        (
            f"{survey.name(f.sample.mask)}: "
            + ", ".join(f"{v} is {c}, mostly {usual[v]}" for v, c in odd[:2])
            for f in masks
            if (odd := [(v, c) for v, c in f.palette.items() if c != usual[v]])
        ),
    )
    grey = [f for f in survey.facts if f.mask_kind == "index"]
    minority, kind = (masks, "palette") if len(masks) <= len(grey) else (grey, "grey")
    yield from _find(
        "warning",
        "mixed-masks",
        f"{{n}} mask{{s}} {{be}} {kind} among {max(len(masks), len(grey))} that are not",
        "look whether a value means the same class in both, and export all alike",
        (survey.name(f.sample.mask) for f in minority if survey.data.mask_format != "color"),
    )
    if masks:
        title = _count("{n} mask{s} {be} palette PNG: indices count, colours do not", len(masks))
        yield Finding("note", "palette", title, "nothing to do", ())


def _notes(survey: "Survey") -> Iterator[Finding]:
    modes = Counter(f.image_mode for f in survey.facts if f.image_mode not in ("", "RGB"))
    if modes:
        kinds = ", ".join(f"{count} {mode}" for mode, count in modes.most_common())
        title = f"{sum(modes.values())} image(s) of other kinds than RGB ({kinds})"
        fix = "they are opened as 8-bit RGB, alpha dropped"
        yield Finding("note", "image-mode", title, fix, ())
    if survey.foreign:
        kinds = ", ".join(f"{count} {kind}" for kind, count in survey.foreign.most_common(6))
        title = f"{sum(survey.foreign.values())} other or hidden file(s) passed over ({kinds})"
        yield Finding("note", "foreign-files", title, "nothing to do", ())
