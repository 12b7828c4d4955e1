"""Command: writes a page with what the network will see.

    deeplab preview --config mine.py

The page shows the first samples of a run before and after `config.data.transforms`, and loads no
other file. It is written without JAX.
"""

from pathlib import Path

from deeplab_jax import cli
from deeplab_jax.errors import DataError, check_writable

_EXAMPLES = """\
  deeplab preview --config mine.py
  deeplab preview --config mine.py --output after.html --config.seed=1
  deeplab preview --config mine.py --config.data.transforms="scale,crop,flip,rotate(degrees=15)"
Use it after every change of config.data.transforms, and for a function of your own."""


def main(argv: list[str]) -> None:
    """Parses arguments and writes the page.

    Raises:
      DeepLabError: see `deeplab_jax.errors`; `cli.run` prints it.
    """
    parser = cli.Parser("preview", _EXAMPLES)
    text = "recipe: a file, a name of `deeplab recipes`, or a run's directory"
    parser.add_argument("--config", metavar="RECIPE", required=True, help=text)
    text = "the page (preview.html)"
    parser.add_argument("--output", metavar="FILE", default="preview.html", help=text)
    parser.add_argument("--config.x", metavar="VALUE", help="any field of the recipe")
    args, overrides = parser.parse(argv)
    output = Path(args.output)
    check_writable(output, "--output")
    from deeplab_jax.config.recipe import load_recipe
    from deeplab_jax.preview import page, samples

    config = load_recipe(args.config, overrides)
    try:
        page.write(output, samples.gather(config))
    except DataError as error:
        raise cli.with_doctor(error, config, args.config, overrides) from error
    cli.finish(output, "train", "--config", args.config, *overrides)


if __name__ == "__main__":
    cli.run(main)
