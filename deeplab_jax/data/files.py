"""Finds the files of a split: the table's data sets in their official layouts, or a folder.

Only names are read here. Ids of a list are looked up among the files found under the root, and a
link that leads out of the root is refused; so nothing outside is ever opened.
"""

import difflib
import glob
import os
import re
import shlex
import stat
from pathlib import Path
from typing import NamedTuple

from deeplab_jax.config import LABEL_IDS, DataConfig
from deeplab_jax.config.patterns import IMAGE_SUFFIXES, is_pattern, names_files
from deeplab_jax.data.patterns import LOSSY_SUFFIXES, Pattern, join
from deeplab_jax.errors import DataError, clip, shorten
from deeplab_jax.utils.walk import Links, OnFault, list_files

MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
_MAX_LIST_BYTES = 64 << 20


class Files(NamedTuple):
    """The files of a split."""

    stems: list[str]  # stems of the samples: those of the list, in its order, or all found, sorted
    images: dict[str, str]  # {stem: path} of the images found
    masks: dict[str, str]  # {stem of the image: path} of the masks found
    id_suffix: str = ""  # follows the stem in a sample's id
    folders: frozenset[str] = frozenset()  # that hold the images and masks


class SplitPaths(NamedTuple):
    """Where the files of a split lie under the root; a sample's image and mask share a stem."""

    images: str  # folder
    masks: str  # folder
    list_file: str = ""  # list of the samples, one id a line; "" without a list
    is_list_needed: bool = False  # a missing list is an error; else all files are samples
    image_suffixes: tuple[str, ...] = (".jpg",)  # ends of image names
    mask_suffixes: tuple[str, ...] = (".png",)  # ends of mask names, after `mask_suffix`
    mask_suffix: str = ""  # part of a mask's name after the stem, such as "_mask"
    lossy_mask_suffixes: tuple[str, ...] = ()  # looked for only to be refused
    id_suffix: str = ""  # as in `Files`


def split_paths(data_config: DataConfig, split: str) -> SplitPaths:
    """Returns where the files of a split lie."""
    name = data_config.dataset
    if name == "voc":
        top = "VOCdevkit/VOC2012"
        list_file = f"{top}/ImageSets/Segmentation/{split}.txt"
        return SplitPaths(f"{top}/JPEGImages", f"{top}/SegmentationClass", list_file, True)
    if name == "ade20k":
        top = "ADE20k/ADEChallengeData2016"
        part = {"train": "training", "val": "validation"}.get(split, split)
        return SplitPaths(f"{top}/images/{part}", f"{top}/annotations/{part}", f"{top}/{split}.txt")
    if name == "cityscapes":
        top, mask_suffix = "CityScapes", data_config.mask_suffix or LABEL_IDS
        return SplitPaths(f"{top}/leftImg8bit/{split}", f"{top}/gtFine/{split}",
                          f"{top}/{split}.txt", image_suffixes=("_leftImg8bit.png",),
                          mask_suffix=mask_suffix, id_suffix="_leftImg8bit")  # fmt: skip
    templates = (data_config.images, data_config.masks, data_config.split_file)
    images, masks, list_file = (text.replace("{split}", split) for text in templates)
    return SplitPaths(images, masks, list_file, bool(list_file), IMAGE_SUFFIXES, MASK_SUFFIXES,
                      data_config.mask_suffix, LOSSY_SUFFIXES)  # fmt: skip


def _raise(fault: DataError) -> None:
    raise fault


def find_files(data_config: DataConfig, split: str, on_fault: OnFault = _raise) -> Files:
    """Returns the files of a split; images or masks may be missing.

    `on_fault` receives the error of one link or name, which is then passed over.

    Raises:
      DataError: a folder or list is missing or cannot be read, two files have one stem, or a link
        leads out of the root.
    """
    paths, links = split_paths(data_config, split), Links()
    has_pattern = is_pattern(data_config.images) and data_config.dataset == "folder"
    find = _find_by_pattern if has_pattern else _find_in_folders
    images, masks, folders = find(data_config, split, on_fault, links)
    listed = _read_list(Path(data_config.root), paths, data_config, split)
    if listed is None:
        stems = sorted(images.keys() | masks.keys())
    else:
        stems = []
        for line in listed:
            stem = _stem_of(line, images, paths)
            if stem not in images:  # spaces around a name count only if an image has them
                stem = _stem_of(line.strip(), images, paths)
            if stem not in images and stem not in masks:
                _refuse_columns(line, images, Path(data_config.root), paths)
            stems.append(stem)
    return Files(stems, images, masks, paths.id_suffix, folders)


_Pairs = tuple[dict[str, str], dict[str, str], frozenset[str]]  # images, masks, their folders


