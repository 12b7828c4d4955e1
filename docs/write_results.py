"""Writes docs/results/: learning beside PyTorch's, and CamVid from scratch, from what runs wrote.

    python docs/write_results.py                       # pages and pictures again
    python docs/write_results.py learning RUNS CURVES  # first takes in runs of several seeds
    python docs/write_results.py camvid RUN            # first takes in an evaluated run

RUNS is the work directory of `deeplab train --config camvid_r50_os16_short --seeds ...`, CURVES the
`curves.json` of the PyTorch reference. docs/results.json keeps what the pages say, so that pages,
pictures and the README's sentences are of the same numbers. In a page only the text between the two
markers of a part is rewritten.
"""

import argparse
import html
import json
import re
import shlex
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import deeplab_jax
from deeplab_jax.account.goodput import read_account
from deeplab_jax.config import IGNORE_INDEX
from deeplab_jax.data import open_dataset
from deeplab_jax.inference.overlay import Entry, add_legend
from deeplab_jax.utils.atomic import atomic_write
from deeplab_jax.utils.axes import Point, position, span, ticks

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results.json"
FRAMES = ROOT / "docs" / "results" / "camvid.png"
BLOCK, WINDOW = 10, 50  # steps whose losses are averaged: in the file, in the table
# Fixed before our runs, from the reference's spread over five seeds: how far the mean of three
# seeds of another implementation may lie from the reference's.
WINDOW_LIMITS = (0.10, 0.22, 0.10, 0.10, 0.10, 0.10)
SCORE_LIMIT = 0.06
_FRAMES, _COLUMNS = 6, 3
_TILE, _GAP = (320, 240), 6  # (width, height) and space between, pixels
_RIGHT_COLOR, _WRONG_COLOR, _IGNORED_COLOR = (225, 225, 225), (200, 30, 30), (255, 255, 255)
_SIZE = (760, 360)  # (width, height) of a picture
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 34, 34  # margins of its plot
Facts = dict[str, Any]


def main() -> None:
    """Takes in a run, if one is named, and writes all pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="what", metavar="learning | camvid")
    learning = verbs.add_parser("learning", help="takes in runs of several seeds")
    learning.add_argument("runs", type=Path, help="work directory of deeplab train --seeds")
    learning.add_argument("curves", type=Path, help="curves.json of the PyTorch reference")
    camvid = verbs.add_parser("camvid", help="takes in an evaluated run")
    camvid.add_argument("run", type=Path, help="its work directory")
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if args.what == "learning":
        results["learning"] = read_learning(args.runs, args.curves)
    elif args.what == "camvid":
        results["camvid"] = read_camvid(args.run)
        draw_frames(args.run).save(FRAMES, optimize=True)
    write(RESULTS, json.dumps(results, indent=1) + "\n")
    if missing := sorted({"learning", "camvid"} - results.keys()):
        parser.exit(1, f"{RESULTS.name} has no {missing[0]} yet: the pages are left as they are\n")
    for path, text in files(results).items():
        write(ROOT / path, text)


def write(path: Path, text: str) -> None:
    """Writes a file at once."""
    with atomic_write(path) as file:
        file.write(text.encode())


def read_learning(runs: Path, curves: Path) -> Facts:
    """Returns losses and scores of each seed, ours and the reference's, and how ours were made.

    Raises:
      ValueError: a run has not ended, or did not log every step.
    """
    reference = json.loads(curves.read_text())
    theirs = reference["seeds"] | {
        name.removeprefix("seed"): seed
        for name, seed in reference["supplement"].items()
        if re.fullmatch(r"seed\d+", name)
    }
    folders = sorted(runs.glob("seed_*"))
    return _origin(folders[0]) | {
        "reference": [_theirs(int(name), seed) for name, seed in theirs.items()],
        "ours": [_ours(folder) for folder in folders],
    }


def read_camvid(run: Path) -> Facts:
    """Returns scores, curve and length of an evaluated run, and how it was made."""
    scores = json.loads((run / "evaluation.json").read_text())
    names = ("mean_iou", "mean_iou_interval", "pixel_accuracy", "class_names", "iou", "accuracy",
             "frequency", "step", "num_images")  # fmt: skip
    # By step: a run that was continued logs some of them again.
    curve = {line["step"]: line["mean_iou"] for line in _lines(run) if line["event"] == "eval"}
    account = read_account(run)
    return _origin(run) | {
        "hours": (account.wall - account.seconds["stopped"]) / 3600,
        "batch_size": json.loads((run / "config.json").read_text())["train"]["batch_size"],
        "curve": sorted(curve.items()),
        **{name: scores[name] for name in names},
    }


def draw_frames(run: Path) -> Image.Image:
    """Returns predictions of validation frames, below each its wrong pixels, and a legend.

    The step and the weights are those that the run's evaluation is of.
    """
    scores = json.loads((run / "evaluation.json").read_text())
    model = deeplab_jax.load(run, scores["step"], weights=scores.get("weights"))
    config = model.config
    dataset = open_dataset(config.data, config.model.num_classes, config.data.val_split)
    width, height = (size + _GAP for size in _TILE)
    rows = -(-_FRAMES // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * width - _GAP, rows * 2 * height - _GAP), "white")
    counts = np.zeros(len(model.palette))
    for number in range(_FRAMES):
        image, truth = dataset.read(round(number * (len(dataset) - 1) / (_FRAMES - 1)))
        labels = model(image).labels
        counts += np.bincount(labels.ravel(), minlength=len(counts))
        x, y = number % _COLUMNS * width, number // _COLUMNS * 2 * height
        for row, pixels in enumerate((model.palette[labels], _errors(truth, labels))):
            tile = Image.fromarray(pixels).resize(_TILE, Image.Resampling.NEAREST)
            sheet.paste(tile, (x, y + row * height))
    shares = counts / counts.sum()
    classes = zip(model.class_names, shares, model.palette.tolist(), strict=True)
    return add_legend(sheet, [Entry(name, share, tuple(color)) for name, share, color in classes])


def _errors(truth: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns uint8 (H, W, 3): which pixels are right, wrong and ignored."""
    colors = np.array([_WRONG_COLOR, _RIGHT_COLOR, _IGNORED_COLOR], np.uint8)
    return colors[np.where(truth == IGNORE_INDEX, 2, truth == labels)]


