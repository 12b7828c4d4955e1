"""Interpretation of an evaluation: sentences, confusions, departures from the recipe."""

from collections.abc import Sequence
from typing import NamedTuple

from deeplab_jax import config as config_lib
from deeplab_jax.evaluation import metrics
from deeplab_jax.evaluation.summary import Evaluation
from deeplab_jax.report.html import percent

_HARDLY = 0.01  # IoU below which a class counts as hardly found


class Confusion(NamedTuple):
    """The number of pixels of class `truth` predicted as class `prediction`.

    Attributes:
      of_class: share of the true class's pixels.
      of_errors: share of all wrong pixels.
    """

    truth: int
    prediction: int
    pixels: int
    of_class: float
    of_errors: float


def confusions(matrix: Sequence[Sequence[int]]) -> list[Confusion]:
    """Returns all pairs of classes that are confused, most pixels first."""
    wrong = sum(map(sum, matrix)) - sum(row[c] for c, row in enumerate(matrix))
    pairs = [
        Confusion(t, p, pixels, pixels / sum(row), pixels / wrong)
        for t, row in enumerate(matrix)
        for p, pixels in enumerate(row)
        if pixels and t != p
    ]
    return sorted(pairs, key=lambda pair: -pair.pixels)


def reading_help(result: Evaluation) -> str:
    """Returns sentences on the worst class, missing classes and the worst image."""
    iou, names = result["iou"], result["class_names"]
    sentences = []
    occurring = {c: iou[c] or 0.0 for c, share in enumerate(result["frequency"]) if share}
    if occurring:
        worst = min(occurring, key=lambda c: (occurring[c], -result["frequency"][c]))
        sentences.append(_worst_class(result, worst))
        missing = [names[c] for c, value in occurring.items() if value < _HARDLY]
        if len(missing) > 1:
            sentences.append(
                f"{len(missing)} classes are hardly found (below {percent(_HARDLY, 0)}): "
                f"{_list(missing)}."
            )
    absent = [names[c] for c, value in enumerate(iou) if value == 0 and c not in occurring]
    if absent:
        sentences.append(f"Predicted, not in the truth, and so counted as 0 %: {_list(absent)}.")
    scored = [image for image in result["images"] if image["mean_iou"] is not None]
    if scored:
        worst_image, middle = scored[0], scored[len(scored) // 2]
        sentences.append(
            f"Worst image: {worst_image['id']} ({percent(worst_image['mean_iou'])} mean IoU; the "
            f"median image has {percent(middle['mean_iou'])})."
        )
    return " ".join(sentences)


def over_classes(result: Evaluation) -> str:
    """Returns " over 1 of 2 classes" where the mean IoU leaves classes out, else ""."""
    iou = result["iou"]
    return metrics.over_classes(len(iou) - iou.count(None), len(iou))


def _worst_class(result: Evaluation, worst: int) -> str:
    names, matrix = result["class_names"], result["confusion"]
    if result["iou"][worst] == 1:
        number = len(names) - sum(value is None for value in result["iou"])
        if number < len(names):
            return f"The {number} of {len(names)} classes that occur are found to the last pixel."
        return "Every class is found to the last pixel."
    missed = {p: n for p, n in enumerate(matrix[worst]) if p != worst}
    false = {t: row[worst] for t, row in enumerate(matrix) if t != worst}
    text = f"Worst class: {names[worst]} ({percent(result['iou'][worst])} IoU, "
    text += f"{percent(result['frequency'][worst], 2)} of pixels), "
    if sum(missed.values()) >= sum(false.values()):
        other = max(missed, key=lambda c: missed[c])
        share = missed[other] / sum(matrix[worst])
        text += f"mostly taken for {names[other]} ({percent(share)} of its pixels)"
    else:
        other = max(false, key=lambda c: false[c])
        share = false[other] / (sum(false.values()) + matrix[worst][worst])
        text += f"mostly said where {names[other]} is ({percent(share)} of what is called so)"
    return f"{text}; most wrong pixels in {result['worst_image'][worst]}."


def _list(names: Sequence[str], limit: int = 6) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


class Departure(NamedTuple):
    """A configuration field, and its value in the recipe and in the evaluated run."""

    key: str
    recipe: object
    here: object


def departures(config: config_lib.Config) -> tuple[str, list[Departure]]:
    """Returns the recipe's description, and the fields of `config` that differ from it.

    The recipe is `get_config` for this data set, depth and output stride.
    """
    row = config.data.dataset, config.model.depth, config.model.output_stride
    recipe = config_lib.flatten(config_lib.get_config(*row))
    here = config_lib.flatten(config)
    name = f"{row[0]}, R-{row[1]}, output stride {row[2]}"
    published = config_lib.PUBLISHED_MIOU.get(row)
    kind = "the defaults of a recipe" if row[0] == "folder" else "a network beside the table"
    if published:
        kind = f"the table's recipe (published mean IoU {published} %)"
    changed = [
        Departure(key, recipe[key], value)
        for key, value in here.items()
        if key != "name" and recipe[key] != value
    ]
    return f"{kind} for {name}", changed
