"""Command: every verb once, on drawn images: training, evaluation, report, predictions.

    deeplab demo

Needs no data, no GPU and no weights. Each stage shows the command that does the same alone.
"""

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
_NEXT = """\
Your own images and masks; then a row of the published table; then all recipes:
next: deeplab doctor --data DIR --write-config mine.py
next: deeplab train --config mine.py
next: deeplab train --config ade20k_r50_os16 --config.init.backbone=DIR
next: deeplab recipes"""


def main(argv: list[str]) -> None:
    """Parses arguments, draws the data set, and runs the verbs on it.

    Raises:
      ConfigError: `--output` holds something that no demo made; it is left as it is.
      Interrupted: a signal stopped a stage; the error says how to go on.
    """
    parser = cli.Parser("demo", _EXAMPLES)
    parser.add_argument("--output", metavar="DIR", default="runs/demo", help="default: runs/demo")
    text = "draw the data set in DIR/data, and stop"
    parser.add_argument("--draw-only", action="store_true", help=text)
    text = "any field of the recipe quickstart, such as --config.train.steps=400"
    parser.add_argument("--config.x", metavar="VALUE", help=text)
    args, overrides = parser.parse(argv)
    if args.draw_only and overrides:
        raise ConfigError(overrides[0], "changes the training, and there is none", "drop it")
    output, began = Path(args.output), time.perf_counter()
    data, run, predictions = (str(output / part) for part in folder.PARTS)
    again = shlex.join(["deeplab", "demo", *argv])

    def say(title: str) -> None:
        print(f"\n== {title} ({time.perf_counter() - began:.0f} s)", flush=True)

    with folder.claimed(output, folder.PARTS[:1] if args.draw_only else folder.PARTS):
        say("Drawing shapes")
        from deeplab_jax.demo.shapes import draw

        draw(Path(data))
        train = ["train", "--config", "quickstart", f"--config.data.root={data}"]
        if args.draw_only:
            print(f"results: {shlex.quote(data)}\nnext: {shlex.join(['deeplab', *train])}")
            return
        stages = {
            "Training": [*train, "--workdir", run, *overrides],
            "Evaluating": ["evaluate", "--checkpoint", run],
            "Predicting": ["predict", "--checkpoint", run, f"{data}/images/val"],
        }
        stages["Predicting"] += ["--output", predictions, "--force"]
        for title, command in stages.items():
            say(title)
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
        say("Done")
    result = json.loads(Path(run, "evaluation.json").read_text("utf-8"))
    print(f"validation mean IoU: {result['mean_iou']:.4f}")
    print(
        f"best constant prediction (one class everywhere): {result['best_constant_mean_iou']:.4f}"
    )
    print("Open in a browser, and look at the overlays:")
    print(f"results: {shlex.quote(f'{run}/report.html')}")
    print(f"results: {shlex.quote(predictions)}")
    print(_NEXT)


if __name__ == "__main__":
    cli.run(main)