def _origin(run: Path) -> Facts:
    """Returns command, machine, day and versions of a run's first start."""
    start = json.loads((run / "env.json").read_text())["starts"][0]
    processor = start["processor"]
    return {
        "command": shlex.join(map(_portable, start["command"])),
        "machine": f"{processor['model']}, {processor['cores']} cores",
        "date": str(datetime.fromtimestamp(start["began"], UTC).date()),
        "code": start["code"],
        "jax": start["packages"]["jax"],
    }


def _portable(word: str) -> str:
    """Returns a word of a command without folders of the machine; a recipe's file by its name."""
    return re.sub(r"[^=]*/", "", word).removesuffix(".py")


def _lines(run: Path) -> Iterator[Facts]:
    return map(json.loads, (run / "log.jsonl").read_text().splitlines())


def _ours(run: Path) -> Facts:
    losses: dict[int, float] = {}  # by step: a run that was continued logs some of them again
    score: Facts = {}
    for line in _lines(run):
        if line["event"] == "train":
            losses[line["step"]] = line["loss"]
        if line["event"] == "eval":
            score = line
    if not score or sorted(losses) != [*range(1, len(losses) + 1)] or score["step"] != len(losses):
        raise ValueError(f"{run}: not a loss of every step, and scores of the last one")
    names = json.loads((run / "config.json").read_text())["data"]["class_names"]
    return {
        "seed": int(run.name.removeprefix("seed_")),
        "loss": _blocks([losses[step] for step in sorted(losses)]),
        "mean_iou": score["mean_iou"],
        "pixel_accuracy": score["pixel_accuracy"],
        "iou": dict(zip(names, score["iou"], strict=True)),
    }


def _theirs(number: int, seed: Facts) -> Facts:
    half = seed["val"]["half_240x180"]
    return {
        "seed": number,
        "loss": _blocks(seed["loss_total"]),
        "mean_iou": half["miou"],
        "pixel_accuracy": half["pixel_accuracy"],
        "iou": half["iou"],
    }


def _blocks(losses: Sequence[float]) -> list[float]:
    """Returns the mean of each `BLOCK` losses."""
    starts = range(0, len(losses), BLOCK)
    return [round(statistics.mean(losses[i : i + BLOCK]), 5) for i in starts]


def windows(runs: Iterable[Facts]) -> list[list[float]]:
    """Returns for each window of `WINDOW` steps the mean loss of each run."""
    size = WINDOW // BLOCK
    means = (
        [statistics.mean(run["loss"][i : i + size]) for i in range(0, len(run["loss"]), size)]
        for run in runs
    )
    return [list(values) for values in zip(*means, strict=True)]


def files(results: Facts) -> dict[str, str]:
    """Returns {path from the repository's root: text} of all that follows from the results."""
    made = texts(results)
    pages = {path: rewrite((ROOT / path).read_text(), parts) for path, parts in made.items()}
    return pages | {
        "docs/results/learning.svg": _learning_picture(results["learning"]),
        "docs/results/camvid.svg": _camvid_picture(results["camvid"]),
    }


