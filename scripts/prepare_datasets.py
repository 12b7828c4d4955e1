"""Puts downloaded data sets into the layouts that recipes read, and writes faster forms of them.

    python scripts/prepare_datasets.py voc --archives DOWNLOADS --output data
    python scripts/prepare_datasets.py ade20k --archives DOWNLOADS --output data --format tfds
    python scripts/prepare_datasets.py cityscapes --archives DOWNLOADS --output data
    python scripts/prepare_datasets.py cache --config configs/cityscapes_r50_os16.py --output cache

Nothing is downloaded: DOWNLOADS holds the official archives, or the folders they unpack to. A data
set appears when it is complete and its images are counted; what is there already is checked and
left alone, so the same command can be repeated.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from deeplab_jax import cli
from deeplab_jax.errors import ConfigError, DataError, shorten

if TYPE_CHECKING:
    import numpy as np

    from deeplab_jax.config import Config
    from deeplab_jax.data import Dataset

_PROGRAM = "python scripts/prepare_datasets.py"


class Official(NamedTuple):
    """How a data set of the table is published.

    Attributes:
      part: where it lies under the data root.
      archives: (file as downloaded, folder it unpacks to).
      splits: for training and validation.
      counts: of images in these.
      recipe: one that reads it.
      unpack: from (archives as found, folder to fill) to files in the layout, under `part`.
    """

    part: str
    archives: tuple[tuple[str, str], ...]
    splits: tuple[str, str]
    counts: tuple[int, int]
    recipe: str
    unpack: Callable[[list[Path], Path], None]


def unpack_voc(found: list[Path], root: Path) -> None:
    """Unpacks VOC 2012 and SBD, and merges their masks and lists."""
    from deeplab_jax.data.writers.archives import unpack

    top = root / OFFICIAL["voc"].part
    files = r"(?:JPEGImages|SegmentationClass)/[^/.]+\.(?:jpg|png)"
    lists = r"ImageSets/Segmentation/(?:train|val)\.txt"
    unpack(found[0], top, _keep(rf"VOC2012/({files}|{lists})"))
    unpack(found[1], root / "sbd", _keep(r"dataset/(cls/[^/.]+\.mat|(?:train|val)\.txt)"))
    merge_sbd(top, root / "sbd")


def merge_sbd(voc: Path, sbd: Path) -> None:
    """Writes trainaug.txt, and index PNGs for those of its ids that VOC has no mask for.

    trainaug is all that VOC's train list and SBD's two lists name, but for VOC's validation images.

    Args:
      voc: the folder VOC2012.
      sbd: a folder with train.txt, val.txt and cls/ID.mat.

    Raises:
      DataError: a list or a mask is missing or unreadable.
    """
    from deeplab_jax.data.classes import colormap
    from deeplab_jax.data.images import write_png_indices

    lists = voc / "ImageSets" / "Segmentation"
    names = _read_list(lists / "train.txt") | _read_list(sbd / "train.txt")
    names = (names | _read_list(sbd / "val.txt")) - _read_list(lists / "val.txt")
    masks = voc / "SegmentationClass"
    needed = sorted(name for name in names if not (masks / f"{name}.png").exists())
    missing = [name for name in needed if not (sbd / "cls" / f"{name}.mat").is_file()]
    if missing:
        what = f"{len(missing)} masks of its lists are missing ({shorten(missing)})"
        raise DataError(str(sbd / "cls"), what, "use the official benchmark.tgz")
    for name in _progress(needed, "SBD masks to PNG"):
        label = read_sbd_mask(sbd / "cls" / f"{name}.mat")
        write_png_indices(masks / f"{name}.png", label, colormap(256))
    (lists / "trainaug.txt").write_text("".join(f"{name}\n" for name in sorted(names)))


def read_sbd_mask(path: Path) -> "np.ndarray":
    """Returns the classes, uint8 (H, W), of one of SBD's .mat files.

    Raises:
      DataError: it is no MATLAB file of that structure, or has values that are no classes of VOC.
    """
    import numpy as np
    from scipy.io import loadmat

    try:
        label = loadmat(path, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
    except Exception as error:  # scipy's reader raises what the bytes lead it to
        what = f"has no GTcls.Segmentation ({error!r})"
        raise DataError(str(path), what, "use the official benchmark.tgz") from error
    if label.dtype != np.uint8 or label.ndim != 2 or ((label > 20) & (label != 255)).any():
        what = f"is {label.dtype} {label.shape} with values up to {label.max()}, not VOC's classes"
        raise DataError(str(path), what, "use the official benchmark.tgz")
    return label


def _read_list(path: Path) -> set[str]:
    if not path.is_file():
        raise DataError(str(path), "is missing", "use the official archives")
    return set(path.read_text("utf-8").split())


def unpack_ade20k(found: list[Path], root: Path) -> None:
    """Unpacks the scene-parsing archive."""
    from deeplab_jax.data.writers.archives import unpack

    wanted = r"((?:images|annotations)/(?:training|validation)/[^/.]+\.(?:jpg|png))"
    unpack(found[0], root / OFFICIAL["ade20k"].part, _keep(wanted))


def unpack_cityscapes(found: list[Path], root: Path) -> None:
    """Unpacks images and masks of train and val; the test images have no masks."""
    from deeplab_jax.data.writers.archives import unpack

    top = root / OFFICIAL["cityscapes"].part
    city = r"(?:train|val)/[^/.]+/[^/.]+"
    unpack(found[0], top, _keep(rf"(leftImg8bit/{city}_leftImg8bit\.png)"))
    unpack(found[1], top, _keep(rf"(gtFine/{city}_gtFine_label(?:Train)?Ids\.png)"))


OFFICIAL = {
    "voc": Official(
        "VOCdevkit/VOC2012",
        (("VOCtrainval_11-May-2012.tar", "VOCdevkit"), ("benchmark.tgz", "benchmark_RELEASE")),
        ("trainaug", "val"),
        (10_582, 1_449),
        "configs/voc_r50_os16.py",
        unpack_voc,
    ),
    "ade20k": Official(
        "ADE20k/ADEChallengeData2016",
        (("ADEChallengeData2016.zip", "ADEChallengeData2016"),),
        ("train", "val"),
        (20_210, 2_000),
        "configs/ade20k_r50_os16.py",
        unpack_ade20k,
    ),
    "cityscapes": Official(
        "CityScapes",
        (
            ("leftImg8bit_trainvaltest.zip", "leftImg8bit"),
            ("gtFine_trainvaltest.zip", "gtFine"),
        ),
        ("train", "val"),
        (2_975, 500),
        "configs/cityscapes_r50_os16.py",
        unpack_cityscapes,
    ),
}


def main(argv: list[str]) -> None:
    """Parses arguments and prepares one data set, or a cache.

    Raises:
      DeepLabError: something cannot be used; `cli.run` prints it.
    """
    commands = (*OFFICIAL, "cache")
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: {_PROGRAM} {{{','.join(commands)}}} ...\n\n{__doc__}")
    elif argv[0] in OFFICIAL:
        _official_main(argv[0], argv[1:])
    elif argv[0] == "cache":
        _cache_main(argv[1:])
    else:
        fix = f"use one of {', '.join(commands)}"
        raise ConfigError(argv[0], "is no data set that can be prepared", fix)


def _parser(command: str, description: str, example: str) -> cli.Parser:
    parser = cli.Parser("train", f"  {_PROGRAM} {command} {example}")
    parser.prog = f"{_PROGRAM} {command}"  # no verb of the package: it reads what others publish
    parser.description = description
    return parser


def _official_main(name: str, argv: list[str]) -> None:
    official = OFFICIAL[name]
    archives = ", ".join(archive for archive, _ in official.archives)
    parser = _parser(name, f"prepare {name} from {archives}", "--archives DOWNLOADS --output data")
    parser.add_argument("--archives", metavar="DIR", required=True, help="folder of the downloads")
    parser.add_argument("--output", metavar="ROOT", required=True, help="config.data.root")
    parser.add_argument(
        "--format",
        choices=("folder", "tfds"),
        default="folder",
        help="tfds: also as ArrayRecord, in ROOT/tfds, for config.data.source=tfds",
    )
    parser.add_argument(
        "--expect-counts",
        metavar="N,M",
        type=_counts,
        default=official.counts,
        help="images for training and validation, if not the published %(default)s",
    )
    args, overrides = parser.parse(argv)
    if overrides:
        raise ConfigError(overrides[0], "means nothing here", "drop it; the layout is official")
    prepare(name, Path(args.archives), Path(args.output), args.expect_counts)
    if args.format == "tfds":
        from deeplab_jax.data.writers.tfds import write_tfds

        config = _config(name, Path(args.output))
        folder = write_tfds(config.data, config.model.num_classes)
        print(f"{name}: complete at {folder}; train with --config.data.source=tfds")


def _counts(text: str) -> tuple[int, int]:
    try:
        train, val = map(int, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not as 12,4") from None
    return train, val


def prepare(name: str, archives: Path, root: Path, counts: tuple[int, int]) -> None:
    """Makes a data set complete under `root`, or checks the one that is there.

    Raises:
      DataError: archives are missing or damaged, or hold another number of images.
      ResourceError: the disk is too small.
    """
    from deeplab_jax.data.writers.staging import staged

    official = OFFICIAL[name]
    target = root / official.part
    if target.exists():
        try:
            check(name, root, counts)
        except DataError as error:
            fix = f"{error.fix}; or move {target} away (what it was unpacked from will do)"
            raise DataError(error.where, error.what, fix) from error
        print(f"{name}: complete at {target}; left as it is; {_advice(official, root)}")
        return
    found = _locate(official, archives)
    with staged(root, official.part) as partial:
        print(f"{name}: unpacking {', '.join(map(str, found))}", flush=True)
        try:
            official.unpack(found, partial)
            check(name, partial, counts)
        except DataError as error:  # of files that are gone when this is read
            where, what = (text.replace(f"{partial}/", "") for text in (error.where, error.what))
            raise DataError(where, what, error.fix) from error
    print(f"{name}: complete at {target}; {_advice(official, root)}")


def _advice(official: Official, root: Path) -> str:
    command = f"deeplab doctor --config {official.recipe} --config.data.root={root}"
    return f"run {command} to check every file"


def _locate(official: Official, archives: Path) -> list[Path]:
    """Returns each archive, or the folder it was unpacked to."""
    choices = [[archives / name for name in names] for names in official.archives]
    found = [next((path for path in paths if path.exists()), None) for paths in choices]
    if None in found:
        missing = [paths[0].name for paths, path in zip(choices, found, strict=True) if not path]
        fix = "download there by hand, after registering where the publisher asks for it"
        raise DataError(str(archives), f"has no {shorten(missing)}", fix)
    return [path for path in found if path]


def check(name: str, root: Path, counts: tuple[int, int]) -> None:
    """Checks that every image has its mask, their number and sizes, and Cityscapes' masks.

    Of other masks and of images only the headers are read.

    Raises:
      DataError: something is missing, or contradicts something else.
    """
    from deeplab_jax.data import open_dataset

    config = _config(name, root)
    for split, count in zip(OFFICIAL[name].splits, counts, strict=True):
        dataset = open_dataset(config.data, config.model.num_classes, split)
        if len(dataset) != count:
            what = f"split {split!r} has {len(dataset)} images, not {count}"
            fix = "use the official archives, or give --expect-counts"
            raise DataError(str(root / OFFICIAL[name].part), what, fix)
        check_headers(dataset)
        if name == "cityscapes":
            check_cityscapes(dataset)


def check_headers(dataset: "Dataset") -> None:
    """Checks that all files begin as images do, and that a mask has its image's size.

    Raises:
      DataError: one is no image, or the sizes differ.
    """
    from deeplab_jax.data.images import read_size

    def check_sample(index: int) -> None:
        image, mask = dataset.source.names(index)
        sizes = read_size(image), read_size(mask)
        if sizes[0] != sizes[1]:
            (height, width), (image_height, image_width) = sizes[1], sizes[0]
            what = f"is {height} x {width} pixels, but its image {image_height} x {image_width}"
            raise DataError(mask, what, "use the official archives")

    with ThreadPoolExecutor() as pool:
        checks = pool.map(check_sample, range(len(dataset)))
        for _ in _progress(checks, f"headers of {dataset.split}", len(dataset)):
            pass


def check_cityscapes(dataset: "Dataset") -> None:
    """Checks every mask's values, and that labelIds say what labelTrainIds beside them say.

    Raises:
      DataError: a mask has values of the other kind, or the two kinds differ.
    """
    indices = range(len(dataset))
    with ThreadPoolExecutor() as pool:
        checks = pool.map(lambda index: _check_mask(dataset, index), indices)
        for _ in _progress(checks, f"masks of {dataset.split}", len(dataset)):
            pass


def _check_mask(dataset: "Dataset", index: int) -> None:
    from deeplab_jax.config import LABEL_IDS, TRAIN_IDS
    from deeplab_jax.data.images import read_label

    path = Path(dataset.source.names(index)[1])
    classes = dataset.to_classes(index, read_label(path))
    other = path.with_name(path.name.replace(LABEL_IDS, TRAIN_IDS))
    if other == path or not other.is_file():
        return
    train_ids = read_label(other)
    if train_ids.shape != classes.shape or (train_ids != classes).any():
        what = f"contradicts {path.name}"
        raise DataError(str(other), what, "use the official archives, or remove the wrong kind")


def _config(name: str, root: Path) -> "Config":
    from deeplab_jax.config import get_config
    from deeplab_jax.config.recipe import apply_overrides

    return apply_overrides(get_config(name), [f"--config.data.root={root}"])


def _cache_main(argv: list[str]) -> None:
    parser = _parser("cache", "decode a recipe's data once", "--config RECIPE --output DIR")
    parser.add_argument("--config", metavar="RECIPE", required=True, help="a file in configs/")
    parser.add_argument("--output", metavar="DIR", required=True, help="where the cache appears")
    parser.add_argument("--verify", action="store_true", help="check an existing cache's bytes")
    parser.add_argument("--config.x", metavar="VALUE", help="any field, such as config.data.root")
    args, overrides = parser.parse(argv)
    from deeplab_jax.config.recipe import load_recipe
    from deeplab_jax.data.writers.cache import write_cache

    config = load_recipe(args.config, overrides)
    write_cache(config.data, config.model.num_classes, Path(args.output), args.verify)
    print(
        f"complete at {args.output}; train with --config.data.source=cache "
        f"--config.data.root={args.output}"
    )


def _keep(pattern: str) -> Callable[[str], str]:
    """Returns a function from names in an archive to the pattern's group, or "" if it is none."""
    wanted = re.compile(rf"(?:.*/)?{pattern}")

    def rename(name: str) -> str:
        match = wanted.fullmatch(name)
        return match[1] if match else ""

    return rename


def _progress(items: Iterable, what: str, count: int | None = None) -> Iterator:
    """Yields the items and counts them on a terminal."""
    count = count if count is not None else len(items)  # type: ignore[arg-type]
    for number, item in enumerate(items, 1):
        yield item
        if sys.stderr.isatty() and (number % 50 == 0 or number == count):
            end = "\n" if number == count else "\r"
            print(f"{number}/{count} {what}", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(main)
