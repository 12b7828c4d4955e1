"""Official archives, unpacked into the layouts that recipes read.

Nothing is downloaded: the archives, or the folders they unpack to, lie in one folder. A data set
appears when it is complete and its images are counted. What is there already is checked and left
alone, so the same command can be repeated.
"""

import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.io import loadmat

from deeplab_jax.config import LABEL_IDS, PUBLISHED_IMAGES, TRAIN_IDS, Config
from deeplab_jax.config.recipe import load_recipe
from deeplab_jax.data.classes import colormap
from deeplab_jax.data.dataset import Dataset
from deeplab_jax.data.images import read_label, read_size, write_png_indices
from deeplab_jax.data.open import open_dataset
from deeplab_jax.data.writers.archives import unpack
from deeplab_jax.data.writers.staging import staged
from deeplab_jax.errors import DataError, shorten
from deeplab_jax.utils.progress import counting


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
    lists = voc / "ImageSets" / "Segmentation"
    names = _read_list(lists / "train.txt") | _read_list(sbd / "train.txt")
    names = (names | _read_list(sbd / "val.txt")) - _read_list(lists / "val.txt")
    masks = voc / "SegmentationClass"
    needed = sorted(name for name in names if not (masks / f"{name}.png").exists())
    missing = [name for name in needed if not (sbd / "cls" / f"{name}.mat").is_file()]
    if missing:
        what = f"{len(missing)} masks of its lists are missing ({shorten(missing)})"
        raise DataError(str(sbd / "cls"), what, "use the official benchmark.tgz")
    with counting(len(needed), "SBD masks to PNG", sys.stderr) as count:
        for name in needed:
            label = read_sbd_mask(sbd / "cls" / f"{name}.mat")
            write_png_indices(masks / f"{name}.png", label, colormap(256))
            count()
    (lists / "trainaug.txt").write_text("".join(f"{name}\n" for name in sorted(names)))


def read_sbd_mask(path: Path) -> np.ndarray:
    """Returns the classes, uint8 (H, W), of one of SBD's .mat files.

    Raises:
      DataError: it is no MATLAB file of that structure, or has values that are no classes of VOC.
    """
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
    wanted = r"((?:images|annotations)/(?:training|validation)/[^/.]+\.(?:jpg|png))"
    unpack(found[0], root / OFFICIAL["ade20k"].part, _keep(wanted))


def unpack_cityscapes(found: list[Path], root: Path) -> None:
    """Unpacks images and masks of train and val; the test images have no masks."""
    top = root / OFFICIAL["cityscapes"].part
    city = r"(?:train|val)/[^/.]+/[^/.]+"
    unpack(found[0], top, _keep(rf"(leftImg8bit/{city}_leftImg8bit\.png)"))
    unpack(found[1], top, _keep(rf"(gtFine/{city}_gtFine_label(?:Train)?Ids\.png)"))


OFFICIAL = {
    "voc": Official(
        "VOCdevkit/VOC2012",
        (("VOCtrainval_11-May-2012.tar", "VOCdevkit"), ("benchmark.tgz", "benchmark_RELEASE")),
        ("trainaug", "val"),
        PUBLISHED_IMAGES["voc"],
        "voc_r50_os16",
        unpack_voc,
    ),
    "ade20k": Official(
        "ADE20k/ADEChallengeData2016",
        (("ADEChallengeData2016.zip", "ADEChallengeData2016"),),
        ("train", "val"),
        PUBLISHED_IMAGES["ade20k"],
        "ade20k_r50_os16",
        unpack_ade20k,
    ),
    "cityscapes": Official(
        "CityScapes",
        (
            ("leftImg8bit_trainvaltest.zip", "leftImg8bit"),
            ("gtFine_trainvaltest.zip", "gtFine"),
        ),
        ("train", "val"),
        PUBLISHED_IMAGES["cityscapes"],
        "cityscapes_r50_os16",
        unpack_cityscapes,
    ),
}


