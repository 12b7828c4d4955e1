"""Advice for data whose files lie outside the root: fields that read them, or a copy.

Nothing outside is opened: targets of links and listed paths are only asked whether they exist.
"""

import os
import re
import shlex
from collections.abc import Sequence

from deeplab_jax.config import DataConfig
from deeplab_jax.config.patterns import IMAGE_SUFFIXES
from deeplab_jax.errors import DataError
from deeplab_jax.utils.walk import Links, OnFault

_ABOVE = "or name a folder above both as --config.data.root, and images and masks below it"


def refuse_links(links: Links, num_files: int, data_config: DataConfig, on_fault: OnFault) -> None:
    """Tells of links that lead out of the root: each of them, or once where every file is one.

    Args:
      links: see `list_files`.
      num_files: found beside them.
      data_config: names the root.
      on_fault: receives the errors.
    """
    for is_there in (True, False):
        found = [path for path in links if os.path.exists(path) == is_there]
        if not found:
            continue
        fix = _above(data_config, found) if is_there else _FETCH
        root = os.path.join(os.path.realpath(data_config.root), "")
        if len(found) > 1 and not num_files and len(found) == len(links):
            what = f"all {len(found)} files are links that lead out of {root}"
            what += "" if is_there else ", to files that are not there"
            what += f" (such as {found[0]} to {links[found[0]]})"
            on_fault(DataError(data_config.root, what, fix))
            continue
        for path in found:
            what = f"is a link that leads out of {root} (to {links[path]}"
            what += ")" if is_there else ", which is not there)"
            on_fault(DataError(path, what, fix))


_FETCH = "fetch the files first, as with `git annex get` or `dvc pull`, or remove the links"


def _above(data_config: DataConfig, links: Sequence[str]) -> str:
    """Returns the fix for links whose targets exist."""
    root = os.path.realpath(data_config.root)
    copy = shlex.quote(f"{root}-copy")
    fix = f"copy the files themselves: cp -rL {shlex.quote(root)} {copy}, "
    fix += f"and set --config.data.root={copy}"
    base = os.path.commonpath([root, *map(os.path.realpath, links)])
    below = os.path.relpath(root, base)
    is_named = data_config.dataset != "folder" or os.path.isfile(os.path.join(root, "classes.json"))
    if is_named or base == os.sep or re.search(r"[*{}]", below):
        return fix
    keys = ("images", "masks", *(["split_file"] if data_config.split_file else []))
    paths = {key: os.path.normpath(os.path.join(below, getattr(data_config, key))) for key in keys}
    return f"name the folder that holds links and files: {_flags(base, paths)}; or {fix}"


def _flags(root: str, paths: dict[str, str]) -> str:
    fields = {"root": root, **paths}
    return " ".join(f"--config.data.{key}={shlex.quote(text)}" for key, text in fields.items())


def outside_fix(data_config: DataConfig, split: str, lines: Sequence[str]) -> str:
    """Returns the fix for a list of paths that lead out of the root.

    Args:
      data_config: reads the list.
      split: its name.
      lines: all stems of the list, those of unknown images as they are listed.
    """
    fix = "list images under config.data.images, by their path there without the suffix"
    return _fields_above(data_config, split, lines) or f"{fix}, {_ABOVE}"


def _fields_above(data_config: DataConfig, split: str, lines: Sequence[str]) -> str:
    """Returns fields that read all lines from another root; "" where none surely do."""
    root = os.path.abspath(data_config.root)
    columns = [re.split(r"\s*[,;\t]\s*|\s+", line) for line in lines]
    num_columns = {len(fields) for fields in columns}
    listed = [os.path.normpath(field) for fields in columns for field in fields]
    is_whole = all(map(os.path.isabs, listed)) and num_columns in ({1}, {2})
    if not is_whole or os.path.isfile(os.path.join(root, "classes.json")):
        return ""
    images, masks = listed[:: max(num_columns)], listed[1::2]
    image_folder = os.path.commonpath(list(map(os.path.dirname, images)))
    if num_columns == {1}:
        mask_folder = os.path.join(root, data_config.masks.replace("{split}", split))
        masks = [os.path.join(mask_folder, os.path.relpath(path, image_folder)) for path in images]
        masks = [f"{path}{data_config.mask_suffix}" for path in masks]
    else:
        mask_folder = os.path.commonpath(list(map(os.path.dirname, masks)))
    base = os.path.commonpath([image_folder, mask_folder])
    if base == os.sep or not all(map(_is_picture, (*images, *masks))):
        return ""
    folders = (os.path.relpath(folder, base) for folder in (image_folder, mask_folder))
    below = ["/".join("{split}" if part == split else part for part in folder.split("/"))
             for folder in folders]  # fmt: skip
    paths = dict(zip(("images", "masks"), below, strict=True))
    paths["split_file"] = os.path.join(root, data_config.split_file)
    return f"name the folder that holds them: {_flags(base, paths)}"


def _is_picture(path: str) -> bool:
    """Tells whether there is a picture with a path that may lack its suffix."""
    return any(os.path.isfile(path + suffix) for suffix in ("", *IMAGE_SUFFIXES))
