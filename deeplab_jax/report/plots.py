"""Curves and bars as SVG, coloured by the page's style sheet."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from deeplab_jax.evaluation.summary import ConfidenceBin
from deeplab_jax.report.html import Html, join, tag
from deeplab_jax.utils.axes import Point, position, span, thin, ticks

_WIDTH, _HEIGHT = 400, 236  # about the pixels of a plot on a page
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 388, 12, 200  # edges of the frame
_MAX_POINTS = 300  # of a line


class Series(NamedTuple):
    """One line of a plot.

    Attributes:
      points: at least one.
      class_: "strong", "faint" or "marked".
    """

    points: Sequence[Point]
    class_: str


def line_plot(title: str, series: Sequence[Series], unit: str = "") -> Html:
    """Returns a figure of lines over optimiser steps.

    The vertical axis starts at 0 where the lowest value is positive and below 0.7 of the highest;
    `unit` follows its numbers. Lines of finite numbers are thinned to 300 points each.
    """
    thinned = [Series(thin(line.points, _MAX_POINTS), line.class_) for line in series]
    xs = [x for line in thinned for x, _ in line.points]
    ys = [y for line in thinned for _, y in line.points]
    x_range, y_range = (min(xs), max(xs)), span(ys)
    x_ticks, y_ticks = ticks(*x_range), ticks(*y_range)

    def place(x: float, y: float) -> Point:
        right = position(x, *x_range), position(y, *y_range)
        return _LEFT + right[0] * (_RIGHT - _LEFT), _BOTTOM - right[1] * (_BOTTOM - _TOP)

    drawn = [_grid(place, x_ticks, y_ticks, (x_range[0], y_range[0]), unit, "step")]
    drawn += [_line([place(*point) for point in line.points], line.class_) for line in thinned]
    first, last = series[-1].points[0], series[-1].points[-1]
    words = f"{title}: {first[1]:.3g}{unit} at step {first[0]:.0f}, {last[1]:.3g}{unit} at step "
    words += f"{last[0]:.0f}; lowest {min(ys):.3g}{unit}, highest {max(ys):.3g}{unit}"
    svg = tag("svg", *drawn, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=words)
    return tag("figure", tag("figcaption", title), svg, class_="plot")


def reliability(bins: Sequence[ConfidenceBin]) -> Html:
    """Returns a reliability diagram: each bin's accuracy as a bar, its mean confidence as a dot.

    Dots are on the diagonal: one at the end of its bar is a bin whose confidence is its accuracy.
    The stronger a bar, the more pixels are in its bin.
    """
    total, numbers = max(sum(part["pixels"] for part in bins), 1), (0, 20, 40, 60, 80, 100)

    def place(x: float, y: float) -> Point:
        return _LEFT + x / 100 * (_RIGHT - _LEFT), _BOTTOM - y / 100 * (_BOTTOM - _TOP)

    drawn = [_grid(place, numbers, numbers, (0, 0), " %", "confidence, %")]
    for part in bins:
        if part["accuracy"] is None or part["confidence"] is None:
            continue
        accuracy, confidence = 100 * part["accuracy"], 100 * part["confidence"]
        left, top = place(100 * part["low"], accuracy)
        right, bottom = place(100 * part["high"], 0)
        box = {"x": left + 1, "y": top, "width": right - left - 2, "height": bottom - top}
        share = part["pixels"] / total
        words = f"confidence {confidence:.1f} %: {accuracy:.1f} % right, {100 * share:.2f} % of all"
        box["fill_opacity"] = 0.3 + 0.7 * share
        texts = {key: f"{value:.2f}" for key, value in box.items()}
        drawn.append(tag("rect", tag("title", words), class_="dot", **texts))
        x, y = place(confidence, confidence)
        drawn.append(tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=3, class_="mark"))
    drawn.append(_line([place(0, 0), place(100, 100)], "faint"))
    words = "Reliability diagram: share of pixels that are right over confidence; see the table"
    svg = tag("svg", *drawn, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=words)
    title = "Share of pixels that are right (bars) and mean confidence (dots), by confidence"
    return tag("figure", tag("figcaption", title), svg, class_="plot")


def bar(share: float, class_: str = "") -> Html:
    """Returns a horizontal bar filled to `share`, in [0, 1]."""
    filled = tag("rect", width=f"{100 * share:.2f}", height=10)
    box = {"viewBox": "0 0 100 10", "preserveAspectRatio": "none"}
    return tag("svg", filled, class_=f"bar {class_}".strip(), aria_hidden="true", **box)


def _grid(
    place: Callable[[float, float], Point],
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    corner: Point,
    unit: str,
    name: str,
) -> Html:
    """Returns the grid lines and numbers of both axes, and the name of the horizontal one."""
    parts = []
    for value in y_ticks:
        y = f"{place(corner[0], value)[1]:.1f}"
        parts.append(tag("line", x1=_LEFT, x2=_RIGHT, y1=y, y2=y, class_="grid"))
        text = f"{value:.4g}{unit}"  # more would not fit before the axis
        parts.append(tag("text", text, x=_LEFT - 6, y=y, dy="0.35em", text_anchor="end"))
    for value in x_ticks:
        x = f"{place(value, corner[1])[0]:.1f}"
        parts.append(tag("text", f"{value:.6g}", x=x, y=_BOTTOM + 16, text_anchor="middle"))
    parts.append(tag("text", name, x=_RIGHT, y=_HEIGHT - 5, text_anchor="end"))
    return join(parts)


def _line(points: Sequence[Point], class_: str) -> Html:
    text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    line = tag("polyline", points=text, class_=f"line {class_}")
    if class_ != "marked" and len(points) > 1:
        return line
    dots = (tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=3, class_="dot") for x, y in points)
    return join([line, *dots])
