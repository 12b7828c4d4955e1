"""Command: segments images with a checkpoint.

    deeplab predict --checkpoint runs/camvid_r50_os16 street.jpg --output out

Writes, for each image at its own size and upright, a file for each --format and NAME.json. An image
in a folder below the one named gets its results in the same folder below --output.
"""

from deeplab_jax import cli
from deeplab_jax.errors import ConfigError, DataError
from deeplab_jax.utils import steps
from deeplab_jax.utils.places import as_place

_EXAMPLES = """\
  deeplab predict --checkpoint runs/camvid_r50_os16 street.jpg --output out
  deeplab predict --checkpoint runs/camvid_r50_os16 photos/ --output out --step best
  deeplab predict --checkpoint runs/cityscapes leftImg8bit/test --output out --format cityscapes"""


def main(argv: list[str]) -> None:
    """Parses arguments and writes the predictions.

    Raises:
      DeepLabError: see `deeplab_jax.errors`; `cli.run` prints it.
      SystemExit: images could not be used; they are listed, and the others' results written.
    """
    parser = cli.Parser("predict", _EXAMPLES)
    text = "a run's directory, converted weights, or a folder of deeplab export"
    parser.add_argument("--checkpoint", metavar="DIR", required=True, help=text)
    parser.add_argument("--step", default="latest", help="latest, best or a number")
    cli.add_weights(parser)
    parser.add_argument("--output", metavar="DIR", required=True, help="where results go")
    parser.add_argument(
        "--format",
        metavar="LIST",
        default="palette,overlay",
        help="some of palette,overlay,probabilities,cityscapes,ade; default: palette,overlay",
    )
    text = "add to each overlay a strip with colour, name and share of the classes in the image"
    parser.add_argument("--legend", action="store_true", help=text)
    parser.add_argument("--force", action="store_true", help="replace results that exist")
    parser.add_argument(
        "--skip-existing",
        action="store_true",
        help="go on after an end midway: leave out images that have all their results, of this"
        " checkpoint and step, and replace incomplete ones",
    )
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files or folders")
    parser.add_argument("--config.x", metavar="VALUE", help="any field of the checkpoint's recipe")
    args, overrides = parser.parse(argv)
    if args.force and args.skip_existing:
        fix = "drop --force to go on, or --skip-existing to begin again"
        raise ConfigError("--force", "replaces what --skip-existing leaves", fix)
    from deeplab_jax.inference.folder import predict_files

    errors = predict_files(
        args.checkpoint,
        args.images,
        args.output,
        args.format.split(","),
        step=args.step,
        overrides=overrides,
        force=args.force,
        legend=args.legend,
        skip_existing=args.skip_existing,
        weights=args.weights,
    )
    for error in errors:
        cli.render(error)
    if errors:
        raise SystemExit(DataError.exit_code)
    how = cli.same_weights(args.step, args.weights)
    is_evaluated = (as_place(args.checkpoint) / "evaluation.json").is_file()
    following: tuple[str, ...] = ("evaluate", "--checkpoint", args.checkpoint, *how)
    if is_evaluated and not how:
        following = ("report", args.checkpoint)
    if steps.is_exported(args.checkpoint):
        following = ("verify", args.checkpoint)
    cli.finish(args.output, *following)


if __name__ == "__main__":
    cli.run(main)
