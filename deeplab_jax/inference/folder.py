"""Predictions for files and folders of images.

Importing this loads no JAX: paths, formats and files are checked before.
"""

import os
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplab_jax.data.images import TooLargeError, read_size
from deeplab_jax.data.pictures.windows import WindowedImage
from deeplab_jax.errors import ConfigError, DataError, check_folder
from deeplab_jax.inference import prediction
from deeplab_jax.utils import steps
from deeplab_jax.utils.atomic import remove_stale
from deeplab_jax.utils.places import is_taken
from deeplab_jax.utils.progress import counting

if TYPE_CHECKING:
    from deeplab_jax.inference.segmenter import Segmenter

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
_WRITERS = 2  # threads; as many predictions wait beside those being written


def predict_files(
    checkpoint: str,
    paths: Sequence[str],
    output: str,
    formats: Sequence[str],
    *,
    step: int | str = "latest",
    overrides: Sequence[str] = (),
    force: bool = False,
    legend: bool = False,
    skip_existing: bool = False,
    weights: str | None = None,
) -> list[DataError]:
    """Segments images and writes the results; shows progress and, at the end, the speed.

    Args:
      checkpoint: work directory of a run, the output of a converter, or an exported folder.
      paths: image files and folders.
      output: folder of the results.
      formats: names of formats, see `prediction.FORMATS`.
      step: a number, "latest" or "best".
      overrides: changes to the checkpoint's configuration.
      force: replace results that exist.
      legend: add a legend to each overlay.
      skip_existing: leave out images whose results are complete, and replace incomplete ones.
      weights: "ema" or "raw" of a run that averages its weights; its average by default.

    Returns:
      The errors of images that could not be used, in the order of images.

    Raises:
      CheckpointError: there is no such checkpoint or step, or it does not fit.
      ConfigError: a format or override cannot be used, results exist, those to skip are of another
        image, checkpoint, step or protocol, or `legend` is set and `formats` has no overlay.
      DataError: there are no images, or two results would have one path.
      ResourceError: `output` is a file.
    """
    formats = prediction.check_formats(formats, legend)
    images = find_images(paths, output)
    check_output(images, output, formats, force or skip_existing)
    results = [prediction.output_paths(output, name, formats) for name in images.values()]
    for folder in {path.parent for paths in results for path in paths}:
        remove_stale(folder)
    there = _there(dict(zip(images, results, strict=True))) if skip_existing else {}
    images = {image: name for image, name in images.items() if image not in there}
    broken = _check_headers(images)
    large = [image for image in broken if isinstance(broken[image], TooLargeError)]
    if large and (len(broken) < len(images) or steps.finished(checkpoint)):
        for image in large:  # the model's protocol may read it by windows
            del broken[image]
    usable = {image: name for image, name in images.items() if image not in broken}
    if usable or there:
        if not steps.is_exported(checkpoint):
            steps.check(checkpoint, step)  # before JAX loads
        from deeplab_jax.inference.loading import load

        model = load(checkpoint, step, overrides, weights)
        prediction.check_classes(formats, model.class_names)
        _check_sources(there, model.source)
    if there:
        print(f"{len(there)} images had their results: --skip-existing", flush=True)
    if usable:
        start = time.perf_counter()
        broken |= _write_all(model, usable, output, formats, force or skip_existing, legend)
        speed = len(usable) / (time.perf_counter() - start)
        done = len(images) - len(broken)
        print(f"{done} of {len(images)} images -> {output}  {speed:.2f} images/s", flush=True)
    return [broken[image] for image in images if image in broken]


def _there(results: Mapping[Path, list[Path]]) -> dict[Path, tuple[Path, dict[str, Any]]]:
    """Returns JSON file and content of the images whose results are complete.

    Raises:
      ConfigError: more results lack their JSON than an end midway can leave, so they are foreign.
    """
    there, partial = {}, []
    for image, paths in results.items():
        if (content := prediction.finished(paths)) is not None:
            there[image] = paths[-1], content
        elif not paths[-1].exists():
            partial += [path for path in paths if is_taken(path)][:1]
    if len(partial) > _WRITERS:
        prediction.check_free(partial)
    return there


