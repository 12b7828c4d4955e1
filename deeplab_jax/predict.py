"""Command: segments images with a checkpoint.

    python -m deeplab_jax.predict --checkpoint runs/camvid_r50_os16 street.jpg --output out

Writes, for each image at its own size and upright, a file for each --format and NAME.json; see
`deeplab_jax.outputs.Prediction.save`. An image in a folder below the one named gets its results in
the same folder below --output.
"""

import os
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from deeplab_jax import cli
from deeplab_jax.errors import DataError, ResourceError
from deeplab_jax.progress import counting

if TYPE_CHECKING:
    from deeplab_jax.api import Segmenter

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
_EXAMPLES = """\
  deeplab predict --checkpoint runs/camvid_r50_os16 street.jpg --output out
  deeplab predict --checkpoint runs/camvid_r50_os16 photos/ --output out --step best
  deeplab predict --checkpoint runs/cityscapes leftImg8bit/test --output out --format cityscapes"""
_WRITERS = 2  # threads; as many more predictions wait for them


def main(argv: list[str]) -> None:
    """Parses arguments and writes the predictions.

    Raises:
      DeepLabError: see `deeplab_jax.errors`; `cli.run` prints it.
      SystemExit: images could not be used; they are listed, and the others' results written.
    """
    parser = cli.Parser("predict", _EXAMPLES)
    parser.add_argument("--checkpoint", metavar="DIR", required=True, help="a run's directory")
    parser.add_argument("--step", default="latest", help="latest, best or a number")
    parser.add_argument("--output", metavar="DIR", required=True, help="where results go")
    parser.add_argument(
        "--format",
        metavar="LIST",
        default="palette,overlay",
        help="some of palette,overlay,probabilities,cityscapes,ade; default: palette,overlay",
    )
    parser.add_argument("--force", action="store_true", help="replace results that exist")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files or folders")
    parser.add_argument("--config.x", metavar="VALUE", help="any field of the checkpoint's recipe")
    args, overrides = parser.parse(argv)
    from deeplab_jax import outputs

    formats = outputs.check_formats(args.format.split(","))
    images = find_images(args.images, args.output)
    check_output(images, args.output, formats, args.force)
    broken = check_headers(images)  # what is no image, or a bomb, shows before JAX is loaded
    usable = {image: name for image, name in images.items() if image not in broken}
    if usable:
        from deeplab_jax.api import load

        model = load(args.checkpoint, args.step, overrides)
        outputs.check_classes(formats, model.class_names)
        start = time.perf_counter()
        broken |= write_all(model, usable, args.output, formats, args.force)
        speed = len(usable) / (time.perf_counter() - start)
        done = len(images) - len(broken)
        print(f"{done} of {len(images)} images -> {args.output}  {speed:.2f} images/s", flush=True)
    for image in images:
        if image in broken:
            cli.render(broken[image])
    if broken:
        raise SystemExit(DataError.exit_code)


def find_images(paths: Sequence[str], output: str = "") -> dict[Path, str]:
    """Returns the image files among and below `paths`, each with the name of its results.

    Those of a folder come sorted, a folder's own before those of folders in it, and are called by
    their path in it. Hidden files and folders are passed over, links to folders not followed.

    Args:
      paths: files and folders.
      output: a folder to pass over where it lies in one of the others.

    Raises:
      DataError: a path does not exist, or there is no image.
    """
    images: dict[Path, str] = {}
    for path in map(Path, paths):
        if path.is_dir():
            images |= {
                image: str(image.relative_to(path).with_suffix(""))
                for image in _walk(path, Path(output).resolve())
            }
        elif os.path.lexists(path):
            images[path] = path.stem
        else:
            raise DataError(str(path), "there is no such file", "name image files or folders")
    if not images:
        accepted = ", ".join(_SUFFIXES)
        raise DataError(", ".join(paths), f"no images here ({accepted})", "name other folders")
    return images


def _walk(top: Path, skipped: Path) -> list[Path]:
    def tell(error: OSError) -> None:
        raise error

    images = []
    for root, folders, files in os.walk(top, onerror=tell):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and Path(root, name).resolve() != skipped
        )
        # Hidden ones, such as "._x.jpg" of macOS, are no pictures.
        images += [
            Path(root, name)
            for name in sorted(files)
            if name.lower().endswith(_SUFFIXES) and not name.startswith(".")
        ]
    return images


def check_output(images: dict[Path, str], output: str, formats: Sequence[str], force: bool) -> None:
    """Refuses to write two results to one file, results over images, or into a file.

    Raises:
      DataError: two results, or a result and an image, would have one path.
      ResourceError: `output` is a file.
      ConfigError: results exist, and `force` does not allow to replace them.
    """
    from deeplab_jax.outputs import check_free, output_paths

    if os.path.lexists(output) and not Path(output).is_dir():
        raise ResourceError(output, "is a file, not a folder", "choose another --output")
    inputs = {image.resolve() for image in images}
    results: dict[Path, Path] = {}
    for image, name in images.items():
        for path in output_paths(output, name, formats):
            other = results.setdefault(path, image)
            if other != image:
                fix = "predict them into different directories, or name the folder above both"
                raise DataError(str(image), f"would overwrite the result of {other}", fix)
            if path.resolve() in inputs:
                what = f"would be overwritten by the result of {image}"
                raise DataError(str(path), what, "choose another --output")
    if not force:
        check_free(results)


def check_headers(images: Iterable[Path]) -> dict[Path, DataError]:
    """Returns what is wrong with files whose beginning tells that they cannot be used."""
    from deeplab_jax.data.images import read_size

    broken = {}
    for image in images:
        try:
            read_size(image)
        except DataError as error:
            broken[image] = error
    return broken


def write_all(
    model: "Segmenter", images: dict[Path, str], output: str, formats: Sequence[str], force: bool
) -> dict[Path, DataError]:
    """Segments images in order while threads write results; shows progress.

    Args:
      model: the network.
      images: files, with the names of their results.
      output: folder of the results.
      formats: of the results.
      force: replace results that exist.

    Returns:
      The error of each image that could not be used.
    """
    broken: dict[Path, DataError] = {}
    pending: deque = deque()
    with counting(len(images), "images") as count, ThreadPoolExecutor(_WRITERS) as pool:

        def finish() -> None:
            image, future = pending.popleft()
            try:
                future.result()
            except DataError as error:
                broken[image] = error
            count()

        try:
            results = model.segment(list(images))
            for (image, name), result in zip(images.items(), results, strict=True):
                if isinstance(result, DataError):
                    broken[image] = result
                    count()
                    continue
                save = replace(result, name=name).save
                pending.append((image, pool.submit(save, output, formats, force)))
                if len(pending) > 2 * _WRITERS:
                    finish()
            while pending:
                finish()
        finally:  # files that are being written are completed, others not begun
            pool.shutdown(cancel_futures=True)
    return broken


if __name__ == "__main__":
    cli.run(main)
