"""Commands about configurations: their fields, where a recipe's values come from, differences.

    deeplab config fields batch
    deeplab config show voc_r50_os16 --config.train.batch_size=8
    deeplab config diff voc_r50_os16 runs/mine

None loads JAX.
"""

import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from deeplab_jax import cli
from deeplab_jax.config import catalogue, flatten, get_config
from deeplab_jax.config.checks import as_text
from deeplab_jax.config.recipe import is_run, load_recipe
from deeplab_jax.config.schema import Config, fields
from deeplab_jax.config.table import PUBLISHED_MIOU
from deeplab_jax.errors import ConfigError

_RECIPE = "a recipe: a file, a name such as ade20k_r50_os16, or a run's directory"


def main(argv: list[str]) -> None:
    """Runs `deeplab config VERB ...`; `argv` begins with the verb.

    Raises:
      ConfigError: an argument or recipe cannot be used.
    """
    {"fields": _fields, "show": _show, "diff": _diff}[argv[0]](argv[1:])


def _fields(argv: Sequence[str]) -> None:
    examples = (
        "  deeplab config fields\n  deeplab config fields batch\n  deeplab config fields eval."
    )
    parser = cli.Parser("config fields", examples)
    text = "only fields about it: in their names, what other tools call them, or their sentences"
    parser.add_argument("words", metavar="WORD", nargs="*", help=text)
    word = "_".join(parser.parse(argv)[0].words)
    rows = catalogue.search(word) if word else catalogue.rows()
    if not rows:
        raise ConfigError(word, "no field is about this", "see all: deeplab config fields")
    names = max(len(row.name) for row in rows)
    defaults = min(24, max(len(row.default) for row in rows))
    width = max(60, shutil.get_terminal_size().columns)
    for row in rows:
        unit = f"{row.unit}: " if row.unit else ""
        print(f"{row.name:{names}}  {row.default or '(empty)':{defaults}}  {unit}{row.accepted}")
        print(textwrap.fill(row.text, width, initial_indent="    ", subsequent_indent="    "))


def _show(argv: Sequence[str]) -> None:
    examples = "  deeplab config show voc_r50_os16\n  deeplab config show mine.py --config.seed=1"
    parser = cli.Parser("config show", examples)
    parser.add_argument("recipe", metavar="RECIPE", help=_RECIPE)
    parser.add_argument("--config.x", metavar="VALUE", help="any field of the recipe")
    args, overrides = parser.parse(argv)
    values = flatten(load_recipe(args.recipe, overrides))
    before = load_recipe(args.recipe)
    row = before.data.dataset, before.model.depth, before.model.output_stride
    source = "run" if is_run(args.recipe) else "recipe"
    score = f", published mean IoU {PUBLISHED_MIOU[row]} %" if row in PUBLISHED_MIOU else ""
    print(f"{args.recipe}: {row[0]}, ResNet-{row[1]}, output stride {row[2]}{score}")
    print("* is not the default; --config.FIELD=VALUE changes a field\n")
    template = flatten(get_config(*row))
    flags = {override.removeprefix("--config.").partition("=")[0] for override in overrides}
    names, widest = max(map(len, values)), max(len(as_text(value)) for value in values.values())
    for key, value in values.items():
        default = fields()[key].default
        if key in flags:
            origin = "flag"
        elif value != template[key]:
            origin = source
        elif value != default:
            origin = "table" if row in PUBLISHED_MIOU else "template"
        else:
            origin = "default"
        mark, was = ("*", f" (default {_shown(default)})") if value != default else (" ", "")
        print(f"{mark} {key:{names}}  {_shown(value):{min(24, widest)}}  {origin}{was}")


def _diff(argv: Sequence[str]) -> None:
    examples = "  deeplab config diff voc_r50_os16 mine.py\n  deeplab config diff runs/a runs/b"
    parser = cli.Parser("config diff", examples)
    parser.add_argument("a", metavar="A", help=_RECIPE)
    parser.add_argument("b", metavar="B", help="another")
    args, _ = parser.parse(argv)
    old, new = (_values(load_recipe(path)) for path in (args.a, args.b))
    lines = [f"{key}: {old[key]} -> {new[key]}" for key in old if old[key] != new[key]]
    print("\n".join(lines) or "no field differs")


def _values(config: Config) -> dict[str, str]:
    return {key: _shown(value) for key, value in flatten(config).items()}


def _shown(value: Any) -> str:
    return as_text(value) or "(empty)"


if __name__ == "__main__":
    cli.main(["config", *sys.argv[1:]])
