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
import json
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deeplab_jax.account.goodput import read_account
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
_COLUMNS, _TILE, _GAP = 3, (320, 240), 6  # of frames; (width, height) and space between, pixels
_SIZE = (760, 360)  # (width, height) of a picture
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 34, 34  # margins of its plot
Facts = dict[str, Any]


def main() -> None:
    """Takes in a run, if one is named, and writes all pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["learning", "camvid"])
    parser.add_argument("paths", nargs="*", type=Path)
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if args.what == "learning":
        results["learning"] = read_learning(*args.paths)
    elif args.what == "camvid":
        results["camvid"] = read_camvid(*args.paths)
        draw_frames(*args.paths).save(FRAMES, optimize=True)
    write(RESULTS, json.dumps(results, indent=1) + "\n")
    for path, text in files(results).items():
        write(ROOT / path, text)


def write(path: Path, text: str) -> None:
    """Writes a file at once."""
    with atomic_write(path) as file:
        file.write(text.encode())


def read_learning(runs: Path, curves: Path) -> Facts:
    """Returns losses and scores of each seed: ours and the reference's."""
    reference = json.loads(curves.read_text())
    theirs = reference["seeds"] | {
        name.removeprefix("seed"): seed
        for name, seed in reference["supplement"].items()
        if re.fullmatch(r"seed\d+", name)
    }
    return _origin(f"deeplab train --config camvid_r50_os16_short --seeds {_seeds(runs)}") | {
        "reference": [_theirs(int(name), seed) for name, seed in theirs.items()],
        "ours": [_ours(folder) for folder in sorted(runs.glob("seed_*"))],
    }


def read_camvid(run: Path) -> Facts:
    """Returns scores, curve and length of an evaluated run."""
    scores = json.loads((run / "evaluation.json").read_text())
    lines = [*_lines(run)]
    names = ("mean_iou", "mean_iou_interval", "pixel_accuracy", "class_names", "iou", "accuracy",
             "frequency", "protocol", "weights", "step")  # fmt: skip
    starts = json.loads((run / "env.json").read_text())["starts"]
    return _origin(starts[0]["command"]) | {
        "hours": read_account(run).wall / 3600,
        "curve": [[line["step"], line["mean_iou"]] for line in lines if line["event"] == "eval"],
        **{name: scores[name] for name in names},
    }


