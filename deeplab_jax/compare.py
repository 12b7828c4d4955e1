"""Command: tells whether one evaluation is better than another of the same images.

    deeplab compare runs/plain runs/weighted

Each side is compared with the first: a paired bootstrap over images, and over seeds where a side
has several (`evaluation.comparison`). Writes a page and JSON.
"""

from deeplab_jax import cli
from deeplab_jax.errors import ConfigError
from deeplab_jax.utils.places import as_place, check_place

_EXAMPLES = """\
  deeplab compare runs/plain runs/weighted
  deeplab compare runs/plain runs/weighted runs/focal --by image
  deeplab compare runs/plain/seed_* runs/weighted/seed_* --output weighted.html
A side with folders seed_0, seed_1, ... counts as one with several seeds. It reads numbers alone;
with --by image it also loads the weights and segments a few images."""


def main(argv: list[str]) -> None:
    """Parses arguments, prints the differences and a verdict, writes the page and the numbers.

    Raises:
      DeepLabError: see `deeplab_jax.errors`; `cli.run` prints it.
    """
    parser = cli.Parser("compare", _EXAMPLES)
    parser.add_argument(
        "sides",
        metavar="SIDE",
        nargs="+",
        help="a run's directory, evaluated; a folder of its seeds, seed_0, seed_1, ...; or a file"
        " that deeplab evaluate --json wrote",
    )
    parser.add_argument(
        "--by",
        choices=("class", "image"),
        default="class",
        help="what is listed; image: those that gain and lose most, on the page with pictures of"
        " both sides; default: class",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        default="compare.html",
        help="the page, and the numbers beside it as .json; default: compare.html",
    )
    parser.add_argument(
        "--config.x",
        metavar="VALUE",
        help="with --by image: any field of the checkpoints' recipes, such as --config.data.root",
    )
    args, overrides = parser.parse(argv)
    if overrides and args.by == "class":
        raise ConfigError(overrides[0], "changes nothing without pictures", "add --by image")
    output = as_place(args.output)
    if output.suffix == ".json":
        fix = f"name the page: --output {output.with_suffix('.html')}"
        raise ConfigError("--output", f"{output} is the place of the numbers", fix)
    check_place(output, "--output")
    from rich.console import Console

    from deeplab_jax.data.colors import safe_palette
    from deeplab_jax.evaluation import metrics
    from deeplab_jax.report import compare, compare_page

    pairs = compare.compare(args.sides)
    if args.by == "image":
        found = compare.draw(pairs, overrides)
    else:
        palette = safe_palette(len(pairs[0].classes.value))
        found = compare.Comparison(pairs, palette, [[] for _ in pairs], [])
    numbers = compare.write(output, found, compare_page.build(found))
    tables = {"class": compare_page.class_table, "image": compare_page.image_table}
    for pair in pairs:
        Console().print(tables[args.by](pair))
    for pair in pairs:
        print(pair.verdict)
    if few := metrics.few_in_words(len(pairs[0].first.ids)):
        print(few)
    print(f"numbers: {numbers}")
    cli.finish(output)


if __name__ == "__main__":
    cli.run(main)