def prepare(name: str, archives: Path, root: Path, counts: tuple[int, int] | None = None) -> Path:
    """Makes a data set complete under `root`, or checks the one that is there.

    Args:
      name: a key of OFFICIAL.
      archives: the folder of the downloads.
      root: `config.data.root` of recipes that read the data set.
      counts: images for training and validation; the published numbers by default.

    Returns:
      The folder of the data set.

    Raises:
      DataError: archives are missing or damaged, or hold another number of images.
      ResourceError: the disk is too small.
    """
    official = OFFICIAL[name]
    counts = counts or official.counts
    target = root / official.part
    if target.exists():
        try:
            check(name, root, counts)
        except DataError as error:
            fix = f"{error.fix}; or move {target} away (what it was unpacked from will do)"
            raise DataError(error.where, error.what, fix) from error
        print(f"{name}: complete; left as it is")
        return target
    found = _locate(official, archives)
    with staged(root, official.part) as partial:
        print(f"{name}: unpacking {', '.join(map(str, found))}", flush=True)
        try:
            official.unpack(found, partial)
            check(name, partial, counts)
        except DataError as error:  # of files that are gone when this is read
            where, what = (text.replace(f"{partial}/", "") for text in (error.where, error.what))
            raise DataError(where, what, error.fix) from error
    print(f"{name}: complete")
    return target


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
    config = read_config(name, root)
    for split, count in zip(OFFICIAL[name].splits, counts, strict=True):
        dataset = open_dataset(config.data, config.model.num_classes, split)
        if len(dataset) != count:
            what = f"split {split!r} has {len(dataset)} images, not {count}"
            fix = "use the official archives, or give --expect-counts"
            raise DataError(str(root / OFFICIAL[name].part), what, fix)
        check_headers(dataset)
        if name == "cityscapes":
            check_cityscapes(dataset)


def check_headers(dataset: Dataset) -> None:
    """Checks that all files begin as images do, and that a mask has its image's size.

    Raises:
      DataError: one is no image, or the sizes differ.
    """

    def check_sample(index: int) -> None:
        image, mask = dataset.source.names(index)
        sizes = read_size(image), read_size(mask)
        if sizes[0] != sizes[1]:
            (height, width), (image_height, image_width) = sizes[1], sizes[0]
            what = f"is {height} x {width} pixels, but its image {image_height} x {image_width}"
            raise DataError(mask, what, "use the official archives")

    _check_all(dataset, check_sample, "headers")


def check_cityscapes(dataset: Dataset) -> None:
    """Checks every mask's values, and that labelIds say what labelTrainIds beside them say.

    Raises:
      DataError: a mask has values of the other kind, or the two kinds differ.
    """
    _check_all(dataset, lambda index: _check_mask(dataset, index), "masks")


def _check_all(dataset: Dataset, check_sample: Callable[[int], None], what: str) -> None:
    """Calls a check for each sample, in threads; raises the first error."""
    text = f"{what} of {dataset.split} checked"
    with ThreadPoolExecutor() as pool, counting(len(dataset), text, sys.stderr) as count:
        for _ in pool.map(check_sample, range(len(dataset))):
            count()


def _check_mask(dataset: Dataset, index: int) -> None:
    path = Path(dataset.source.names(index)[1])
    classes = dataset.to_classes(index, read_label(path))
    other = path.with_name(path.name.replace(LABEL_IDS, TRAIN_IDS))
    if other == path or not other.is_file():
        return
    train_ids = read_label(other)
    if train_ids.shape != classes.shape or (train_ids != classes).any():
        what = f"contradicts {path.name}"
        raise DataError(str(other), what, "use the official archives, or remove the wrong kind")


def read_config(name: str, root: Path) -> Config:
    """Returns a configuration that reads the data set under `root`."""
    return load_recipe(OFFICIAL[name].recipe, [f"--config.data.root={root}"])


def _keep(pattern: str) -> Callable[[str], str]:
    """Returns a function from names in an archive to the pattern's group, or "" if it is none."""
    wanted = re.compile(rf"(?:.*/)?{pattern}")

    def rename(name: str) -> str:
        match = wanted.fullmatch(name)
        return match[1] if match else ""

    return rename
