"""The official data sets, known by their inner folders wherever they lie."""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from deeplab_jax.data.images import read_label
from deeplab_jax.doctor.layouts.tree import Tree
from deeplab_jax.errors import DataError

# Folders above the inner one, which `find_files` looks for under the root.
_TOPS = {"voc": ("VOCdevkit", "VOC2012"), "ade20k": ("ADE20k", "ADEChallengeData2016"),
         "cityscapes": ("CityScapes",)}  # fmt: skip
_CITIES = ("cityscapes",)  # in any case
_VOC_LINES = {"train": 1464, "val": 1449, "trainaug": 10582}
_FRAME = re.compile(r"[^_]+_\d+_\d+_")  # <city>_<sequence>_<frame>_
_LOOKS = 5
_MAX_ID = 33


class Official(NamedTuple):
    """An official data set."""

    name: str
    root: str  # `data.root`
    train_split: str
    folders: tuple[str, ...]  # what it consists of, below the tree's root


def find(tree: Tree) -> tuple[list[Official], list[str]]:
    """Returns the official data sets in a tree, and why others that look so are none."""
    found: list[Official] = []
    reasons: list[str] = []
    for folder in sorted(tree.folders, key=lambda f: (f.count("/"), f)):
        if any(folder == top or folder.startswith(f"{top}/") for o in found for top in o.folders):
            continue
        path = tree.root / folder
        for look in (_ade20k, _cityscapes, _voc):
            result = look(path, folder, tree)
            if isinstance(result, Official):
                found.append(result)
            elif result:
                reasons.append(result)
    return found, reasons


def _above(path: Path, tops: tuple[str, ...]) -> str:
    """Returns the folder above the official ones that a path ends with, at least its parent."""
    for number in range(len(tops), 0, -1):
        if path.parts[-number:] == tops[-number:]:
            return str(path.parents[number - 1])
    return str(path)


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _ade20k(path: Path, folder: str, tree: Tree) -> Official | None:
    parts = [_join(folder, f"{kind}/{split}") for kind in ("annotations", "images")
             for split in ("training", "validation")]  # fmt: skip
    if not all(part in tree.folders for part in parts):
        return None
    names = tree.pictures.get(parts[2], [""])
    is_named = path.name == "ADEChallengeData2016" or (path / "objectInfo150.txt").is_file()
    if not is_named and not names[0].startswith("ADE_train_"):
        return None
    folders = tuple(_join(folder, kind) for kind in ("annotations", "images"))
    return Official("ade20k", _above(path, _TOPS["ade20k"]), "train", folders)


def _cityscapes(path: Path, folder: str, tree: Tree) -> Official | str | None:
    tops = [_join(folder, kind) for kind in ("leftImg8bit", "gtFine")]
    if not all(f"{top}/{split}" in tree.folders for top in tops for split in ("train", "val")):
        return None
    images, masks = ([*_below(tree, top)] for top in tops)
    labels = [name for name in masks if name.endswith(("_labelIds.png", "_labelTrainIds.png"))]
    named = [bool(_FRAME.match(PurePosixPath(name).name)) for name in (*images, *labels)]
    are_png = all(name.endswith("_leftImg8bit.png") for name in images)
    if not (images and labels and are_png and all(named)):
        return None
    raw = [name for name in labels if name.endswith("_labelIds.png")]
    if ids := _foreign_ids(tree, raw):
        return f"{tops[1]} holds ids that are not Cityscapes' ({ids}): read as a folder of its own"
    root = str(path.parent) if path.name.lower() in _CITIES else str(path)
    others = {name.split("/")[: folder.count("/") + 1 + bool(folder)][-1] for name in tree.folders
              if name.startswith(f"{folder}/" if folder else "")}  # fmt: skip
    mine = [n for n in others if n.startswith(("leftImg8bit", "rightImg8bit", "gt", "disparity"))]
    return Official("cityscapes", root, "train", tuple(_join(folder, name) for name in mine))


def _below(tree: Tree, top: str) -> Iterator[str]:
    for folder, names in tree.pictures.items():
        if folder.startswith(f"{top}/"):
            yield from (f"{folder}/{name}" for name in names)


def _foreign_ids(tree: Tree, names: list[str]) -> str:
    """Returns values of a few masks that are no label ids of Cityscapes."""
    found: set[int] = set()
    for name in names[:: max(1, len(names) // _LOOKS)][:_LOOKS]:
        try:
            found |= {int(value) for value in set(read_label(tree.root / name).ravel().tolist())}
        except DataError:
            continue  # told by the survey
    ids = sorted(value for value in found if value > _MAX_ID and value != 255)
    return ", ".join(map(str, ids[:5]))


def _voc(path: Path, folder: str, tree: Tree) -> Official | str | None:
    if path.name != "VOC2012":
        return None
    lists = path / "ImageSets" / "Segmentation"
    counts = {}
    for split in _VOC_LINES:
        if (lists / f"{split}.txt").is_file():
            counts[split] = len((lists / f"{split}.txt").read_bytes().split())
    train = "trainaug" if "trainaug" in counts else "train"
    if not {train, "val"} <= counts.keys():
        return None
    if counts["val"] != _VOC_LINES["val"]:
        return (f"{folder or path.name} has {counts['val']} lines in its val.txt, PASCAL VOC "
                f"2012 {_VOC_LINES['val']}: read as a folder of its own")  # fmt: skip
    # The development kit's own list of 1464 where SBD's masks were not merged.
    return Official("voc", _above(path, _TOPS["voc"]), train, (folder,))
