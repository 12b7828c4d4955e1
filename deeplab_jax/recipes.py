"""Command: lists the recipes that come with the package, or copies one for editing.

deeplab recipes
deeplab recipes --copy camvid_r18_os16 mine.py
"""

import shlex
from pathlib import Path

from deeplab_jax import cli
from deeplab_jax.errors import ConfigError, check_writable

_EXAMPLES = """\
  deeplab recipes
  deeplab recipes --copy camvid_r18_os16 mine.py"""
_ROW = "{:20}  {:>9}  {:>7}  {:>8}  {:>5}  {:>10}"
_PUBLISHED = """
Published: validation mean IoU in percent, from sssegmentation's model zoo (DeepLabV3+).
"""


def main(argv: list[str]) -> None:
    """Prints the table of recipes, or copies the file of one.

    Raises:
      ConfigError: there is no such recipe, or the copy would replace a file.
      ResourceError: the copy cannot be written.
    """
    parser = cli.Parser("recipes", _EXAMPLES)
    text = "write the recipe NAME as FILE, a new Python file, for editing"
    parser.add_argument("--copy", nargs=2, metavar=("NAME", "FILE"), help=text)
    args, overrides = parser.parse(argv)
    if overrides:
        fix = "give it to deeplab train"
        raise ConfigError(overrides[0], "changes a run, and this lists recipes", fix)
    if args.copy:
        _copy(args.copy[0], Path(args.copy[1]))
    else:
        _list()


def _list() -> None:
    from deeplab_jax.config import PUBLISHED_MIOU
    from deeplab_jax.config.recipe import load_recipe, recipe_files

    print(_ROW.format("name", "published", "classes", "crop", "batch", "trains for"))
    for name, file in recipe_files().items():
        c = load_recipe(str(file))
        miou = PUBLISHED_MIOU.get((c.data.dataset, c.model.depth, c.model.output_stride))
        crop = "x".join(map(str, c.data.crop_size))
        length = f"{c.train.steps} steps" if c.train.steps else f"{c.train.epochs} epochs"
        published = f"{miou:.2f}" if miou else "-"
        row = (name, published, c.model.num_classes, crop, c.train.batch_size, length)
        print(_ROW.format(*row))
    print(_PUBLISHED)
    cli.finish(None, "train", "--config", "ade20k_r50_os16", "--config.init.backbone=DIR")
    copy = ("recipes", "--copy", "camvid_r18_os16", "mine.py")
    cli.finish(None, *copy, note="edit it, and train it by its path")


def _copy(name: str, file: Path) -> None:
    from deeplab_jax.config.recipe import find_recipe

    source = find_recipe(name)
    if file.suffix != ".py":
        what = "is no name of a Python file"
        raise ConfigError(str(file), what, f"write --copy {shlex.quote(name)} mine.py")
    if file.exists():
        raise ConfigError(str(file), "exists, and is not replaced", "name another file")
    check_writable(file, "--copy")
    file.write_bytes(source.read_bytes())
    cli.finish(file, "train", "--config", file)


if __name__ == "__main__":
    cli.run(main)