def texts(results: Facts) -> dict[str, dict[str, str]]:
    """Returns {path of a page: {name of a part: its text}}."""
    learning, camvid = results["learning"], results["camvid"]
    return {
        "docs/results/learning.md": {
            "losses": _losses(learning), "scores": _scores(learning), "verdict": verdict(learning)
        },
        "docs/results/camvid.md": {"classes": _classes(camvid), "reached": _reached(camvid)},
        "README.md": {"learning": _sentence(learning), "camvid": _camvid_sentence(camvid)},
    }  # fmt: skip


def rewrite(page: str, parts: dict[str, str]) -> str:
    """Returns the page with other text between the markers of its parts.

    Raises:
      ValueError: a part has no place in the page.
    """
    for name, text in parts.items():
        pattern = rf"(<!--{name}-->\n).*?(<!--end-->)"
        page, count = re.subn(pattern, lambda m, t=text: m[1] + t + m[2], page, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"{count} places <!--{name}--> ... <!--end-->, not one")
    return page


def _table(rows: Iterable[Sequence[str]]) -> str:
    head, *body = rows
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *body))


def _spread(values: Sequence[float], factor: float = 1, digits: int = 3) -> str:
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    return f"{factor * mean:.{digits}f} +- {factor * deviation:.{digits}f}"


def _sides(learning: Facts) -> list[tuple[str, list[Facts]]]:
    return [("PyTorch reference", learning["reference"]), ("deeplab_jax", learning["ours"])]


def _losses(learning: Facts) -> str:
    count = len(windows(learning["ours"]))
    steps = [f"{WINDOW * i + 1} to {WINDOW * (i + 1)}" for i in range(count)]
    rows = [["", *steps]]
    for name, runs in _sides(learning):
        rows.append([f"{name}, {len(runs)} seeds", *map(_spread, windows(runs))])
    difference = [f"{d:+.3f}" for d in _differences(learning)]
    limits = [f"{limit:.2f}" for limit in WINDOW_LIMITS]
    return _table([*rows, ["difference of the means", *difference], ["accepted", *limits]])


def _differences(learning: Facts) -> list[float]:
    theirs, ours = (map(statistics.mean, windows(runs)) for _, runs in _sides(learning))
    return [b - a for a, b in zip(theirs, ours, strict=True)]


def _scores(learning: Facts) -> str:
    rows = [["%", *(f"{name}, {len(runs)} seeds" for name, runs in _sides(learning))]]

    def row(name: str, score: Callable[[Facts], float]) -> list[str]:
        spreads = (_spread([score(r) for r in runs], 100, 1) for _, runs in _sides(learning))
        return [name, *spreads]

    rows.append(row("**mean IoU**", lambda run: run["mean_iou"]))
    rows.append(row("pixel accuracy", lambda run: run["pixel_accuracy"]))
    rows += [row(name, lambda run, n=name: run["iou"][n]) for name in learning["ours"][0]["iou"]]
    return _table(rows)


def verdict(learning: Facts) -> str:
    """Returns how many windows of the loss, and whether the mean IoU, lie inside the limits."""
    differences = [abs(difference) for difference in _differences(learning)]
    inside = sum(d <= limit for d, limit in zip(differences, WINDOW_LIMITS, strict=True))
    theirs, ours = (statistics.mean(r["mean_iou"] for r in runs) for _, runs in _sides(learning))
    kept = "inside" if abs(ours - theirs) <= SCORE_LIMIT else "**outside**"
    scores = ", ".join(f"{100 * run['mean_iou']:.1f}" for run in learning["ours"])
    return f"""\
{inside} of {len(differences)} windows of the loss lie inside; the largest difference is
{max(differences):.3f}. Mean IoU {100 * ours:.1f} % (seeds: {scores}) against
{100 * theirs:.1f} %: {kept} the {100 * SCORE_LIMIT:.0f} points accepted.

`{learning["command"]}`, {_where(learning)}.
"""


def _where(facts: Facts) -> str:
    return f"{facts['machine']}, jax {facts['jax']}, {facts['date']}"


def _sentence(learning: Facts) -> str:
    scores = []
    for _, runs in _sides(learning):
        values = [100 * run["mean_iou"] for run in runs]
        mean, deviation = statistics.mean(values), statistics.stdev(values)
        scores.append(f"{mean:.1f} % ({deviation:.1f} over {len(runs)} seeds)")
    return (
        "ResNet-50 on CamVid from random weights, 300 steps: mean IoU and standard deviation "
        f"{scores[1]},\nof PyTorch's reference {scores[0]}; "
        "[both curves](docs/results/learning.md).\n"
    )


def _camvid_sentence(camvid: Facts) -> str:
    reached = f"{camvid['hours']:.1f} hours: mean IoU {100 * camvid['mean_iou']:.1f} %"
    return (
        f"ResNet-18 on CamVid from scratch, {reached} on {camvid['num_images']} validation\n"
        "frames ([by class](docs/results/camvid.md)).\n"
    )


