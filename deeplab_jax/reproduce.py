"""Command: repeats the first steps of a run and compares their losses with its log.

    deeplab reproduce runs/camvid_r50_os16

What is equal to the bit, and what to rounding, is defined in `deeplab_jax.account.reproduce`.
"""

import shlex

from deeplab_jax import cli
from deeplab_jax.errors import ConfigError, NumericError
from deeplab_jax.utils.places import as_place

_EXAMPLES = """\
  deeplab reproduce runs/camvid_r50_os16
  deeplab reproduce runs/camvid_r50_os16 --steps 5
  deeplab reproduce runs/camvid_r50_os16 --config.data.root=elsewhere
It reads the run and leaves nothing behind. Exit code 0: all losses are equal; 6: one differs."""
_FIELDS = ("--config.data.root=", "--config.data.num_workers=")  # that change no loss


def main(argv: list[str]) -> None:
    """Parses arguments, repeats the steps and prints what differs.

    Raises:
      NumericError: a loss differs.
      DeepLabError: see `deeplab_jax.errors`; `cli.run` prints it.
    """
    parser = cli.Parser("reproduce", _EXAMPLES)
    parser.add_argument("run", metavar="DIR", help="a run's work directory")
    parser.add_argument(
        "--steps", metavar="N", default="20", help="number of steps, from the first; default: 20"
    )
    parser.add_argument(
        "--config.x", metavar="VALUE", help="config.data.root or config.data.num_workers alone"
    )
    args, overrides = parser.parse(argv)
    if not (args.steps.isdecimal() and int(args.steps)):
        what = f"must be a whole number from 1 on, got {args.steps!r}"
        raise ConfigError("--steps", what, "give one such as --steps 20")
    for override in overrides:
        if not override.startswith(_FIELDS):
            fix = "leave it out; config.data.root and config.data.num_workers may differ"
            raise ConfigError(override, "is not what the run was trained with", fix)
    from deeplab_jax.config.recipe import is_run, load_recipe

    if not is_run(args.run):
        fix = "give a work directory of `deeplab train`"
        raise ConfigError(args.run, "holds no run (config.json is missing)", fix)
    config = load_recipe(args.run, overrides)
    from deeplab_jax.account import reproduce

    compared, changed = reproduce.repeat(as_place(args.run), config, int(args.steps))
    print("\n".join(reproduce.render(compared, changed)), flush=True)
    if len(compared) < int(args.steps):
        print(f"the log holds the losses of the first {len(compared)} steps alone")
    first = next((pair for pair in compared if pair.is_judged and not pair.is_equal), None)
    if first is not None:
        why = "; ".join(changed) or "versions, devices and names of samples are the run's"
        fix = "repeat it with what the run's env.json names, on unchanged data"
        if not changed:
            again = f"deeplab reproduce {shlex.quote(args.run)}"
            fix = f"compare the content of the data with the run's; then repeat it: {again}"
        raise NumericError(args.run, f"{first}, and this is the first ({why})", fix)


if __name__ == "__main__":
    cli.run(main)
