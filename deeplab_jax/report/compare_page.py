"""The page and the tables of `deeplab compare`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from deeplab_jax.evaluation import comparison, metrics
from deeplab_jax.report.compare import LISTED, METHOD, Comparison, Pair
from deeplab_jax.report.figures import NO_SCRIPT, controls, figure, page_of, swatch
from deeplab_jax.report.html import DASH, Html, Section, join, percent, table, tag
from deeplab_jax.report.pictures import embed

if TYPE_CHECKING:
    from rich.table import Table


def build(found: Comparison) -> str:
    """Returns the page as HTML that loads no other file."""
    pairs = found.pairs
    names = [pairs[0].first.name, *(pair.second.name for pair in pairs)]
    classes, images = join(map(_classes, pairs)), join([NO_SCRIPT, _images(found)])
    sections = [
        Section("sides", "Sides", "Sides", _sides(pairs)),
        Section("classes", "Classes", "Classes, largest difference first", classes),
        Section("images", "Images", "Images, largest difference first", images),
        Section("measurement", "Measurement", "Measurement", _measurement(pairs)),
    ]
    title = f"Comparison of {' and '.join(names)}"
    return page_of(title, found.palette, _headline(found), sections)


def _headline(found: Comparison) -> Html:
    first = found.pairs[0].first
    evaluation = first.evaluations[0]
    verdicts = (tag("p", tag("b", pair.verdict), class_="help") for pair in found.pairs)
    place = f"{len(first.ids)} images of {evaluation['dataset']}/{evaluation['split']}"
    few = metrics.few_in_words(len(first.ids))
    notes = (tag("p", note, class_="note") for note in (few, *found.notes) if note)
    about = tag("p", place, class_="about")
    return join([tag("h1", f"Compared with {first.name}"), about, *verdicts, *notes])


def _sides(pairs: Sequence[Pair]) -> Html:
    sides = [(pairs[0].first, pairs[0].scores[0]), *((p.second, p.scores[1]) for p in pairs)]
    rows = [
        [
            side.name,
            percent(_or_none(scores.mean_iou.mean()), 2),
            len(side.files),
            _deviation(scores),
            ", ".join(str(e["step"]) for e in side.evaluations),
        ]
        for side, scores in sides
    ]
    head = ["Side", "Mean IoU", "Seeds", "Standard deviation of seeds", "Step"]
    return table(head, rows, "Sides", "numbers")


def _deviation(scores: comparison.Side) -> str:
    return percent(scores.mean_iou.std(ddof=1), 2) if len(scores.mean_iou) > 1 else DASH


def _classes(pair: Pair) -> Html:
    names = pair.first.evaluations[0]["class_names"]
    rows = [
        [
            join([swatch(c), names[c]]),
            *(percent(_or_none(scores.iou[c])) for scores in pair.scores),
            _points(pair.classes.value[c]),
            _ends(pair.classes.low[c], pair.classes.high[c]),
            "yes" if pair.classes.is_distinguishable[c] else "",
        ]
        for c in _order(pair.classes.value)
    ]
    head = ["Class", pair.first.name, pair.second.name, "Difference, points"]
    head += [f"{100 * comparison.LEVEL:.0f} % interval", "Beside 0"]
    return join([_title(pair), table(head, rows, "IoU of each class", "numbers")])


def _images(found: Comparison) -> Html:
    parts = []
    pictures = embed([image for drawn in found.drawn for image in drawn])
    if pictures:
        names = found.pairs[0].first.evaluations[0]["class_names"]
        iou = [_or_none(value) for value in found.pairs[0].scores[0].iou]
        parts.append(controls(pictures, found.palette, names, iou))
    for pair, drawn in zip(found.pairs, found.drawn, strict=True):
        parts.append(_title(pair))
        own, pictures = pictures[: len(drawn)], pictures[len(drawn) :]
        kinds = zip(("better", "worse"), pair.most(LISTED), strict=True)
        for kind, images in kinds:
            title = f"{pair.second.name} is {kind}"
            head = [title, pair.first.name, pair.second.name, "Difference, points"]
            rows = [_image_row(pair, i) for i in images]
            parts.append(table(head, rows, title, "numbers") if rows else tag("p", f"{title}: no."))
            is_worse = kind == "worse"
            shown = [figure(picture) for picture in own if picture.scored.is_worst == is_worse]
            parts += [tag("div", *shown, class_="grid samples")] if shown else []
    return join(parts)


def _title(pair: Pair) -> Html:
    return tag("h3", f"{pair.second.name} against {pair.first.name}")


def _image_row(pair: Pair, image: int) -> list[str]:
    scores = (percent(_or_none(scores.images[image])) for scores in pair.scores)
    return [pair.first.ids[image], *scores, _points(pair.images[image])]


def _measurement(pairs: Sequence[Pair]) -> Html:
    evaluation = pairs[0].first.evaluations[0]
    alone = all(len(side.files) == 1 for pair in pairs for side in (pair.first, pair.second))
    text = "each interval is by itself: of classes that do not differ, 1 in 20 lies beside 0"
    seeds = "the interval leaves out the variance between trainings: compare several seeds"
    about = [("Protocol", evaluation["protocol"]), ("Method", METHOD), ("Classes", text)]
    about += [("One seed a side", seeds)] if alone else []
    return tag("dl", *(join([tag("dt", k), tag("dd", v)]) for k, v in about))


def class_table(pair: Pair) -> "Table":
    """Returns the differences of each class's IoU for a terminal, largest first."""
    from rich.table import Table

    head = ["class", *_short(pair), "difference", f"{100 * comparison.LEVEL:.0f} % interval"]
    shown = Table(*head)
    for c in _order(pair.classes.value):
        name = pair.first.evaluations[0]["class_names"][c]
        scores = (percent(_or_none(scores.iou[c]), 2) for scores in pair.scores)
        ends = _ends(pair.classes.low[c], pair.classes.high[c])
        star = " *" if pair.classes.is_distinguishable[c] else ""
        shown.add_row(name, *scores, _points(pair.classes.value[c]) + star, ends)
    return _right(shown)


def image_table(pair: Pair) -> "Table":
    """Returns the images that gain and those that lose most for a terminal."""
    from rich.table import Table

    shown = Table("image", *_short(pair), "difference")
    for images in pair.most(LISTED):
        for i in images:
            shown.add_row(*_image_row(pair, i))
        shown.add_section()
    return _right(shown)


def _right(shown: "Table") -> "Table":
    for column in shown.columns[1:]:
        column.justify = "right"
    return shown


def _short(pair: Pair) -> tuple[str, str]:
    return f"A: {pair.first.name}", f"B: {pair.second.name}"


def _order(values: np.ndarray) -> list[int]:
    """Returns places by size of the difference, largest first; undefined ones last."""
    return [int(i) for i in np.argsort(-np.abs(values), kind="stable")]


def _points(value: float) -> str:
    return f"{100 * value:+.2f}" if np.isfinite(value) else DASH


def _ends(low: float, high: float) -> str:
    text = f"{100 * low:+.2f} to {100 * high:+.2f}" if np.isfinite(low) else DASH
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
