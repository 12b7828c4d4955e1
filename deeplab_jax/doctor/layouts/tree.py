"""The files under a root: pictures by folder, and what looks like a list of a split."""

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from deeplab_jax.data.files import IMAGE_SUFFIXES
from deeplab_jax.doctor.layouts import words

_MAX_DEPTH = 9
_MAX_JSON_BYTES = 1 << 20
LIST_SUFFIXES = (".txt", ".lst", ".list", ".csv", ".tsv")
_OTHER_LISTS = (".json", ".jsonl", ".pkl", ".pickle", ".npy", ".npz", ".mat", ".yaml", ".yml",
                ".xlsx", ".xml", ".parquet", "")  # fmt: skip
_SPLIT_WORDS = {"split", "fold", "partition"}


@dataclass
class Tree:
    """Names of files under a root; folders are paths below it, "" is the root itself."""

    root: Path
    pictures: dict[str, list[str]] = field(default_factory=dict)  # {folder: names}, sorted
    lists: list[str] = field(default_factory=list)  # files with a split's name, no pictures
    tables: list[str] = field(default_factory=list)  # files of comma- or tab-separated values
    others: dict[str, Counter[str]] = field(default_factory=dict)  # {folder: {suffix: number}}
    predicted: dict[str, int] = field(default_factory=dict)  # {folder: results of predict in it}
    folders: set[str] = field(default_factory=set)  # all
    links: list[str] = field(default_factory=list)  # folders that lead out of the root; not read

    def stems(self, folder: str) -> set[str]:
        """Returns the stems of a folder's pictures."""
        return {PurePosixPath(name).stem for name in self.pictures[folder]}


def read_tree(root: Path) -> Tree:
    """Returns the files under a folder; hidden ones, and what `predict` wrote, are left out."""
    tree = Tree(root)
    for path, folders, files in os.walk(root):
        relative = Path(path).relative_to(root)
        folder = "" if relative == Path(".") else relative.as_posix()
        tree.folders.add(folder)
        folders[:] = sorted(n for n in folders if not n.startswith((".", "__")))
        tree.links += [os.path.join(folder, n) for n in folders if _leads_out(root, Path(path, n))]
        if len(relative.parts) >= _MAX_DEPTH:
            folders.clear()
        names = sorted(name for name in files if not name.startswith("."))
        pictures = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
        results = _results(Path(path), names, pictures)
        if results:
            tree.predicted[folder] = len(results)
            pictures = [name for name in pictures if name not in results]
            # the submission formats
            folders[:] = [name for name in folders if name not in ("ade", "cityscapes")]
        if pictures:
            tree.pictures[folder] = pictures
        rest = [name for name in names if not name.lower().endswith(IMAGE_SUFFIXES)]
        if rest:
            suffixes = Counter(PurePosixPath(name).suffix.lower() for name in rest)
            tree.others[folder] = suffixes
            tree.tables += [os.path.join(folder, name) for name in rest
                            if name.lower().endswith((".csv", ".tsv"))]  # fmt: skip
            tree.lists += [os.path.join(folder, name) for name in rest if _is_split_file(name)]
    return tree


def _leads_out(root: Path, folder: Path) -> bool:
    return folder.is_symlink() and not folder.resolve().is_relative_to(root)


def _is_split_file(name: str) -> bool:
    stem, suffix = os.path.splitext(name)
    if suffix.lower() not in (*LIST_SUFFIXES, *_OTHER_LISTS):
        return False
    return words.split_text(stem) is not None or bool(_SPLIT_WORDS & {*words.words(stem)})


def _results(folder: Path, names: list[str], pictures: list[str]) -> set[str]:
    """Returns the pictures in a folder that `deeplab predict` wrote; each has a NAME.json."""
    stems = [name.removesuffix(".json") for name in names if name.endswith(".json")]
    there = set(pictures)
    stems = [stem for stem in stems if {f"{stem}.png", f"{stem}_overlay.jpg"} & there]
    source = _source(folder / f"{stems[0]}.json") if stems else None
    if source is None:
        return set()
    # Results may lie beside the images: an image is no result of its own.
    is_beside = source.parent.name == folder.name and source.name in there
    ends = ("_overlay.jpg", ".png")[: 1 if is_beside and source.suffix == ".png" else 2]
    return {stem + end for stem in stems for end in ends} & there


def _source(path: Path) -> Path | None:
    """Returns the image of a summary as `predict` writes it; None for any other file."""
    try:
        if not path.is_file() or path.stat().st_size > _MAX_JSON_BYTES:  # a pipe would wait
            return None
        content = json.loads(path.read_text("utf-8"))
        if {"share", "confidence"} <= content["classes"][0].keys() and "size" in content:
            return Path(content["file"] or "-")
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        pass
    return None