def _find_in_folders(
    data_config: DataConfig, split: str, on_fault: OnFault, links: Links
) -> _Pairs:
    root, paths = Path(data_config.root), split_paths(data_config, split)
    image_folder, mask_folder = root / paths.images, root / paths.masks
    for folder, template in ((image_folder, "images"), (mask_folder, "masks")):
        if not folder.is_dir():
            raise _no_folder(folder, data_config, split, template)
    image_names = list_files(image_folder, root, on_fault, links)
    mask_names = list_files(mask_folder, root, on_fault, links)
    _refuse_links(links, root, on_fault)
    image_suffixes, lossy = paths.image_suffixes, paths.lossy_mask_suffixes
    is_shared = image_folder.resolve() == mask_folder.resolve()
    if is_shared and not paths.mask_suffix:  # "a.jpg" beside "a.png"
        image_suffixes, lossy = LOSSY_SUFFIXES, ()
    elif not is_shared:  # but one may lie in the other
        image_names = _without(image_names, image_folder, mask_folder)
        mask_names = _without(mask_names, mask_folder, image_folder)
    images = _by_stem(image_folder, image_names, image_suffixes, on_fault)
    if is_shared and paths.mask_suffix:
        end = paths.mask_suffix.lower()
        images = {stem: path for stem, path in images.items() if not stem.lower().endswith(end)}
    masks: dict[str, str] = {}
    for suffixes in (lossy, paths.mask_suffixes):
        ends = tuple(paths.mask_suffix + suffix for suffix in suffixes)
        masks |= _by_stem(mask_folder, mask_names, ends, on_fault)
    return images, masks, frozenset((str(image_folder), str(mask_folder)))


def _find_by_pattern(
    data_config: DataConfig, split: str, on_fault: OnFault, links: Links
) -> _Pairs:
    root = Path(data_config.root)
    ends = tuple(data_config.mask_suffix + s for s in (*MASK_SUFFIXES, *LOSSY_SUFFIXES))
    templates = (data_config.images, IMAGE_SUFFIXES), (data_config.masks, ends)
    images, masks = (Pattern(template, split, suffixes) for template, suffixes in templates)
    found = images.find(root, on_fault, links), masks.find(root, on_fault, links)
    _refuse_links(links, root, on_fault)
    for key, pattern, files in zip(("images", "masks"), (images, masks), found, strict=True):
        missing = pattern.unused(files)
        if not files or missing:
            anywhere = Pattern(pattern.template, None, pattern.suffixes)
            others = anywhere.find(root, on_fault, {})
            splits = sorted({file.split for file in others.values()} - {""})
            if not files:
                raise _no_match(data_config, split, key, pattern, splits)
            if missing := [text for text in missing if text in anywhere.unused(others)]:
                what = f"nothing matches with {shorten(missing)}"
                fix = f"correct --config.data.{key}={shlex.quote(pattern.template)}"
                raise DataError(str(root / pattern.path), what, fix)
    folders = frozenset(str(root / file.folder) for files in found for file in files.values())
    pairs = join(root, (images, masks), found, data_config.mask_suffix, on_fault)
    return *pairs, folders


def _no_match(
    data_config: DataConfig, split: str, key: str, pattern: Pattern, splits: list[str]
) -> DataError:
    """Returns the error of a pattern that names nothing; says what is there."""
    root = Path(data_config.root)
    where = str(root / pattern.path)
    if splits:
        what = f"nothing matches: there is no split {split!r}; there are {shorten(splits)}"
        return DataError(where, what, _propose_split(data_config, split, splits))
    names = [name for name in list_files(root, root, lambda fault: None, {})
             if name.lower().endswith(IMAGE_SUFFIXES)]  # fmt: skip
    kind = "files"
    if not names_files(pattern.template):
        kind, names = "folders", sorted({os.path.dirname(name) or "." for name in names})
    what = f"no {kind} match; {kind} with pictures are {shorten(names) or 'none'}"
    return DataError(where, what, _correct(data_config, key))


def _refuse_links(links: Links, root: Path, on_fault: OnFault) -> None:
    outside = os.path.join(os.path.realpath(root), "")
    for path, target in links.items():
        what = f"is a link that leads out of {outside} (to {target})"
        on_fault(DataError(path, what, "put the file itself there"))


def _correct(data_config: DataConfig, key: str) -> str:
    root = shlex.quote(data_config.root)
    fields = f"--config.data.{key} or --config.data.root"
    return f"correct {fields}, or let `deeplab doctor --data {root}` look for the layout"


