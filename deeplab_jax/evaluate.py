"""Command: measures a checkpoint on its validation set.

    deeplab evaluate --checkpoint runs/camvid_r50_os16

Writes `evaluation.json` and `report.html`.
"""

from collections.abc import Sequence

from deeplab_jax import cli
from deeplab_jax.distributed import cluster
from deeplab_jax.errors import DataError
from deeplab_jax.utils import steps
from deeplab_jax.utils.places import as_place, check_place

_EXAMPLES = """\
  deeplab evaluate --checkpoint runs/camvid_r50_os16
  deeplab evaluate --checkpoint runs/camvid_r50_os16 --step best
  deeplab evaluate --checkpoint runs/camvid_r50_os16 --config.eval.resize_base=240,180"""


def main(argv: list[str]) -> None:
    """Parses arguments, evaluates, prints the table, writes the numbers and the report.

    Raises:
      DeepLabError: see `deeplab_jax.errors`; `cli.run` prints it.
    """
    parser = cli.Parser("evaluate", _EXAMPLES)
    parser.add_argument(
        "--checkpoint", metavar="DIR", required=True, help="a run's directory, or converted weights"
    )
    parser.add_argument("--step", default="latest", help="latest, best or a number")
    parser.add_argument("--json", metavar="FILE", help="where the numbers go, and FILE_report.html")
    cli.add_weights(parser)
    parser.add_argument("--config.x", metavar="VALUE", help="any field of the checkpoint's recipe")
    cluster.add_arguments(parser)
    args, overrides = parser.parse(argv)
    json_file = as_place(args.json) if args.json else None
    if cluster.is_alone(args.coordinator, args.num_processes, args.process_id):
        if json_file:
            check_place(json_file, "--json")
        steps.check(args.checkpoint, args.step)  # before JAX loads
    cluster.initialize(args.coordinator, args.num_processes, args.process_id)
    from deeplab_jax.distributed import hosts
    from deeplab_jax.evaluation.run import evaluate_checkpoint
    from deeplab_jax.report.write import write_evaluated

    try:
        result = evaluate_checkpoint(args.checkpoint, args.step, overrides, json_file, args.weights)
    except DataError as error:
        raise _with_doctor(error, args.checkpoint, args.step, overrides) from error
    page = write_evaluated(*result, json_file)
    if hosts.is_primary():
        how = cli.same_weights(args.step, args.weights)
        how += [text for text in overrides if text.startswith("--config.eval.")]
        cli.finish(
            page, "predict", "--checkpoint", args.checkpoint, *how, "IMAGES", "--output", "out"
        )


def _with_doctor(error: DataError, path: str, step: str, overrides: Sequence[str]) -> DataError:
    """Returns the error with the doctor's command for the recipe of the checkpoint, if known."""
    from deeplab_jax.checkpoint import read_info
    from deeplab_jax.config import flatten
    from deeplab_jax.config.checks import as_text
    from deeplab_jax.config.recipe import apply_overrides, is_run, load_recipe, recipe_files

    own = read_info(path, step).config
    if own is None:
        return error
    config = apply_overrides(own, overrides)
    if is_run(path):
        return cli.with_doctor(error, config, path, overrides)
    if own.name not in recipe_files():
        return error
    row = flatten(load_recipe(own.name))
    flags = [f"--config.{k}={as_text(v)}" for k, v in flatten(own).items() if v != row[k]]
    return cli.with_doctor(error, config, own.name, [*flags, *overrides])


if __name__ == "__main__":
    cli.run(main)
