"""Command: every verb once, on drawn images: training, evaluation, report, predictions.

    deeplab demo

Needs no data, no GPU and no weights. Each stage shows the command that does the same alone.
"""

import argparse
import json
import shlex
import time
from pathlib import Path

from deeplab_jax import cli
from deeplab_jax.demo import folder
from deeplab_jax.errors import ConfigError, Interrupted

_EXAMPLES = """\
  deeplab demo
  deeplab demo --output DIR --config.train.steps=400
  deeplab demo --draw-only
The same command again starts afresh."""
_EXPORT = ("export", "--format", "onnx")
_NEXT = (
    ("doctor", "--data", "DIR", "--write-config", "mine.py"),
    ("train", "--config", "mine.py"),
    ("train", "--config", "ade20k_r50_os16", "--config.init.backbone=DIR"),
    ("recipes",),
)


def main(argv: list[str]) -> None:
    """Parses arguments, draws the data set, and runs the verbs on it.

    Raises:
      DeepLabError: the folder cannot be used, see `folder.claimed`, or a verb failed.
      Interrupted: a signal stopped a stage; the error says how to go on.
    """
    args, overrides = _parse(argv)
    began, again = time.perf_counter(), shlex.join(["deeplab", "demo", *argv])
    data, run, predictions = (str(Path(args.output, part)) for part in folder.PARTS)
    train = ["train", "--config", "quickstart", f"--config.data.root={data}"]
    predict = ["predict", "--checkpoint", run, f"{data}/images/val", "--output", predictions]
    stages = {
        "Training": [*train, "--workdir", run, *overrides],
        "Evaluating": ["evaluate", "--checkpoint", run],
        "Predicting": [*predict, "--force"],
    }
    parts = folder.PARTS[:1] if args.draw_only else folder.PARTS
    with folder.claimed(Path(args.output), parts):
        _say("Drawing shapes", began)
        from deeplab_jax.demo.shapes import draw

        draw(Path(data))
        if args.draw_only:
            cli.finish(data, *train)
            return
        for title, command in stages.items():
            _say(title, began)
            _run_stage(title, command, again)
        _say("Done", began)
        _show(run, predictions)


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = cli.Parser("demo", _EXAMPLES)
    parser.add_argument("--output", metavar="DIR", default="runs/demo", help="default: runs/demo")
    text = "draw the data set in DIR/data, and stop"
    parser.add_argument("--draw-only", action="store_true", help=text)
    text = "any field of the recipe quickstart, such as --config.train.steps=400"
    parser.add_argument("--config.x", metavar="VALUE", help=text)
    args, overrides = parser.parse(argv)
    if args.draw_only and overrides:
        raise ConfigError(overrides[0], "changes the training, and there is none", "drop it")
    return args, overrides


def _say(title: str, began: float) -> None:
    print(f"\n== {title} ({time.perf_counter() - began:.0f} s)", flush=True)


def _run_stage(title: str, command: list[str], again: str) -> None:
    """Runs a verb; an interruption tells how to go on with it, or with the demo, `again`."""
    text = shlex.join(["deeplab", *command])
    print(text, flush=True)
    try:
        cli.dispatch(command)
    except (Interrupted, KeyboardInterrupt) as end:
        what, code = f"stopped while {title.lower()}", 130
        if isinstance(end, Interrupted):
            what, code = end.what, end.exit_code
        fix = f"go on with {text}, or start afresh with {again}"
        raise Interrupted("demo", what, fix, code) from end


def _show(run: str, predictions: str) -> None:
    """Prints what the demo found, where to look, and what to type next."""
    result = json.loads(Path(run, "evaluation.json").read_text("utf-8"))
    constant = result["best_constant_mean_iou"]
    total = len(result["iou"])
    count = total - result["iou"].count(None)
    over = f" over {count} of {total} classes" if count < total else ""
    print(f"validation mean IoU: {100 * result['mean_iou']:.2f} %{over}")
    print(f"best constant prediction (one class everywhere): {100 * constant:.2f} %")
    print("Open in a browser, and look at the overlays:")
    cli.finish(f"{run}/report.html")
    cli.finish(predictions)
    print("The network in other runtimes, and on a page to try it:")
    cli.finish(None, *_EXPORT, "--checkpoint", run, "--output", "shapes_onnx")
    cli.finish(None, "serve", "--checkpoint", run)
    print("Your own images and masks; then a row of the published table; then all recipes:")
    for command in _NEXT:
        cli.finish(None, *command)


if __name__ == "__main__":
    cli.run(main)
