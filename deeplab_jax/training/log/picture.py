"""`progress.png`: loss, learning rate and mean IoU of a run so far, drawn from its log."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from deeplab_jax.training.log import Log
from deeplab_jax.utils.atomic import atomic_write
from deeplab_jax.utils.axes import Point, position, span, thin, ticks

SIZE = (1200, 400)  # (width, height)
_SCALE = 2  # drawn larger, then reduced: smooth lines
_MAX_POINTS = 300  # of a line
_TOP, _BOTTOM, _LEFT, _RIGHT = 84, 40, 56, 18  # margins of a plot
_WHITE, _INK, _GREY, _GRID = "white", "#1f2328", "#6e7781", "#e3e6ea"
_STRONG, _FAINT, _BEST = "#0969da", "#a9cdf5", "#bc4c00"


class _Line(NamedTuple):
    points: Sequence[Point]
    color: str
    has_dots: bool = False


class _Plot(NamedTuple):
    title: str
    lines: Sequence[_Line]
    best: Point | None = None  # marked
    note: str = ""  # below the title


def write(path: Path, title: str, log: Log) -> None:
    """Draws three plots beside each other, on opaque white, and writes them as a PNG at once.

    Raises:
      OSError: the file cannot be written.
    """
    picture = draw(title, log)
    with atomic_write(path) as file:
        picture.save(file, "PNG")


def draw(title: str, log: Log) -> Image.Image:
    """Returns the picture, RGB, of size `SIZE`; what the log lacks leaves its plot empty."""
    train = log.train
    scores = [(step, 100 * score) for step, score in log.eval.get("mean_iou", ())]
    best = max(scores, key=lambda point: point[1], default=None)
    words = "" if best is None else f": best {best[1]:.1f} at step {best[0]:.0f}"
    dots = [_Line(scores, _STRONG, has_dots=True)]
    loss = [_Line(train.get("loss", ()), _FAINT), _Line(train.get("loss_smoothed", ()), _STRONG)]
    about = "training loss, each logged step and smoothed"
    if validation := log.eval.get("loss", ()):
        loss.append(_Line(validation, _BEST, has_dots=True))
        about = "training loss, smoothed; validation: dots"
    plots = [
        _Plot(about, loss),
        _Plot("learning rate", [_Line(train.get("lr", ()), _STRONG)]),
        _Plot(f"validation mean IoU, %{words}", dots, best, log.over_classes().strip()),
    ]
    image = Image.new("RGB", (_SCALE * SIZE[0], _SCALE * SIZE[1]), _WHITE)
    pen = ImageDraw.Draw(image)
    _text(pen, (_LEFT, 14), title, _INK, 18)
    width = SIZE[0] // len(plots)
    for number, plot in enumerate(plots):
        _draw_plot(pen, number * width, width, plot)
    return image.resize(SIZE, Image.Resampling.LANCZOS)


def _draw_plot(pen: ImageDraw.ImageDraw, left: int, width: int, plot: _Plot) -> None:
    frame = (left + _LEFT, left + width - _RIGHT), (SIZE[1] - _BOTTOM, _TOP)  # x ends, y ends
    _text(pen, (frame[0][0], 52), plot.title, _INK, 14)
    _text(pen, (frame[0][0], 69), plot.note, _GREY, 12)
    lines = [
        line._replace(points=thin(line.points, _MAX_POINTS)) for line in plot.lines if line.points
    ]
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    if not xs:
        _text(pen, (sum(frame[0]) / 2, sum(frame[1]) / 2), "nothing yet", _GREY, 14, "mm")
        return
    ends = (min(xs), max(xs)), span(ys)

    def place(x: float, y: float) -> Point:
        shares = position(x, *ends[0]), position(y, *ends[1])
        x, y = (a + share * (b - a) for share, (a, b) in zip(shares, frame, strict=True))
        return x, y

    for value in ticks(*ends[1]):
        y = place(ends[0][0], value)[1]
        _stroke(pen, [(frame[0][0], y), (frame[0][1], y)], _GRID, 1)
        _text(pen, (frame[0][0] - 8, y), f"{value:.3g}", _GREY, 12, "rm")
    for value in ticks(*ends[0]):
        x = place(value, ends[1][0])[0]
        _text(pen, (x, frame[1][0] + 8), f"{value:.6g}", _GREY, 12, "mt")
    _text(pen, (frame[0][1], SIZE[1] - 4), "step", _GREY, 12, "rb")
    for line in lines:
        points = [place(*point) for point in line.points]
        _stroke(pen, points, line.color, 2)
        for point in points if line.has_dots or len(points) == 1 else ():
            _dot(pen, point, line.color, 3)
    if plot.best is not None:
        _dot(pen, place(*plot.best), _BEST, 6)


def _stroke(pen: ImageDraw.ImageDraw, points: Sequence[Point], color: str, width: int) -> None:
    scaled = [(_SCALE * x, _SCALE * y) for x, y in points]
    pen.line(scaled, fill=color, width=_SCALE * width, joint="curve")


def _dot(pen: ImageDraw.ImageDraw, center: Point, color: str, radius: float) -> None:
    scaled = _SCALE * center[0], _SCALE * center[1]
    pen.circle(scaled, _SCALE * radius, fill=color)


def _text(
    pen: ImageDraw.ImageDraw, at: Point, text: str, color: str, size: int, anchor: str = "lt"
) -> None:
    font = ImageFont.load_default(_SCALE * size)
    pen.text((_SCALE * at[0], _SCALE * at[1]), text, fill=color, font=font, anchor=anchor)
