"""`deeplab compare`: sides against the first one, as a table, JSON and a page."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deeplab_jax.data.colors import safe_palette
from deeplab_jax.errors import DeepLabError
from deeplab_jax.evaluation import comparison
from deeplab_jax.evaluation.run import open_validation
from deeplab_jax.inference.segmenter import load
from deeplab_jax.report.pictures import ScoredImage
from deeplab_jax.report.sides import Side, read_sides
from deeplab_jax.utils.atomic import atomic_write

LISTED = 10  # images in a table that are better, and as many that are worse
_DRAWN = 4  # of these, with pictures
METHOD = (
    f"percentile bootstrap, {comparison.RESAMPLES} resamples, seed 0, paired over images; where a"
    " side has several seeds, over them too"
)


class Pair(NamedTuple):
    """A side compared with the first.

    Attributes:
      first: the first side.
      second: the other.
      scores: of both.
      mean: difference of the mean IoU.
      classes: of each class's IoU.
      verdict: in one line.
      images: difference of each image's mean IoU, float64 (N,); NaN where undefined.
    """

    first: Side
    second: Side
    scores: tuple[comparison.Side, comparison.Side]
    mean: comparison.Difference
    classes: comparison.Difference
    verdict: str
    images: np.ndarray

    def most(self, number: int) -> tuple[list[int], list[int]]:
        """Returns the images that gain and those that lose most, at most `number` of each."""
        order = [int(i) for i in np.argsort(-self.images, kind="stable")]  # NaN is last
        gain = [i for i in order if self.images[i] > 0][:number]
        return gain, [i for i in order[::-1] if self.images[i] < 0][:number]


class Comparison(NamedTuple):
    """What a page and the JSON show.

    Attributes:
      pairs: each side but the first, compared with it.
      palette: uint8 (C, 3), RGB.
      drawn: of each pair, pictures of the images that gain and lose most, first and second side in
        turn.
      notes: sentences on missing parts.
    """

    pairs: Sequence[Pair]
    palette: np.ndarray
    drawn: Sequence[Sequence[ScoredImage]]
    notes: Sequence[str]


def compare(paths: Sequence[str]) -> list[Pair]:
    """Reads sides and compares each with the first.

    Raises:
      DeepLabError: as `read_sides`.
    """
    first, *others = read_sides(paths)
    return [_pair(first, second) for second in others]


def _pair(first: Side, second: Side) -> Pair:
    one, other = (comparison.score(side.areas) for side in (first, second))
    mean, classes = comparison.compare(first.areas, second.areas)
    verdict = comparison.verdict((first.name, second.name), mean, len(first.ids))
    return Pair(first, second, (one, other), mean, classes, verdict, other.images - one.images)


def draw(pairs: Sequence[Pair], overrides: Sequence[str]) -> Comparison:
    """Segments the images that gain and lose most, by the first seed of each side.

    Overrides, such as "--config.data.root=elsewhere", are applied after an evaluation's own. What
    cannot be read is told, and left out.
    """
    drawn: list[list[ScoredImage]] = []
    notes = []
    classes = len(pairs[0].first.evaluations[0]["class_names"])
    palette = safe_palette(classes)
    wanted = sorted({i for pair in pairs for part in pair.most(_DRAWN) for i in part})
    shown: dict[str, dict[int, ScoredImage]] = {}
    try:
        for side in (pairs[0].first, *(pair.second for pair in pairs)):
            shown[side.name], palette = _segment(side, wanted, overrides)
    except DeepLabError as error:
        print(f"warning: no pictures: {error}", flush=True)
        notes.append(f"No pictures: {error}.")
        return Comparison(pairs, palette, [[] for _ in pairs], notes)
    for pair in pairs:
        one, other = (shown[side.name] for side in (pair.first, pair.second))
        own: list[ScoredImage] = []
        for images, is_loser in zip(pair.most(_DRAWN), (False, True), strict=True):
            both = [
                side[i]._replace(is_worst=is_loser)
                for i in images
                if i in one and i in other
                for side in (one, other)
            ]
            own += both
        drawn.append(own)
    changed = [image.name for images in drawn for image in images if not image.is_as_evaluated()]
    if changed:
        notes.append(
            f"{len(changed)} pictures score otherwise than in the evaluation, first {changed[0]}: "
            "the data or the checkpoint have changed since. Evaluate again."
        )
    return Comparison(pairs, palette, drawn, notes)


def _segment(
    side: Side, images: Sequence[int], overrides: Sequence[str]
) -> tuple[dict[int, ScoredImage], np.ndarray]:
    """Returns {image: its picture} by a side's first seed, and the palette."""
    evaluation = side.evaluations[0]
    given = [*evaluation["overrides"], *overrides]
    segmenter = load(side.checkpoint, evaluation["step"], given, evaluation.get("weights"))
    dataset = open_validation(segmenter, given, evaluation["split"])
    places = {name: number for number, name in enumerate(dataset.ids)}
    scores = comparison.score(side.areas[:1]).images
    found = {}
    for i in images:
        if (name := side.ids[i]) in places:
            image, truth = dataset.read(places[name])
            labels = segmenter(image).labels
            words = f"{name}, {side.name}"
            found[i] = ScoredImage(words, float(scores[i]), False, image, truth, labels)
    return found, segmenter.palette


def write(output: Path, found: Comparison, html: str) -> Path:
    """Writes the page, and the numbers beside it as JSON; returns the place of the numbers."""
    numbers = output.with_suffix(".json")
    for path, text in (
        (numbers, json.dumps(as_json(found.pairs), indent=1) + "\n"),
        (output, html),
    ):
        with atomic_write(path) as file:
            file.write(text.encode("utf-8", "replace"))
    return numbers


def as_json(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Returns the content of `compare.json`; scores are fractions, null where undefined."""
    first = pairs[0].first
    evaluation = first.evaluations[0]
    sides = [(first, pairs[0].scores[0]), *((pair.second, pair.scores[1]) for pair in pairs)]
    return {
        "dataset": evaluation["dataset"],
        "split": evaluation["split"],
        "num_images": len(first.ids),
        "protocol": evaluation["protocol"],
        "class_names": evaluation["class_names"],
        "level": comparison.LEVEL,
        "method": METHOD,
        "sides": [
            {
                "name": side.name,
                "files": [str(file) for file in side.files],
                "steps": [e["step"] for e in side.evaluations],
                "mean_iou": _or_null(scores.mean_iou.mean()),
                "mean_iou_of_seeds": [*map(_or_null, scores.mean_iou)],
                "iou": [*map(_or_null, scores.iou)],
            }
            for side, scores in sides
        ],
        "comparisons": [
            {
                "first": pair.first.name,
                "second": pair.second.name,
                "verdict": pair.verdict,
                "is_distinguishable": bool(pair.mean.is_distinguishable),
                "mean_iou": _difference(*map(float, pair.mean)),
                "iou": [_difference(*ends) for ends in zip(*pair.classes, strict=True)],
                "images": [
                    {"id": name, "mean_iou": [_or_null(x) for x in (one, other)]}
                    for name, one, other in zip(
                        first.ids, *(scores.images for scores in pair.scores), strict=True
                    )
                ],
            }
            for pair in pairs
        ],
    }


def _difference(value: float, low: float, high: float) -> dict[str, float | None]:
    return {"difference": _or_null(value), "low": _or_null(low), "high": _or_null(high)}


def _or_null(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
