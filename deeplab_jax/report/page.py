"""The page: its sections, with inline style and script."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from deeplab_jax.account import text as account_text
from deeplab_jax.account.goodput import Account
from deeplab_jax.config import Config, flatten
from deeplab_jax.config.checks import as_text
from deeplab_jax.evaluation import metrics
from deeplab_jax.evaluation.summary import Ends, Evaluation
from deeplab_jax.report import plots, reading
from deeplab_jax.report.figures import NO_SCRIPT, controls, figure, page_of, swatch
from deeplab_jax.report.html import DASH, Html, Section, join, percent, scroller, table, tag
from deeplab_jax.report.pictures import Picture
from deeplab_jax.training.log import Log

_MAX_MATRIX = 30  # classes
_TOP = 20  # listed confusions; half as many beside a matrix


class Hours(NamedTuple):
    """Where the wall time of a training went, as in `deeplab goodput`.

    Attributes:
      account: the parts.
      utilisation: model FLOP utilisation, a fraction; None where not known.
      peak: FLOP/s of one device that it is measured by.
    """

    account: Account
    utilisation: float | None
    peak: float | None


class PageContent(NamedTuple):
    """The content of a page.

    Attributes:
      evaluation: content of `evaluation.json`.
      config: the resolved configuration.
      log: curves of the training.
      palette: uint8 (C, 3), RGB.
      pictures: the worst images, then the best.
      notes: sentences on missing parts, with the reason.
      hours: where the wall time of the training went; None where its log does not tell.
    """

    evaluation: Evaluation
    config: Config
    log: Log
    palette: np.ndarray
    pictures: Sequence[Picture]
    notes: Sequence[str]
    hours: Hours | None = None


def build(content: PageContent) -> str:
    """Returns the page as HTML that loads no other file."""
    result = content.evaluation
    score = f"{percent(result['mean_iou'])} mean IoU{reading.over_classes(result)}"
    pictures = join([NO_SCRIPT, _pictures(content)])
    hours = tag("h3", "Where the hours went"), _hours(content.hours)
    training, environment = join([_curves(content), *hours]), _environment(result)
    sections = [
        Section("pictures", "Images", "Worst and best images", pictures),
        Section("classes", "Classes", "Classes, worst first", _classes(result)),
        Section("confusions", "Confusions", "Confusions", _confusions(result)),
        Section("calibration", "Calibration", "Calibration", _calibration(result)),
        Section("measurement", "Measurement", "Measurement", _measurement(result)),
        Section("training", "Training", "Training", training),
        Section("configuration", "Configuration", "Configuration", _config(content.config)),
        Section("environment", "Environment", "Environment of the evaluation", environment),
    ]
    title = f"{content.config.name}: {score}"
    return page_of(title, content.palette, _headline(content), sections)


def _headline(content: PageContent) -> Html:
    result, interval = content.evaluation, content.evaluation["mean_iou_interval"]
    over = reading.over_classes(result)
    score = [tag("strong", percent(result["mean_iou"])), f" mean IoU{over} "]
    if interval["low"] is not None:
        ends = f"{percent(interval['low'])} to {percent(interval['high'])}"
        score.append(tag("span", f"{percent(interval['level'], 0)} interval {ends}"))
    what = f"{result['num_images']} images of {result['dataset']}/{result['split']}"
    about = tag("p", f"{what}, step {result['step']}", class_="about")
    few = metrics.few_in_words(result["num_images"])
    notes = [tag("p", note, class_="note") for note in (few, *content.notes) if note]
    help_ = tag("p", reading.reading_help(result), class_="help")
    title = tag("h1", content.config.name)
    return join([title, tag("p", *score, class_="score"), about, help_, *notes])


def _measurement(result: Evaluation) -> Html:
    """Returns the list of how the scores came about, and of further means."""
    interval = result["mean_iou_interval"]
    level, how = f"{percent(interval['level'], 0)} intervals", "undefined: they take two images"
    if interval["low"] is not None:
        how = f"{interval['method']}; too narrow if images resemble each other, as frames of a film"
        how += " do; a class's takes two images with the class"
    kind = {"ema": "average until ", "raw": "as trained at "}.get(result.get("weights", ""), "")
    about = [
        (level, how),
        ("Protocol", result["protocol"]),
        ("Weights", f"{kind}step {result['step']} of {result['checkpoint']}"),
        ("Pixel accuracy", percent(result["pixel_accuracy"])),
        (f"Mean{reading.over_classes(result) or ' over classes'}", _means(result, "macro")),
        ("Weighted by true pixels", _means(result, "weighted")),
        ("One class everywhere", f"{percent(result['best_constant_mean_iou'])} mean IoU at best"),
        ("Boundary IoU", _boundary(result)),
    ]  # fmt: skip
    if (loss := result.get("loss")) is not None:
        about.append(("Cross entropy", f"{loss:.4f}, mean over images"))
    return tag("dl", *(join([tag("dt", k), tag("dd", v)]) for k, v in about))


def _means(result: Evaluation, kind: Literal["macro", "weighted"]) -> str:
    """Returns means over classes in words."""
    if "means" not in result:
        return DASH
    names = {"iou": "IoU", "precision": "precision", "recall": "recall", "f1": "F1"}
    values: dict[str, Any] = {**result["means"][kind]}
    text = ", ".join(f"{name} {percent(values[key])}" for key, name in names.items())
    return f"{text} ({'macro' if kind == 'macro' else 'frequency-weighted'})"


def _boundary(result: Evaluation) -> str:
    """Returns the mean boundary IoU with its definition."""
    if result.get("boundary_iou") is None:
        return DASH
    near = percent(result["boundary_ratio"])
    text = f"{percent(result['boundary_iou'])}, mean over classes: IoU of the pixels within {near}"
    return f"{text} of the image's diagonal of a mask's boundary (Cheng et al., CVPR 2021)"


def _calibration(result: Evaluation) -> Html:
    """Returns the reliability diagram, and its numbers as a table."""
    found = result.get("calibration")
    if found is None or found["expected_calibration_error"] is None:
        return tag("p", "This evaluation holds no confidences: evaluate again.")
    filled = [part for part in found["bins"] if part["pixels"]]
    total = sum(part["pixels"] for part in filled)
    over = sum(
        part["pixels"] * ((part["confidence"] or 0) - (part["accuracy"] or 0)) for part in filled
    )
    words = f"Expected calibration error {percent(found['expected_calibration_error'])}: how far "
    words += "the probability of the predicted class is from the share of pixels that are right, "
    words += "on average over pixels, in 15 bins (Guo et al., ICML 2017). The network is "
    words += (
        f"{'over' if over > 0 else 'under'}confident by {percent(abs(over) / total)} on average."
    )
    rows = [
        [
            f"{100 * part['low']:.1f} to {percent(part['high'])}",
            percent(part["pixels"] / total, 2),
            percent(part["confidence"]),
            percent(part["accuracy"]),
        ]
        for part in filled
    ]
    head = ["Confidence", "Of all pixels", "Mean confidence", "Right"]
    numbers = table(head, rows, "Pixels by confidence", "numbers")
    pair = tag("div", plots.reliability(found["bins"]), numbers, class_="pair")
    return join([tag("p", words), pair])


def _classes(result: Evaluation) -> Html:
    """Returns the table of classes, worst first, absent ones last."""
    iou, share = result["iou"], result["frequency"]
    most = max([*share, 1e-9])
    order = sorted(range(len(iou)), key=lambda c: (iou[c] is None, iou[c] or 0, -share[c]))
    near = result.get("boundary_iou_per_class", [None] * len(iou))
    others = near, result["precision"], result["accuracy"], result["f1"]
    rows = [
        [
            join([swatch(c), result["class_names"][c]]),
            _bar(iou[c] or 0, "", percent(iou[c])),
            _ends(result["iou_interval"][c]),
            _bar(share[c] / most, "second", percent(share[c], 2)),
            *(percent(values[c]) for values in others),
            result["worst_image"][c] or DASH,
        ]
        for c in order
    ]
    level = percent(result["mean_iou_interval"]["level"], 0)
    head = ["Class", "IoU", f"{level} interval", "Share of true pixels", "Boundary IoU"]
    head += ["Precision", "Recall", "F1", "Most wrong pixels in"]
    return table(head, rows, "Scores of each class", "numbers wide")


def _ends(interval: Ends) -> str:
    low, high = interval["low"], interval["high"]
    if low is None or high is None:
        return DASH
    return f"{100 * low:.1f} to {percent(high)}".replace(" ", "\N{NO-BREAK SPACE}")


def _bar(share: float, class_: str, text: str) -> Html:
    return join([plots.bar(share, class_), tag("span", text, class_="value")])


def _pictures(content: PageContent) -> Html:
    if not content.pictures:
        return tag("p", "No pictures, see the note at the top.")
    worst = [figure(picture) for picture in content.pictures if picture.scored.is_worst]
    best = [figure(picture) for picture in content.pictures if not picture.scored.is_worst]
    groups = [tag("h3", "Worst"), tag("div", *worst, class_="grid samples")]
    if best:
        groups += [tag("h3", "Best"), tag("div", *best, class_="grid samples")]
    names, iou = content.evaluation["class_names"], content.evaluation["iou"]
    return join([controls(content.pictures, content.palette, names, iou), *groups])


def _confusions(result: Evaluation) -> Html:
    names = result["class_names"]
    has_matrix = len(names) <= _MAX_MATRIX
    rows = [
        [f"{names[pair.truth]} → {names[pair.prediction]}", *map(percent, pair[3:])]
        for pair in reading.confusions(result["confusion"])[: _TOP // (1 + has_matrix)]
    ]
    head = ["Truth → taken for", "Of the class", "Of all errors"]
    listed = table(head, rows, "Most frequent confusions", "numbers") if rows else tag("p", "None.")
    parts = [tag("div", tag("h3", "Most pixels lost"), listed)]
    if has_matrix:
        title = tag("h3", "Rows: truth; columns: prediction; percent of a row's pixels")
        parts.insert(0, tag("div", title, _matrix(result["confusion"], names)))
    return tag("div", *parts, class_="pair")


def _matrix(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> Html:
    tops = (tag("th", tag("span", name), scope="col") for name in names)
    rows = [tag("tr", tag("td"), *tops)]
    for t, row in enumerate(matrix):
        total = sum(row)
        cells = [tag("th", names[t], scope="row")]
        for p, pixels in enumerate(row):
            share = pixels / total if total else 0
            text = f"{100 * share:.0f}" if share >= 0.005 else ""
            words = f"{names[t]} taken for {names[p]}: {percent(share)}" if text else None
            kind = " ".join(["deep"] * (share > 0.5) + ["hit"] * (t == p)) or None
            style = f"--share:{100 * share:.0f}%"
            cells.append(tag("td", text, title=words, style=style, class_=kind))
        rows.append(tag("tr", *cells))
    return scroller(tag("table", tag("tbody", *rows), class_="matrix"), "Confusion matrix")


def _curves(content: PageContent) -> Html:
    train, validation = content.log
    figures = []
    if "loss" in train:
        points = train["loss"]
        lines = [plots.Series(points, "faint"), plots.Series(_smooth(points), "strong")]
        figures.append(plots.line_plot("Training loss (smoothed)", lines))
    if "mean_iou" in validation:
        points = [(step, 100 * value) for step, value in validation["mean_iou"]]
        lines = [plots.Series(points, "marked")]
        title = f"Validation mean IoU{content.log.over_classes()}"
        figures.append(plots.line_plot(title, lines, " %"))
    if "lr" in train:
        lines = [plots.Series(train["lr"], "strong")]
        figures.append(plots.line_plot("Learning rate", lines))
    if not figures:
        return tag("p", "There is no log of a training beside this evaluation.")
    return tag("div", *figures, class_="grid")


def _hours(hours: Hours | None) -> Html:
    if hours is None:
        return tag("p", "No log beside this evaluation tells the times of its training.")
    most = max([*hours.account.seconds.values(), 1e-9])
    shares = [seconds / most for seconds in hours.account.seconds.values()]
    rows = [
        [name, time, join([bar, tag("span", percent_, class_="value")]), remark]
        for (name, time, percent_, remark), bar in zip(
            account_text.rows(hours.account), [*map(plots.bar, shares), ""], strict=True
        )
    ]
    head = ["Part", "Time", "Of the wall time", "Remark"]
    lines = (tag("p", line) for line in account_text.summary(*hours))
    return join([table(head, rows, "Where the wall time went", "numbers"), *lines])


def _smooth(points: Sequence[plots.Point]) -> list[plots.Point]:
    """Returns the exponential moving average with weight 0.1 of the new point."""
    smoothed: list[plots.Point] = []
    for x, y in points:
        smoothed.append((x, 0.9 * smoothed[-1][1] + 0.1 * y if smoothed else y))
    return smoothed


def _config(config: Config) -> Html:
    recipe, changed = reading.departures(config)
    text = f"What departs from {recipe}:"
    rows = [[d.key, *(tag("code", _text(v)) for v in (d.here, d.recipe))] for d in changed]
    differing = table(
        ["Field", "Here", "There"], rows, "Fields that depart from the recipe", "wrap"
    )
    lines = "\n".join(f"{key} = {_text(value)}" for key, value in flatten(config).items())
    whole = tag("pre", lines, tabindex=0, aria_label="The whole configuration")
    details = tag("details", tag("summary", "The whole configuration"), whole)
    return join([tag("p", text), differing if rows else tag("p", "Nothing."), details])


def _text(value: Any) -> str:
    """Returns a value of a field as it is written after `--config.x=`."""
    return as_text(value) or "(empty)"


def _environment(result: Evaluation) -> Html:
    found = result["environment"]
    places = ("device", found["device"]), ("platform", found["platform"])
    named = (*places, ("commit", found["commit"]), *found["packages"].items())
    rows = [[name, value or "unknown"] for name, value in named]
    return table(["What", "Value"], rows, "Environment", "wrap")
