"""Predictions for files and folders of images."""

import os
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from deeplab_jax.errors import DataError, ResourceError
from deeplab_jax.utils.progress import counting

if TYPE_CHECKING:
    from deeplab_jax.inference.segmenter import Segmenter

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")


_WRITERS = 2  # threads; as many more predictions wait for them


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
    from deeplab_jax.inference.prediction import check_free, output_paths

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