def _reached(camvid: Facts) -> str:
    interval = camvid["mean_iou_interval"]
    low, high, level = (100 * interval[name] for name in ("low", "high", "level"))
    (before, score), (last, final) = camvid["curve"][-2:]
    change = round(100 * (final - score), 1) + 0.0  # no "-0.0"
    return f"""\
Mean IoU **{100 * camvid["mean_iou"]:.2f} %**, {level:.0f} % interval {low:.1f} to {high:.1f}
(bootstrap over images), pixel accuracy {100 * camvid["pixel_accuracy"]:.1f} %, after
{camvid["step"]:,} steps of {camvid["batch_size"]} images: {camvid["hours"]:.2f} hours, evaluations
included. In the last {last - before} steps it changed by {change:+.1f} points.

```
{camvid["command"]}
```

{_where(camvid)}.
"""


def _classes(camvid: Facts) -> str:
    rows = zip(camvid["class_names"], camvid["frequency"], camvid["iou"], camvid["accuracy"],
               strict=True)  # fmt: skip
    head = ["class", "share of the pixels, %", "IoU, %", "recall, %"]
    cells = ([name, *(f"{100 * value:.1f}" for value in values)] for name, *values in rows)
    return _table([head, *cells])


def _learning_picture(learning: Facts) -> str:
    curves = []
    for (name, runs), style in zip(_sides(learning), ("theirs", "ours"), strict=True):
        columns = [*zip(*(run["loss"] for run in runs), strict=True)]
        steps = [BLOCK * (i + 0.5) for i in range(len(columns))]
        low, high, mean = (
            [*zip(steps, map(f, columns), strict=True)] for f in (min, max, statistics.mean)
        )
        label = f"{name}: mean and range of {len(runs)} seeds"
        curves.append((style, label, mean, [*low, *reversed(high)]))
    return draw("training loss (main + 0.4 auxiliary), means of 10 steps", curves)


def _camvid_picture(camvid: Facts) -> str:
    points = [(step, 100 * score) for step, score in camvid["curve"]]
    return draw("validation mean IoU of the averaged weights, %", [("ours", "", points, [])])


def draw(title: str, curves: Sequence[tuple[str, str, list[Point], list[Point]]]) -> str:
    """Returns a picture, SVG, of curves over steps.

    Args:
      title: of the plot.
      curves: for each its style ("ours" or "theirs"), label or "", points and the outline of its
        band.
    """
    points = [point for _, _, *lines in curves for line in lines for point in line]
    xs, ys = (0.0, max(x for x, _ in points)), span([y for _, y in points])
    left, right, top, bottom = _LEFT, _SIZE[0] - _RIGHT, _TOP, _SIZE[1] - _BOTTOM

    def place(x: float, y: float) -> Point:
        share_x, share_y = position(x, *xs), position(y, *ys)
        return left + share_x * (right - left), bottom - share_y * (bottom - top)

    def places(points: Sequence[Point]) -> str:
        return " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in points)

    drawn = [_text(left, 18, title)]
    for value in ticks(*ys):
        _, y = place(0, value)
        drawn.append(f'<path class="grid" d="M{left},{y:.1f}H{right}"/>')
        drawn.append(_text(left - 8, y + 4, f"{value:.3g}", "end"))
    for value in ticks(*xs):
        x, _ = place(value, ys[0])
        drawn.append(_text(x, _SIZE[1] - 14, f"{value:.6g}", "middle"))
    drawn.append(_text(right, _SIZE[1] - 2, "step", "end"))
    for number, (style, label, line, band) in enumerate(curves):
        if band:
            drawn.append(f'<polygon class="{style} band" points="{places(band)}"/>')
        drawn.append(f'<polyline class="{style}" points="{places(line)}"/>')
        if label:
            y = top + 16 + 18 * number
            drawn.append(f'<path class="{style}" d="M{right - 320},{y}h24"/>')
            drawn.append(_text(right - 288, y + 4, label))
    return _SVG.format(
        width=_SIZE[0], height=_SIZE[1], title=html.escape(title), drawn="\n".join(drawn)
    )


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(words)}</text>'


_SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">
<title>{title}</title>
<style>
text {{ font: 13px sans-serif; fill: #1f2328 }} polyline, path {{ fill: none; stroke-width: 2 }}
.grid {{ stroke: #d0d7de; stroke-width: 1 }} .ours {{ stroke: #0969da }}
.theirs {{ stroke: #bc4c00 }} .band {{ stroke: none; fill-opacity: .2 }}
.ours.band {{ fill: #0969da }} .theirs.band {{ fill: #bc4c00 }}
</style>
<rect width="100%" height="100%" fill="white"/>
{drawn}
</svg>
"""


if __name__ == "__main__":
    main()
