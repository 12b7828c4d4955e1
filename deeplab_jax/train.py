"""Command: trains a recipe, or continues an interrupted run.

    python -m deeplab_jax.train --config configs/ade20k_r50_os16.py --config.init.backbone=DIR

The loop itself is `deeplab_jax.trainer.train`.
"""

from deeplab_jax import cli, distributed

_EXAMPLES = """\
  deeplab train --config configs/camvid_r50_os16.py --config.data.root=camvid
  deeplab train --config configs/ade20k_r50_os16.py --config.init.backbone=DIR --workdir runs/ade
  deeplab train --config configs/voc_r50_os16.py --config.init.backbone=none --config.seed=1
The same command again continues where the run stopped."""


def main(argv: list[str]) -> None:
    """Parses arguments and trains.

    Raises:
      DeepLabError: see `deeplab_jax.errors`; `cli.run` prints it.
    """
    parser = cli.Parser("train", _EXAMPLES)
    parser.add_argument("--config", metavar="FILE", required=True, help="recipe, see configs/")
    parser.add_argument("--workdir", metavar="DIR", help="default: runs/<name of the recipe>")
    parser.add_argument(
        "--config.x", metavar="VALUE", help="any field, such as --config.train.lr=0.02"
    )
    distributed.add_arguments(parser)
    args, overrides = parser.parse(argv)
    from deeplab_jax.recipe import load_recipe

    config = load_recipe(args.config, overrides)
    workdir = args.workdir or f"runs/{config.name}"
    distributed.start(args.coordinator, args.num_processes, args.process_id)
    from deeplab_jax import compile_cache
    from deeplab_jax.trainer import train

    compile_cache.enable()
    train(config, workdir)


if __name__ == "__main__":
    cli.run(main)
