"""Command: checks a data set before anything is trained on it.

    deeplab doctor --data DIR --write-config mine.py

Opens every image and mask, tells all faults at once, and proposes a recipe. No file of the data set
is ever changed. Exit code 0 if nothing is wrong but warnings, else 3.
"""

import argparse
from pathlib import Path

from deeplab_jax import cli
from deeplab_jax.errors import ConfigError, check_writable

_EXAMPLES = """\
  deeplab doctor --data photos/
  deeplab doctor --data photos/ --write-config mine.py --val-fraction 0.2
  deeplab doctor --config camvid_r50_os16 --config.data.root=camvid --json report.json"""


def main(argv: list[str]) -> None:
    """Parses and checks the flags, then runs `deeplab_jax.doctor.run`."""
    parser = cli.Parser("doctor", _EXAMPLES)
    add = parser.add_argument
    add("--data", metavar="DIR", help="a folder of images and masks")
    add("--config", metavar="FILE", help="a recipe, whose own data is checked")
    add("--json", metavar="FILE", help="write everything there, nothing cut short")
    add("--write-config", metavar="FILE", help="propose a recipe for --data")
    text = "images to validate on where the data has no split (0.2)"
    add("--val-fraction", metavar="X", type=float, default=0.2, help=text)
    add("--seed", metavar="N", type=int, default=0, help="of that split (0)")
    add("--config.x", metavar="VALUE", help="any field of the recipe")
    args, overrides = parser.parse(argv)
    _check_arguments(args, overrides)
    from deeplab_jax.doctor.run import run

    if args.config:
        run(args.config, overrides, args.json)
        cli.finish(args.json, "train", "--config", args.config, *overrides)
        return
    run(args.data, None, args.json, args.write_config, args.val_fraction, args.seed)
    if args.write_config:
        cli.finish(args.write_config, "train", "--config", args.write_config)
    else:
        cli.finish(args.json, "doctor", "--data", args.data, "--write-config", "mine.py")


def _check_arguments(args: argparse.Namespace, overrides: list[str]) -> None:
    if bool(args.data) == bool(args.config):
        fix = "name a folder with --data or a recipe with --config"
        raise ConfigError("deeplab doctor", "wants one of --data and --config", fix)
    if args.data and overrides:
        raise ConfigError(overrides[0], "changes a recipe, and there is none", "use --config")
    if args.config and args.write_config:
        raise ConfigError("--write-config", "there is a recipe already", "use it with --data")
    if not 0 < args.val_fraction < 1:
        raise ConfigError("--val-fraction", f"must be between 0 and 1, got {args.val_fraction}",
                          "use a value such as 0.2")  # fmt: skip
    if args.json:
        check_writable(Path(args.json), "--json")
    if args.seed < 0:
        raise ConfigError("--seed", f"must not be negative, got {args.seed}", "use 0, 1, ...")


if __name__ == "__main__":
    cli.run(main)