def _no_folder(folder: Path, data_config: DataConfig, split: str, template: str) -> DataError:
    """Returns the error of a split's missing folder; names the splits that are there."""
    pattern = getattr(split_paths(data_config, "{split}"), template)
    if found := _splits(Path(data_config.root), pattern, data_config.dataset):
        what = f"is not a folder: there is no split {split!r}; there are {shorten(found)}"
        return DataError(str(folder), what, _propose_split(data_config, split, found))
    return DataError(str(folder), "is not a folder", _correct(data_config, template))


def _splits(root: Path, pattern: str, dataset: str) -> list[str]:
    """Returns the names for {split} in a path below the root that lead to something."""
    start, mark, end = str(root / pattern).partition("{split}")
    if not mark:
        return []
    paths = glob.glob(f"{glob.escape(start)}*{glob.escape(end)}")
    names = [path[len(start) : len(path) - len(end)] for path in paths]
    official = {"training": "train", "validation": "val"} if dataset == "ade20k" else {}
    return sorted(official.get(name, name) for name in names)


def _propose_split(data_config: DataConfig, split: str, found: list[str]) -> str:
    key = "train_split" if data_config.train_split == split else "val_split"
    close = difflib.get_close_matches(split, found, 1, 0)[0]
    return f"use one that is there: --config.data.{key}={close}"


def _stem_of(name: str, images: dict[str, str], paths: SplitPaths) -> str:
    """Returns the stem of a listed name, which may be a file's."""
    while name.startswith("./"):
        name = name[2:]
    if name in images:
        return name
    for suffix in (*paths.image_suffixes, paths.id_suffix):
        if suffix and name.lower().endswith(suffix.lower()):
            return name[: -len(suffix)]
    return name


def _refuse_columns(line: str, images: dict[str, str], root: Path, paths: SplitPaths) -> None:
    """Refuses a line of several names, or of a name and a number as in VOC's lists of a class."""
    fields = [field for field in re.split(r"[\s,;]+", line) if field]
    suffixes = (*IMAGE_SUFFIXES, *MASK_SUFFIXES)
    names = [field for field in fields if field not in ("-1", "0", "1")]
    known = (n.lower().endswith(suffixes) or _stem_of(n, images, paths) in images for n in names)
    if len(fields) > 1 and all(known):
        what = f"has a line of {len(fields)} columns ({clip(line.strip())})"
        fix = "write one id a line: the path of an image under "
        fix += f"{paths.images}, without its suffix"
        raise DataError(str(root / paths.list_file), what, fix)


def _without(names: list[str], folder: Path, other: Path) -> list[str]:
    """Returns the names in `folder` that are not also in `other`, which may lie in it."""
    prefix = os.path.relpath(other, folder) + "/"
    return [name for name in names if not name.startswith(prefix)]


def _by_stem(
    folder: Path, names: list[str], suffixes: tuple[str, ...], on_fault: OnFault
) -> dict[str, str]:
    """Returns {stem: path} of the files that end in one of the suffixes, in any case."""
    found: dict[str, str] = {}
    for name in names:
        suffix = next((s for s in suffixes if name.lower().endswith(s.lower())), "")
        stem, path = name[: len(name) - len(suffix)], str(folder / name)
        if suffix and stem in found:
            on_fault(DataError(path, f"has the same name as {found[stem]}", "remove one of them"))
        elif suffix:
            found[stem] = path
    return found


def _read_list(
    root: Path, paths: SplitPaths, data_config: DataConfig, split: str
) -> list[str] | None:
    """Returns the lines of the split's list that are not blank, or None where there is none."""
    path = root / paths.list_file
    if not paths.list_file or not os.path.lexists(path):
        if not paths.is_list_needed:
            return None
        found = _splits(root, split_paths(data_config, "{split}").list_file, data_config.dataset)
        if found:
            what = f"is missing: there is no split {split!r}; there are {shorten(found)}"
            raise DataError(str(path), what, _propose_split(data_config, split, found))
        fix = "correct --config.data.root or --config.data.split_file"
        raise DataError(str(path), "is missing", fix)
    if path.is_symlink() and not os.path.isabs(paths.list_file):
        inside = tuple(os.path.join(os.path.realpath(place), "") for place in (root, path.parent))
        if not os.path.realpath(path).startswith(inside):
            what = f"is a link that leads out of {inside[0]} (to {os.readlink(path)})"
            raise DataError(str(path), what, "put the file itself there, or name it in full")
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):  # a pipe would wait for a writer
            raise DataError(str(path), "is no file", "write one id a line")
        if info.st_size > _MAX_LIST_BYTES:
            what = f"is too large for a list ({info.st_size} bytes, limit {_MAX_LIST_BYTES})"
            raise DataError(str(path), what, "write one id a line")
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(str(path), f"cannot be read ({error})", "write one id a line") from error
    return [line for line in text.split("\n") if line.strip()]
