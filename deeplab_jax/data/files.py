"""Finds the files of a split: the table's data sets in their official layouts, or a folder.

Only names are read here. Lines of a list are looked up among the files under the root, and a link
that leads out of the root is refused; so nothing outside is ever opened.
"""

import difflib
import glob
import itertools
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from deeplab_jax.config import LABEL_IDS, TRAIN_IDS, DataConfig
from deeplab_jax.config.patterns import IMAGE_SUFFIXES, is_pattern, names_files, wildcards
from deeplab_jax.data.lists import Known, Sample, read_lines, resolve
from deeplab_jax.data.outside import refuse_links
from deeplab_jax.data.patterns import LOSSY_SUFFIXES, Pattern, in_form_of, join
from deeplab_jax.errors import DataError, clip, shorten
from deeplab_jax.utils.walk import Links, OnFault, list_files

MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")


class Files(NamedTuple):
    """The files of a split."""

    stems: list[str]  # stems of the samples: those of the list, in its order, or all found, sorted
    images: dict[str, str]  # {stem: path} of the images found
    masks: dict[str, str]  # {stem of the image: path} of the masks found
    id_suffix: str = ""  # follows the stem in a sample's id
    folders: frozenset[str] = frozenset()  # that hold the images and masks
    list_file: str = ""  # lists that say which are samples
    notes: tuple[str, ...] = ()  # what was guessed of the lists, a line each


class SplitPaths(NamedTuple):
    """Where the files of a split lie under the root; a sample's image and mask share a stem."""

    images: str  # folder, or pattern
    masks: str  # folder, or pattern
    list_file: str = ""  # list of the samples, one a line, or a pattern of lists; "" without
    is_list_needed: bool = False  # a missing list is an error; else all files are samples
    image_suffixes: tuple[str, ...] = (".jpg",)  # ends of image names
    mask_suffixes: tuple[str, ...] = (".png",)  # ends of mask names, after `mask_suffix`
    mask_suffix: str = ""  # part of a mask's name after the stem, such as "_mask"
    lossy_mask_suffixes: tuple[str, ...] = ()  # looked for only to be refused
    id_suffix: str = ""  # as in `Files`


# Places of the official data sets under the root, the published one first, and what each holds.
_PLACES = {
    "voc": (("VOCdevkit/VOC2012", "VOC2012", "."), ("JPEGImages", "SegmentationClass")),
    "ade20k": (
        ("ADE20k/ADEChallengeData2016", "ADEChallengeData2016", "."),
        ("images", "annotations"),
    ),
    "cityscapes": (("CityScapes", "cityscapes", "Cityscapes", "."), ("leftImg8bit", "gtFine")),
}


def official_top(name: str, root: str | Path) -> str:
    """Returns the folder of an official data set under `root`.

    The published place goes first, then another that holds the folders of images and masks; without
    any it is the published one.
    """
    places, folders = _PLACES[name]
    if not os.path.isdir(os.path.join(root, places[0])):
        for place in places[1:]:
            if all(os.path.isdir(os.path.join(root, place, folder)) for folder in folders):
                return place
    return places[0]