def _check_sources(
    there: Mapping[Path, tuple[Path, dict[str, Any]]], source: Mapping[str, str | int]
) -> None:
    """Refuses to leave out results of another image, checkpoint, step or protocol."""
    for image, (path, content) in there.items():
        wanted = {"file": str(image), **source}
        for key, value in wanted.items():
            got = content.get(key)
            is_path = key in ("file", "checkpoint")
            if got != value and not (is_path and _same(str(got), str(value))):
                fix = "choose another --output, or replace all with --force"
                if key in ("step", "weights") and got is not None:
                    fix = f"go on with --{key} {got}, or replace all with --force"
                raise ConfigError(str(path), f"is of {key} {got}, not {value}", fix)


def _same(first: str, second: str) -> bool:
    return os.path.realpath(first) == os.path.realpath(second)


def find_images(paths: Sequence[str], output: str = "") -> dict[Path, str]:
    """Returns the image files among and below `paths`, each with the name of its results.

    Images of a folder come sorted, a folder's own before those of its subfolders, and have their
    path in the folder as name. Hidden files and folders, links to folders and the folder `output`
    are left out.

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
            fix = "name image files or folders"
            if set("*?[") & set(str(path)):
                fix = "a pattern that matches nothing stays as it is; name the folder instead"
            raise DataError(str(path), "there is no such file", fix)
    if not images:
        accepted = ", ".join(_SUFFIXES)
        raise DataError(", ".join(paths), f"no images here ({accepted})", "name other folders")
    return images


def _walk(top: Path, skipped: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise error

    images = []
    for root, folders, files in os.walk(top, onerror=refuse):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and Path(root, name).resolve() != skipped
        )
        # Hidden files, such as "._x.jpg" of macOS, are no pictures.
        images += [
            Path(root, name)
            for name in sorted(files)
            if name.lower().endswith(_SUFFIXES) and not name.startswith(".")
        ]
    return images


def check_output(
    images: Mapping[Path, str], output: str, formats: Sequence[str], force: bool
) -> None:
    """Refuses results that would overwrite each other, images, or without `force` older results.

    Raises:
      DataError: two results, or a result and an image, would have one path.
      ResourceError: `output` is a file.
      ConfigError: results exist, and `force` is not set.
    """
    check_folder(output, "--output")
    inputs = {image.resolve() for image in images}
    results: dict[Path, Path] = {}
    for image, name in images.items():
        for path in prediction.output_paths(output, name, formats):
            other = results.setdefault(path, image)
            if other != image:
                fix = "predict one of them into another --output"
                if image.parent != other.parent:
                    fix += ", or name the folder above both"
                raise DataError(str(image), f"would overwrite the result of {other}", fix)
            if path.resolve() in inputs:
                what = f"would be overwritten by the result of {image}"
                raise DataError(str(path), what, "choose another --output")
    if not force:
        prediction.check_free(results)


def _check_headers(images: Iterable[Path]) -> dict[Path, DataError]:
    """Returns the errors of files whose header shows that they cannot be used."""
    broken = {}
    for image in images:
        try:
            read_size(image)
        except DataError as error:
            broken[image] = error
    return broken


def _write_all(
    model: "Segmenter",
    images: Mapping[Path, str],
    output: str,
    formats: Sequence[str],
    force: bool,
    legend: bool,
) -> dict[Path, DataError]:
    """Segments images in order while threads write results; returns the errors of bad images."""
    broken: dict[Path, DataError] = {}
    pending: deque[tuple[Path, Future[list[Path]]]] = deque()
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
                pending.append((image, pool.submit(save, output, formats, force, legend)))
                is_large = isinstance(result.image, WindowedImage)
                while len(pending) > (0 if is_large else 2 * _WRITERS):
                    finish()
            while pending:
                finish()
        finally:  # completes files being written; does not begin others
            pool.shutdown(cancel_futures=True)
    return broken