def draw_frames(run: Path) -> Image.Image:
    """Returns predictions of validation frames, below each its wrong pixels, and a legend."""
    import deeplab_jax
    from deeplab_jax.data import open_dataset
    from deeplab_jax.inference.overlay import Entry, add_legend

    model = deeplab_jax.load(run)
    data = open_dataset(model.config.data, model.config.model.num_classes, "val")
    chosen = [round(i * (len(data) - 1) / 5) for i in range(6)]
    rows = -(-len(chosen) // _COLUMNS)
    width, height = (size + _GAP for size in _TILE)
    sheet = Image.new("RGB", (_COLUMNS * width - _GAP, rows * 2 * height - _GAP), "white")
    counts = np.zeros(len(model.palette))
    for number, index in enumerate(chosen):
        image, truth = data.read(index)
        labels = model(image).labels
        counts += np.bincount(labels.ravel(), minlength=len(counts))
        wrong = np.where((truth == labels)[..., None], 225, np.array([200, 30, 30])).astype(
            np.uint8
        )
        wrong[truth == 255] = 255
        x, y = number % _COLUMNS * width, number // _COLUMNS * 2 * height
        for row, pixels in enumerate((model.palette[labels], wrong)):
            tile = Image.fromarray(pixels.astype(np.uint8)).resize(_TILE, Image.Resampling.NEAREST)
            sheet.paste(tile, (x, y + row * height))
    shares = counts / counts.sum()
    classes = zip(model.class_names, shares, model.palette.tolist(), strict=True)
    return add_legend(sheet, [Entry(name, share, tuple(color)) for name, share, color in classes])


def _origin(command: str) -> Facts:
    packages = {name: metadata.version(name) for name in ("deeplab_jax", "jax")}
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    machine = f"two cores of {model[1] if model else 'a processor'}"
    return {"command": command, "machine": machine, "date": str(date.today()), **packages}


def _seeds(runs: Path) -> str:
    return ",".join(sorted(folder.name.removeprefix("seed_") for folder in runs.glob("seed_*")))


def _lines(run: Path) -> Iterator[Facts]:
    return map(json.loads, (run / "log.jsonl").read_text().splitlines())


def _ours(run: Path) -> Facts:
    losses: dict[int, float] = {}
    score: Facts = {}
    for line in _lines(run):
        if line["event"] == "train":
            losses[line["step"]] = line["loss"]
        if line["event"] == "eval":
            score = line
    names = json.loads((run / "config.json").read_text())["data"]["class_names"]
    iou = dict(zip(names, score["iou"], strict=True))
    return {
        "seed": int(run.name.removeprefix("seed_")),
        "loss": _blocks([losses[step] for step in sorted(losses)]),
        "mean_iou": score["mean_iou"],
        "pixel_accuracy": score["pixel_accuracy"],
        "iou": iou,
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
    learning, camvid = results["learning"], results["camvid"]
    parts = {
        "docs/results/learning.md": {
            "losses": _losses(learning), "scores": _scores(learning), "verdict": _verdict(learning)
        },
        "docs/results/camvid.md": {"classes": _classes(camvid), "reached": _reached(camvid)},
        "README.md": {"learning": _sentence(learning), "camvid": _camvid_sentence(camvid)},
    }  # fmt: skip
    pages = {path: rewrite((ROOT / path).read_text(), texts) for path, texts in parts.items()}
    return pages | {
        "docs/results/learning.svg": _learning_picture(learning),
        "docs/results/camvid.svg": _camvid_picture(camvid),
    }


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


def _verdict(learning: Facts) -> str:
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
    theirs, ours = (_spread([r["mean_iou"] for r in runs], 100, 1) for _, runs in _sides(learning))
    count = len(learning["ours"])
    return (
        f"ResNet-50 from random weights, 300 steps: mean IoU {ours} % over {count} seeds, "
        f"PyTorch's {theirs} %\n([both curves](docs/results/learning.md)).\n"
    )


def _camvid_sentence(camvid: Facts) -> str:
    reached = f"{camvid['hours']:.1f} hours: mean IoU {100 * camvid['mean_iou']:.1f} %"
    return (
        f"ResNet-18 on CamVid from scratch, {reached} on 101 validation\n"
        "frames ([by class](docs/results/camvid.md)).\n"
    )


def _reached(camvid: Facts) -> str:
    low, high = camvid["mean_iou_interval"]
    (before, score), (last, final) = camvid["curve"][-2:]
    return f"""\
Mean IoU **{100 * camvid["mean_iou"]:.2f} %**, 95 % interval {100 * low:.1f} to {100 * high:.1f}
(bootstrap over images), pixel accuracy {100 * camvid["pixel_accuracy"]:.1f} %, after
{camvid["step"]:,} steps of 4 images: {camvid["hours"]:.2f} hours, evaluations included. In the last
{last - before} steps it rose by {100 * (final - score):.1f} points.

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
    return draw("validation mean IoU, %", [("ours", "averaged weights", points, [])])


def draw(title: str, curves: Sequence[tuple[str, str, list[Point], list[Point]]]) -> str:
    """Returns a picture, SVG, of curves over steps.

    Args:
      title: of the plot.
      curves: for each its style ("ours" or "theirs"), label, points and the outline of its band.
    """
    points = [point for _, _, *lines in curves for line in lines for point in line]
    xs, ys = (0.0, max(x for x, _ in points)), span([y for _, y in points])
    frame = (_LEFT, _SIZE[0] - _RIGHT), (_SIZE[1] - _BOTTOM, _TOP)

    def place(point: Point) -> str:
        shares = position(point[0], *xs), position(point[1], *ys)
        x, y = (a + share * (b - a) for share, (a, b) in zip(shares, frame, strict=True))
        return f"{x:.1f},{y:.1f}"

    def text(at: str, words: str, anchor: str = "start") -> str:
        x, y = at.split(",")
        return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{words}</text>'

    drawn = [text(f"{_LEFT},18", title)]
    for value in ticks(*ys):
        y = place((0, value)).split(",")[1]
        drawn.append(f'<path class="grid" d="M{frame[0][0]},{y}H{frame[0][1]}"/>')
        drawn.append(text(f"{_LEFT - 8},{float(y) + 4:.1f}", f"{value:.3g}", "end"))
    for value in ticks(*xs):
        x = place((value, ys[0])).split(",")[0]
        drawn.append(text(f"{x},{_SIZE[1] - 14}", f"{value:.6g}", "middle"))
    drawn.append(text(f"{frame[0][1]},{_SIZE[1] - 2}", "step", "end"))
    for number, (style, label, line, band) in enumerate(curves):
        if band:
            drawn.append(f'<polygon class="{style} band" points="{" ".join(map(place, band))}"/>')
        drawn.append(f'<polyline class="{style}" points="{" ".join(map(place, line))}"/>')
        y = _TOP + 16 + 18 * number
        drawn.append(f'<path class="{style}" d="M{frame[0][1] - 300},{y}h24"/>')
        drawn.append(text(f"{frame[0][1] - 268},{y + 4}", label))
    return _SVG.format(width=_SIZE[0], height=_SIZE[1], title=title, drawn="\n".join(drawn))


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
