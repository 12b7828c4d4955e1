"""Finds the images and masks of patterns, and joins them by what the wildcards stand for.

`config/patterns.py` says which wildcards there are. Each takes as much text as it can, from the
left, so that the folder of a file is the innermost one that a pattern names.
"""

import itertools
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from deeplab_jax.config.patterns import ANY_SUFFIX, IMAGE_SUFFIXES, names_files, wildcards
from deeplab_jax.errors import DataError
from deeplab_jax.utils.walk import Links, OnFault, list_files

LOSSY_SUFFIXES = (".jpg", ".jpeg", ".webp")
_TOKENS = re.compile(r"(\{[^{}]*\}|\*\*/|\*)")
_Key = TypeVar("_Key", str, tuple[str, ...])


def _is_wildcard(token: str) -> bool:
    return bool(_TOKENS.fullmatch(token))


class Found(NamedTuple):
    """A file that a pattern names."""

    key: tuple[str, ...]  # what the wildcards stand for, then the path below a folder
    stem: str  # path below the pattern's fixed folders, without the suffix
    folder: str  # under the root, that the pattern names or that holds the file
    num_free: int  # characters of the path that no fixed text of the pattern stands for
    split: str  # what {split} stands for


class Pattern:
    """Names files by a path with wildcards.

    Attributes:
      template: the pattern, as configured.
      path: the pattern, {split} replaced.
      base: path of its fixed folders, those before the first wildcard; "" is the root.
      suffixes: how its files end.
      wildcards: in order.
    """

    def __init__(self, template: str, split: str | None, suffixes: Sequence[str]):
        """Reads a pattern that is checked.

        Args:
          template: as in `config.data`.
          split: name of the split; None for any, as one more wildcard.
          suffixes: how files end in the folders of a pattern of folders, in any case.
        """
        parts = [part for part in template.split("/") if part not in ("", ".")]
        template = "/".join(parts)
        self.template, self.suffixes = template, tuple(suffixes)
        self.wildcards = wildcards(template)
        self._split, self._is_files = split, names_files(template)
        self.path = template.replace("{split}", "{split}" if split is None else split)
        if self._is_files:
            end = template[template.rindex(".") :]
            text = template.removesuffix(end)
            self.suffixes = IMAGE_SUFFIXES if end == ANY_SUFFIX else (end,)
        else:
            text = f"{template}/"
        self._tokens = [token for token in _TOKENS.split(text) if token]
        names = (f"w{number}" for number in itertools.count())
        expression = "".join(self._expression(token, names) for token in self._tokens)
        if split is None:  # one name, wherever it stands
            expression = expression.replace("{split}", "(?P<split>[^/]+)", 1)
            expression = expression.replace("{split}", "(?P=split)")
        expression += "" if self._is_files else "(?P<rest>.+)"
        expression += f"(?P<suffix>(?i:{'|'.join(map(re.escape, self.suffixes))}))"
        self._expression_of_files = re.compile(expression, re.DOTALL)
        fixed = itertools.takewhile(lambda t: t == "{split}" or not _is_wildcard(t), self._tokens)
        self.base = "".join(fixed).replace("{split}", split or "{split}").rpartition("/")[0]

    def _expression(self, token: str, names: Iterator[str]) -> str:
        if token == "{split}":
            return token if self._split is None else re.escape(self._split)
        if token == "**/":
            return f"(?:(?P<{next(names)}>.+)/)?"
        if token == "*":
            return f"(?P<{next(names)}>[^/]*)"
        if token.startswith("{"):
            return f"(?P<{next(names)}>{'|'.join(map(re.escape, token[1:-1].split(',')))})"
        return re.escape(token)

    def match(self, path: str) -> Found | None:
        """Returns what is known of a file by its path under the root; None for another file."""
        if not (match := self._expression_of_files.fullmatch(path)):
            return None
        free = [match[f"w{number}"] or "" for number in range(len(self.wildcards))]
        folder = path.rpartition("/")[0]
        if not self._is_files:
            free.append(match["rest"])
            folder = path[: match.start("rest")].rstrip("/")
        stem = path[: match.start("suffix")].removeprefix(f"{self.base}/" if self.base else "")
        split = match["split"] if self._split is None and "{split}" in self.path else ""
        return Found(tuple(free), stem, folder, sum(map(len, free)), split)

    def fill(self, key: Sequence[str]) -> str:
        """Returns the path under the root, without its suffix, of the file with this key."""
        texts, path = iter(key), ""
        for token in self._tokens:
            if token == "{split}":
                path += self._split or token
            elif _is_wildcard(token):
                text = next(texts)
                path += f"{text}/" if token == "**/" and text else text
            else:
                path += token
        return path + "".join(texts)

    def find(self, root: Path, on_fault: OnFault, links: Links) -> dict[str, Found]:
        """Returns {path under the root: what is known of it} of all files; see `list_files`."""
        found: dict[str, Found] = {}
        seen: Links = {}
        for base, parts in dict.fromkeys(self._starts()):
            folder = root / base
            if folder.is_dir():
                names = list_files(folder, root, on_fault, seen, self._leads_on(parts))
                paths = (f"{base}/{name}" if base else name for name in names)
                found |= {path: match for path in paths if (match := self.match(path))}
        links |= {
            path: text
            for path, text in seen.items()
            if os.path.isdir(path) or self.match(os.path.relpath(path, root))
        }
        return found

    def unused(self, found: dict[str, Found]) -> list[str]:
        """Returns the texts in braces that no file found has."""
        return [
            text
            for number, wildcard in enumerate(self.wildcards)
            if wildcard.startswith("{")
            for text in wildcard[1:-1].split(",")
            if text not in {file.key[number] for file in found.values()}
        ]

    def _starts(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yields folders to walk, and the parts of paths below each: one for each of the texts."""
        choices = [token[1:-1].split(",") if token[0] == "{" and token != "{split}" else [token]
                   for token in self._tokens]  # fmt: skip
        for texts in itertools.product(*choices):
            path = "".join(texts)
            if self._split is not None:
                path = path.replace("{split}", self._split)
            parts = [part for part in path.split("/") if part]
            folders = parts[:-1] if self._is_files else parts
            fixed = list(itertools.takewhile(lambda p: not re.search(r"\*|{split}", p), folders))
            yield "/".join(fixed), tuple(parts[len(fixed) :])

    def _leads_on(self, parts: tuple[str, ...]) -> Callable[[str], bool]:
        """Returns a function that tells whether a folder below a start may hold files."""
        expressions = [part if part == "**" else re.compile(
            re.escape(part).replace(r"\*", "[^/]*").replace(r"\{split\}", "[^/]+"), re.DOTALL)
            for part in parts]  # fmt: skip

        def leads_on(folder: str) -> bool:
            names = folder.split("/")
            for name, expression in zip(names, expressions, strict=False):
                if isinstance(expression, str):
                    return True
                if not expression.fullmatch(name):
                    return False
            return not self._is_files or len(names) < len(parts)

        return leads_on


def join(
    root: Path,
    patterns: tuple[Pattern, Pattern],
    found: tuple[dict[str, Found], dict[str, Found]],
    mask_suffix: str,
    on_fault: OnFault,
) -> tuple[dict[str, str], dict[str, str]]:
    """Returns {stem: path} of the images, and {stem of the image: path} of the masks.

    A file that both patterns name belongs to the deeper of their folders, else to the pattern that
    says more of its name; where they say alike, photographs (JPEG, WebP) are images and other files
    masks. An image and a mask may lack each other.

    Args:
      root: the data set's folder.
      patterns: of images and of masks, with as many wildcards.
      found: what each has found; a file that both have found is taken out of one.
      mask_suffix: as in `config.data`.
      on_fault: receives the error of a second image, or mask, of one key.
    """
    for path in found[0].keys() & found[1].keys():
        ranks = [(len(files[path].folder), -files[path].num_free) for files in found]
        is_tied = ranks[0] == ranks[1]
        is_image = not mask_suffix and is_lossy(path) if is_tied else ranks[0] > ranks[1]
        del found[is_image][path]
    images = _by_key(root, found[0], on_fault, is_masks=False)
    masks = in_form_of(images, _by_key(root, found[1], on_fault, is_masks=True))
    stems = {key: found[0][path].stem for key, path in images.items()}
    start = f"{patterns[0].base}/" if patterns[0].base else ""
    for key in masks.keys() - images.keys():
        stems[key] = patterns[0].fill(key).removeprefix(start)
    return (
        {stems[key]: str(root / path) for key, path in images.items()},
        {stems[key]: str(root / path) for key, path in masks.items()},
    )


def _by_key(
    root: Path, files: dict[str, Found], on_fault: OnFault, is_masks: bool
) -> dict[tuple[str, ...], str]:
    """Returns {key: path}; of masks a lossy one counts only if there is no other."""
    paths: dict[tuple[str, ...], str] = {}
    for path in sorted(files, key=lambda path: (is_masks and not is_lossy(path), path)):
        key = files[path].key
        if key in paths and not (is_masks and is_lossy(paths[key]) != is_lossy(path)):
            what = f"has the same name as {root / paths[key]}"
            on_fault(DataError(str(root / path), what, "remove one of them"))
        else:
            paths[key] = path
    return paths


def in_form_of(images: Mapping[_Key, str], masks: dict[_Key, str]) -> dict[_Key, str]:
    """Returns the masks, under an image's name where theirs is another Unicode form of it.

    One name has two forms: "é" is one character, or "e" and an accent as macOS writes it.
    """
    lone = [key for key in masks if key not in images and not "".join(key).isascii()]
    if not lone:
        return masks
    free = {_composed(key): key for key in images if key not in masks}
    names = {key: free.pop(_composed(key), key) for key in lone}
    return {names.get(key, key): path for key, path in masks.items()}


def _composed(key: _Key) -> tuple[str, ...]:
    parts = (key,) if isinstance(key, str) else key
    return tuple(unicodedata.normalize("NFC", part) for part in parts)


def is_lossy(path: str) -> bool:
    """Tells whether a file's suffix is of a format that changes pixels."""
    return path.lower().endswith(LOSSY_SUFFIXES)
