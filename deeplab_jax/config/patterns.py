"""Wildcards in `config.data.images` and `masks`, and what the two fields must share.

`*` stands for any text within one part of a path, `**` as a whole part for any number of folders,
also none, and `{a,b}` for one of these texts. `{split}` is the split's name, and no wildcard. A
pattern that ends in the suffix of a picture, or in `.*` for any of them, names files; any other
names folders.
"""

import re

from deeplab_jax.errors import ConfigError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
ANY_SUFFIX = ".*"
_BRACES = r"\{[^{}]*\}"
_WILDCARD = re.compile(rf"{_BRACES}|\*+")


def is_pattern(path: str) -> bool:
    """Tells whether a path holds wildcards; without, it is a folder."""
    return bool(wildcards(path)) or path.endswith(ANY_SUFFIX)


def names_files(path: str) -> bool:
    """Tells whether a pattern names files, not folders."""
    return is_pattern(path) and path.lower().endswith((*IMAGE_SUFFIXES, ANY_SUFFIX))


def wildcards(path: str) -> list[str]:
    """Returns the wildcards of a path, in order."""
    found = _WILDCARD.findall(path.removesuffix(ANY_SUFFIX))
    return [text for text in found if text != "{split}"]


def check(images: str, masks: str, mask_suffix: str) -> None:
    """Checks what can be known of both fields without the files.

    Raises:
      ConfigError: wildcards that mean nothing, that differ in number, or of files beside folders.
    """
    for key, path in (("images", images), ("masks", masks)):
        _check_one(f"config.data.{key}", path)
    own, theirs = wildcards(masks), wildcards(images)
    if len(own) != len(theirs):
        count = f"holds {len(own)} wildcards ({_listed(own)}), and config.data.images "
        count += f"{len(theirs)} ({_listed(theirs)})"
        fix = "write one in each for every part that changes, in the same order"
        raise ConfigError("config.data.masks", count, fix)
    if names_files(images) != names_files(masks):
        kinds = ("files", "folders") if names_files(masks) else ("folders", "files")
        what = f"{masks} names {kinds[0]}, and config.data.images={images} {kinds[1]}"
        fix = f"end both in a suffix, such as {ANY_SUFFIX} for any, or none"
        raise ConfigError("config.data.masks", what, fix)
    if mask_suffix and names_files(masks):
        what = f"is {mask_suffix!r}, and config.data.masks={masks} names whole files"
        raise ConfigError("config.data.mask_suffix", what, "leave it empty: put it into masks")


def _listed(found: list[str]) -> str:
    return " ".join(found) or "none"


def _check_one(where: str, path: str) -> None:
    braces = re.findall(_BRACES, path)
    unknown = [text for text in braces if text != "{split}" and not _is_choice(text)]
    if unknown or re.search(r"[{}]", re.sub(_BRACES, "", path)):
        what = f"{path} holds braces that mean nothing{f' ({unknown[0]})' if unknown else ''}"
        fix = "write {split} for the split's name, or {a,b} for one of several texts"
        raise ConfigError(where, what, fix)
    parts = path.split("/")
    if any("**" in part and part != "**" for part in parts) or parts[-1].startswith("**."):
        fix = "write ** alone between two slashes, or * for a text within one part"
        raise ConfigError(where, f"{path} holds ** within a part", fix)
    if is_pattern(path) and (path.startswith("/") or ".." in re.split(r"[/{},]", path)):
        fix = "name a folder above as config.data.root, and start the pattern there"
        raise ConfigError(where, f"{path} is a pattern that leaves the root", fix)


def _is_choice(braces: str) -> bool:
    """Tells whether braces hold at least two texts, without wildcards or empty ones."""
    texts = braces[1:-1].split(",")
    return len(texts) > 1 and all(texts) and "*" not in braces
