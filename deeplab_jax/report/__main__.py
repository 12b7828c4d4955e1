"""Command: writes a page about a checkpoint's evaluation.

    deeplab report runs/camvid_r50_os16

`evaluate` writes it too. The page, `report.html`, loads no other file.
"""

import shlex

from deeplab_jax import cli
from deeplab_jax.errors import ConfigError
from deeplab_jax.utils import steps
from deeplab_jax.utils.places import as_place, check_place

_EXAMPLES = """\
  deeplab report runs/camvid_r50_os16
  deeplab report runs/camvid_r50_os16 --output report.html
  deeplab report runs/camvid_r50_os16 --config.data.root=elsewhere"""


def main(argv: list[str]) -> None:
    """Parses arguments and writes `report.html`.

    Raises:
      DeepLabError: see `deeplab_jax.errors`; `cli.run` prints it.
    """
    parser = cli.Parser("report", _EXAMPLES)
    parser.add_argument("checkpoint", metavar="DIR", help="a run's directory, evaluated")
    parser.add_argument("--output", metavar="FILE", help="default: DIR/report.html")
    parser.add_argument("--config.x", metavar="VALUE", help="any field of the checkpoint's recipe")
    args, overrides = parser.parse(argv)
    folder = as_place(args.checkpoint)
    numbers = folder / "evaluation.json"
    if not numbers.is_file():
        steps.check(folder)
        fix = f"make one: deeplab evaluate --checkpoint {shlex.quote(args.checkpoint)}"
        raise ConfigError(str(numbers), "there is no evaluation to report", fix)
    output = as_place(args.output or folder / "report.html")
    check_place(output, "--output")
    from deeplab_jax.report.write import write_again

    evaluation = write_again(folder, output, overrides)
    is_latest = evaluation["step"] == steps.latest_step(folder)
    weights = evaluation.get("weights")
    how = cli.same_weights(
        "latest" if is_latest else evaluation["step"], "raw" if weights == "raw" else None
    )
    how += [text for text in evaluation["overrides"] if text.startswith("--config.eval.")]
    cli.finish(
        output, "predict", "--checkpoint", args.checkpoint, *how, "IMAGES", "--output", "out"
    )


if __name__ == "__main__":
    cli.run(main)
