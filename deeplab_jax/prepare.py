"""Command: puts downloaded data sets into the layouts that recipes read, or decodes data once.

    deeplab prepare voc --archives DOWNLOADS --output data

Nothing is downloaded. The same command again checks what is there and writes nothing.
"""

import argparse
from pathlib import Path

from deeplab_jax import cli
from deeplab_jax.errors import ConfigError

_EXAMPLES = """\
  deeplab prepare voc --archives DOWNLOADS --output data
  deeplab prepare ade20k --archives DOWNLOADS --output data --format tfds
  deeplab prepare cityscapes --archives DOWNLOADS --output data
  deeplab prepare cache --config cityscapes_r50_os16 --output cache
Nothing is downloaded. The same command again checks what is there and writes nothing."""
_OFFICIAL, _CACHE = ("voc", "ade20k", "cityscapes"), "cache"
_COUNTS = "--expect-counts"


def main(argv: list[str]) -> None:
    """Parses arguments and prepares one data set, or a cache.

    Raises:
      DeepLabError: something cannot be used; `cli.run` prints it.
    """
    parser = cli.Parser("prepare", _EXAMPLES)
    add = parser.add_argument
    text = "voc, ade20k, cityscapes: a data set of the table; cache: a recipe's decoded samples"
    add("what", metavar="WHAT", choices=(*_OFFICIAL, _CACHE), help=text)
    text = "folder of the official archives, or of the folders they unpack to; not for a cache"
    add("--archives", metavar="DIR", help=text)
    text = "where the data set appears, config.data.root; for a cache: the folder to write"
    add("--output", metavar="DIR", required=True, help=text)
    text = "tfds: also as ArrayRecord in DIR/tfds, for config.data.source=tfds; not for a cache"
    add("--format", choices=("folder", "tfds"), help=text)
    text = "images for training and validation, if not the published numbers; not for a cache"
    add(_COUNTS, metavar="N,M", type=_counts, help=text)
    add("--config", metavar="RECIPE", help="for a cache: the recipe whose data it holds")
    add("--verify", action="store_true", default=None, help="check the bytes of an existing cache")
    add("--config.x", metavar="VALUE", help="for a cache: any field, such as config.data.root")
    args, overrides = parser.parse(argv)
    _check_arguments(args, overrides)
    if args.what == _CACHE:
        _prepare_cache(args, overrides)
    else:
        _prepare_official(args)


def _counts(text: str) -> tuple[int, int]:
    try:
        train, val = map(int, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not as 12,4") from None
    return train, val


def _check_arguments(args: argparse.Namespace, overrides: list[str]) -> None:
    """Refuses what belongs to the other kind of preparation, and asks for what is missing."""
    official, cache = ("--archives", "--format", _COUNTS), ("--config", "--verify")
    kind = args.what
    foreign, needed, fix = (
        (official, "--config", "name a recipe")
        if kind == _CACHE
        else (cache, "--archives", "name the folder of the downloads")
    )
    given = {flag: getattr(args, flag[2:].replace("-", "_")) for flag in (*official, *cache)}
    wrong = [flag for flag in foreign if given[flag] is not None]
    if kind != _CACHE:
        wrong += overrides  # the layout and the classes are official
    if wrong:
        raise ConfigError(wrong[0], f"means nothing for {kind}", "drop it")
    if given[needed] is None:
        raise ConfigError(f"deeplab prepare {kind}", f"wants {needed}", fix)


def _prepare_official(args: argparse.Namespace) -> None:
    from deeplab_jax.data.writers.official import OFFICIAL, prepare, read_config

    root = Path(args.output)
    folder = prepare(args.what, Path(args.archives), root, args.expect_counts)
    cli.finish(folder)
    if args.format == "tfds":
        from deeplab_jax.data.writers.tfds import write_tfds

        config = read_config(args.what, root)
        folder = write_tfds(config.data, config.model.num_classes)
        cli.finish(folder, note="read with --config.data.source=tfds")
    command = ("doctor", "--config", OFFICIAL[args.what].recipe, f"--config.data.root={root}")
    cli.finish(None, *command, note="opens every file")


def _prepare_cache(args: argparse.Namespace, overrides: list[str]) -> None:
    from deeplab_jax.config.recipe import load_recipe
    from deeplab_jax.data.writers.cache import write_cache

    config = load_recipe(args.config, overrides)
    write_cache(config.data, config.model.num_classes, Path(args.output), bool(args.verify))
    command = ["train", "--config", args.config]
    command += ["--config.data.source=cache", f"--config.data.root={args.output}"]
    command += [text for text in overrides if text.startswith("--config.data.value_range=")]
    if not config.init.backbone:  # must be said
        command.append("--config.init.backbone=DIR")
    cli.finish(args.output, *command)


if __name__ == "__main__":
    cli.run(main)