def split_paths(data_config: DataConfig, split: str) -> SplitPaths:
    """Returns where the files of a split lie."""
    name = data_config.dataset
    top = official_top(name, data_config.root) if name in _PLACES else ""
    if name == "voc":
        list_file = f"{top}/ImageSets/Segmentation/{split}.txt"
        return SplitPaths(f"{top}/JPEGImages", f"{top}/SegmentationClass", list_file, True)
    if name == "ade20k":
        part = {"train": "training", "val": "validation"}.get(split, split)
        return SplitPaths(f"{top}/images/{part}", f"{top}/annotations/{part}", f"{top}/{split}.txt")
    if name == "cityscapes":
        return SplitPaths(f"{top}/leftImg8bit/{split}", f"{top}/gtFine/{split}",
                          f"{top}/{split}.txt", image_suffixes=("_leftImg8bit.png",),
                          mask_suffix=data_config.mask_suffix or LABEL_IDS,
                          id_suffix="_leftImg8bit")  # fmt: skip
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
    told: set[str] = set()  # a folder may be listed twice, for images and for masks

    def once(fault: DataError) -> None:
        if str(fault) not in told:
            told.add(str(fault))
            on_fault(fault)

    pairs = find(data_config, split, once, links)
    if not (list_files := _find_lists(data_config, split)):
        fields = data_config.images, data_config.masks
        # Masks of all splits may lie together: those of another are not to be missed here.
        is_common = ["{split}" in field for field in fields] == [True, False]
        stems = sorted(pairs.images.keys() | (() if is_common else pairs.masks.keys()))
        return Files(stems, pairs.images, pairs.masks, paths.id_suffix, pairs.folders)
    root, masks = Path(data_config.root), pairs.masks
    ends = tuple(paths.mask_suffix + suffix for suffix in paths.mask_suffixes)
    known = Known(root, pairs.images, masks, root / pairs.places[0], root / pairs.places[1],
                  (*paths.image_suffixes, paths.id_suffix), ends, pairs.aliases)  # fmt: skip
    named: list[str] = []
    notes: list[str] = []
    for list_file in list_files:
        samples, guessed = resolve(read_lines(list_file), list_file, known)
        masks = masks | {sample.stem: sample.mask for sample in samples if sample.mask}
        _check_kind(samples, data_config, paths, list_file)
        named += [sample.stem for sample in samples]
        notes += guessed
    if len(list_files) > 1:  # of several lists two may name one sample
        named = [*dict.fromkeys(named)]
    where = ", ".join(map(str, list_files))
    return Files(named, pairs.images, masks, paths.id_suffix, pairs.folders, where, tuple(notes))


def looked_for(data_config: DataConfig, split: str, stem: str, files: Files, kind: str) -> str:
    """Returns where a sample's missing file was looked for; `kind` is "images" or "masks"."""
    paths, root = split_paths(data_config, split), Path(data_config.root)
    folder, suffixes = paths.images, paths.image_suffixes
    if kind == "masks":
        folder = paths.masks
        suffixes = tuple(paths.mask_suffix + suffix for suffix in paths.mask_suffixes)
    path = f"{root / folder}/{clip(stem)}"
    if is_pattern(folder):
        images, masks = (Pattern(template, split, IMAGE_SUFFIXES)
                         for template in (data_config.images, data_config.masks))  # fmt: skip
        path = f"{root / images.base}/{clip(stem)}"
        if kind == "masks":
            image = os.path.relpath(files.images[stem], root) if stem in files.images else ""
            match = images.match(image)
            path = str(root / (masks.fill(match.key) if match else masks.path))
    more = f" (or {', '.join(suffixes[1:])})" if suffixes[1:] else ""
    return f"{path}{suffixes[0]}{more}"


def _check_kind(
    samples: Sequence[Sample], data_config: DataConfig, paths: SplitPaths, list_file: Path
) -> None:
    """Refuses listed masks of Cityscapes whose values are not those that are read."""
    if data_config.dataset != "cityscapes":
        return
    for sample in samples:
        if sample.mask and not sample.mask.endswith(f"{paths.mask_suffix}.png"):
            what = f"names {sample.mask}, which is no {paths.mask_suffix} mask"
            fix = "write one image a line"
            if sample.mask.endswith(f"{TRAIN_IDS}.png"):
                fix = f"set --config.data.mask_suffix={TRAIN_IDS}"
            raise DataError(str(list_file), what, fix)


class _Pairs(NamedTuple):
    """The images and masks of a split, before a list says which are its samples."""

    images: dict[str, str]  # as in `Files`
    masks: dict[str, str]
    folders: frozenset[str]
    places: tuple[str, str]  # paths that stems of images, and of masks, start from
    aliases: dict[str, list[str]] = {}  # {what a pattern's wildcards stand for: stems}  # noqa: RUF012


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
    refuse_links(links, len(image_names) + len(mask_names), data_config, on_fault)
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
    if split == "trainaug":  # masks of SBD may lie beside those of VOC
        more = mask_folder.with_name("SegmentationClassAug")
        if data_config.dataset == "voc" and more.is_dir():
            names = list_files(more, root, on_fault, links)
            masks = _by_stem(more, names, paths.mask_suffixes, on_fault) | masks
    masks = in_form_of(images, masks)
    folders = frozenset((str(image_folder), str(mask_folder)))
    return _Pairs(images, masks, folders, (paths.images, paths.masks))


