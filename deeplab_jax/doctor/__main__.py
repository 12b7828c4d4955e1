"""Command: checks a data set before anything is trained on it.

    python -m deeplab_jax.doctor --data DIR --write-config mine.py

Opens every image and mask, says all that is wrong at once, and proposes a recipe. No file of the
data set is ever changed. Exit code 0 if nothing is wrong but warnings, else 3.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deeplab_jax import cli
from deeplab_jax.errors import ConfigError, DataError, check_writable

_EXAMPLES = """\
  deeplab doctor --data photos/
  deeplab doctor --data photos/ --write-config mine.py --val-fraction 0.2
  deeplab doctor --config configs/camvid_r50_os16.py --config.data.root=camvid --json text.json"""
_PLAIN_SECONDS = 10.0  # between lines where the output is not a terminal


def main(argv: list[str]) -> None:
    """Parses arguments, prints the report, writes what was asked for.

    Raises:
      DataError: the data set has errors.
      DeepLabError: see `deeplab_jax.errors`; `cli.run` prints it.
    """
    parser = cli.Parser("doctor", _EXAMPLES)
    parser.add_argument("--data", metavar="DIR", help="a folder of images and masks")
    parser.add_argument("--config", metavar="FILE", help="a recipe, whose own data is checked")
    parser.add_argument("--json", metavar="FILE", help="write everything there, nothing cut short")
    parser.add_argument("--write-config", metavar="FILE", help="propose a recipe for --data")
    parser.add_argument(
        "--val-fraction",
        metavar="X",
        type=float,
        default=0.2,
        help="images to validate on where the data has no split (0.2)",
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of that split (0)")
    parser.add_argument("--config.x", metavar="VALUE", help="any field of the recipe")
    args, overrides = parser.parse(argv)
    _check_arguments(args, overrides)
    from deeplab_jax.doctor import findings, layouts, propose, survey, text

    began = time.perf_counter()
    layout = None
    if args.config:
        from deeplab_jax.config.recipe import load_recipe

        found = survey.survey_recipe(load_recipe(args.config, overrides), _watch)
        print(f"{found.root}, as {args.config} says\n")
    else:
        layout = layouts.guess(args.data)
        if args.write_config:
            propose.check_free(args.write_config, layout)
        print(text.to_printable(f"{layout.root}\n  {layout.why}\n"), flush=True)
        found = survey.survey_folder(layout, _watch)
    speed = text.speed(found, time.perf_counter() - began)
    faults = findings.check(found)
    if layout and args.write_config:
        faults = propose.settle(found, faults)
    print(text.to_text(found, faults, speed))
    if args.json:
        text.write_json(args.json, found, faults, speed)
    if layout and args.write_config:
        proposal = propose.propose(found, layout)
        propose.write(proposal, args.write_config, args.val_fraction, args.seed)
    errors = sum(finding.severity == "error" for finding in faults)
    if errors:
        what = f"{errors} kind{'s' if errors > 1 else ''} of error, listed above"
        raise DataError(str(found.root), what, "mend them: training stops at them or learns them")


def _check_arguments(args: Any, overrides: list[str]) -> None:
    """Refuses what does not fit together.

    Raises:
      ConfigError: naming what does not.
      ResourceError: `--json` could not be written.
    """
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


def _watch(facts: Iterator, total: int) -> Iterator:
    """Yields the facts and shows on standard error how far they are."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(facts, "reading", total, console=Console(stderr=True), transient=True)
        return
    began = printed = time.perf_counter()
    for number, item in enumerate(facts, 1):
        yield item
        now = time.perf_counter()
        if now - printed >= _PLAIN_SECONDS:
            printed = now
            rate = number / (now - began)
            print(f"read {number}/{total}, {rate:.0f} images/s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(main)
