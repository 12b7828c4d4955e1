"""Command: segments images with a checkpoint.

    python -m deeplab_jax.predict --checkpoint runs/camvid_r50_os16 street.jpg --output out

Writes, for each image at its own size, NAME.png (class indices with a palette) and
NAME_overlay.jpg (the palette over the image).
"""

from pathlib import Path

from deeplab_jax import cli
from deeplab_jax.errors import DataError, ResourceError

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
_EXAMPLES = """\
  deeplab predict --checkpoint runs/camvid_r50_os16 street.jpg --output out
  deeplab predict --checkpoint runs/camvid_r50_os16 photos/ --output out --step best"""


def main(argv: list[str]) -> None:
    """Parses arguments and writes the predictions.

    Raises:
      DeepLabError: see `deeplab_jax.errors`; `cli.run` prints it.
    """
    parser = cli.Parser("predict", _EXAMPLES)
    parser.add_argument("--checkpoint", metavar="DIR", required=True, help="a run's directory")
    parser.add_argument("--step", default="latest", help="latest, best or a number")
    parser.add_argument("--output", metavar="DIR", required=True, help="where results go")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files or folders")
    parser.add_argument("--config.x", metavar="VALUE", help="any field of the checkpoint's recipe")
    args, overrides = parser.parse(argv)
    images = find_images(args.images)
    check_output(images, args.output)
    from deeplab_jax.data.images import read_size

    for image in images:
        read_size(image)  # what is no image, or a bomb, shows before JAX is loaded
    from deeplab_jax.api import load

    model = load(args.checkpoint, args.step, overrides)
    for number, image in enumerate(images, 1):
        files = model(image).save(args.output)
        print(f"[{number}/{len(images)}] {image} -> {', '.join(map(str, files))}", flush=True)


def find_images(paths: list[str]) -> list[Path]:
    """Returns the image files among `paths`, those of a folder sorted by name.

    Raises:
      DataError: a path does not exist, there is no image, or two would get the same output name.
    """
    images: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            images += sorted(p for p in path.iterdir() if _is_image(p))
        elif path.exists():
            images.append(path)
        else:
            raise DataError(str(path), "there is no such file", "name image files or folders")
    if not images:
        accepted = ", ".join(_SUFFIXES)
        raise DataError(", ".join(paths), f"no images here ({accepted})", "name other folders")
    stems: dict[str, Path] = {}
    for image in images:
        other = stems.setdefault(image.stem, image)
        if other != image:
            what = f"would overwrite the result of {other}"
            raise DataError(str(image), what, "predict them into different directories")
    return images


def _is_image(path: Path) -> bool:
    # Hidden ones, such as "._x.jpg" of macOS, are no pictures.
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")


def check_output(images: list[Path], output: str) -> None:
    """Refuses to write results over one of the images, or into a file.

    Raises:
      DataError: a result would have the path of an image.
      ResourceError: `output` is a file.
    """
    if Path(output).exists() and not Path(output).is_dir():
        raise ResourceError(output, "is a file, not a folder", "choose another --output")
    inputs = {image.resolve() for image in images}
    for image in images:
        for name in (f"{image.stem}.png", f"{image.stem}_overlay.jpg"):
            path = Path(output) / name
            if path.resolve() in inputs:
                what = f"would be overwritten by the result of {image}"
                raise DataError(str(path), what, "choose another --output")


if __name__ == "__main__":
    cli.run(main)