def _find_by_pattern(
    data_config: DataConfig, split: str, on_fault: OnFault, links: Links
) -> _Pairs:
    root = Path(data_config.root)
    ends = tuple(data_config.mask_suffix + s for s in (*MASK_SUFFIXES, *LOSSY_SUFFIXES))
    templates = (data_config.images, IMAGE_SUFFIXES), (data_config.masks, ends)
    images, masks = (Pattern(template, split, suffixes) for template, suffixes in templates)
    found = images.find(root, on_fault, links), masks.find(root, on_fault, links)
    refuse_links(links, len(found[0]) + len(found[1]), data_config, on_fault)
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
    aliases: dict[str, list[str]] = {}
    for file in found[0].values():
        aliases.setdefault("/".join(filter(None, file.key)), []).append(file.stem)
    return _Pairs(*pairs, folders, (images.base, masks.base), aliases)


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


def _correct(data_config: DataConfig, key: str) -> str:
    root, fields = shlex.quote(data_config.root), "--config.data.root"
    if data_config.dataset == "folder":
        fields = f"--config.data.{key} or {fields}"
    return f"correct {fields}, or let `deeplab doctor --data {root}` look for the layout"


def _no_folder(folder: Path, data_config: DataConfig, split: str, template: str) -> DataError:
    """Returns the error of a split's missing folder; names the splits that are there."""
    pattern = getattr(split_paths(data_config, "{split}"), template)
    if found := _splits(Path(data_config.root), pattern, data_config.dataset):
        what = f"is not a folder: there is no split {split!r}; there are {shorten(found)}"
        return DataError(str(folder), what, _propose_split(data_config, split, found))
    what = "is not a folder"
    if data_config.dataset in _PLACES:
        places, inner = _PLACES[data_config.dataset]
        what += (
            f"; {data_config.dataset} is looked for in {', '.join(places)} of {data_config.root}"
        )
        what += f", by its folders {' and '.join(inner)}"
    return DataError(str(folder), what, _correct(data_config, template))


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


def _find_lists(data_config: DataConfig, split: str) -> list[Path]:
    """Returns the split's lists: one, those of a pattern, or none where there need not be one."""
    root, paths = Path(data_config.root), split_paths(data_config, split)
    path, template = str(root / paths.list_file), paths.list_file
    if not wildcards(data_config.split_file) or os.path.lexists(path):
        found = _find_list(data_config, split, paths)
        return [found] if found else []
    braces = re.split(r"\{([^{}]*)\}", re.sub(r"[\[?]", r"[\g<0>]", template))
    texts = (part.split(",") if n % 2 else [part] for n, part in enumerate(braces))
    start = "" if os.path.isabs(template) else os.path.join(glob.escape(str(root)), "")
    found_lists = {name for parts in itertools.product(*texts)
                   for name in glob.glob(start + "".join(parts), recursive=True)}  # fmt: skip
    if found_lists:
        return [_without_link(Path(name), data_config, paths) for name in sorted(found_lists)]
    fix = f"correct --config.data.split_file, or name another split than {split}"
    raise DataError(path, "matches no list", fix)


def _find_list(data_config: DataConfig, split: str, paths: SplitPaths) -> Path | None:
    root = Path(data_config.root)
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
    return _without_link(path, data_config, paths)


def _without_link(path: Path, data_config: DataConfig, paths: SplitPaths) -> Path:
    """Returns a list that is no link out of the root."""
    root = Path(data_config.root)
    if path.is_symlink() and not os.path.isabs(paths.list_file):
        inside = tuple(os.path.join(os.path.realpath(place), "") for place in (root, path.parent))
        if not os.path.realpath(path).startswith(inside):
            what = f"is a link that leads out of {inside[0]} (to {os.readlink(path)})"
            fix = "put the file itself there"
            if data_config.dataset == "folder":
                name = shlex.quote(os.path.abspath(root / data_config.split_file))
                fix += f", or name it in full: --config.data.split_file={name}"
            raise DataError(str(path), what, fix)
    return path
