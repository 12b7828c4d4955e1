"""What a recipe file raises, as one line: the file, its line, the field, and the fix."""

import linecache
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax.config.checks import typed
from deeplab_jax.config.forms import unknown_key
from deeplab_jax.config.schema import fields
from deeplab_jax.errors import ConfigError, clip

DEFINES = "a recipe defines get_config(); see one: deeplab recipes --copy voc_r50_os16 FILE.py"


def explain(error: Exception, file: Path) -> ConfigError:
    """Returns the error of a recipe that raised `error` while it was read."""
    frames = list(_frames(error))
    own = [index for index, (frame, _) in enumerate(frames) if _is_of(frame, file)]
    line = frames[own[-1]][1] if own else 0
    if isinstance(error, SyntaxError) and error.filename and _is_same(error.filename, file):
        line = error.lineno or 0
    where = f"{file}, line {line}" if line else str(file)
    if isinstance(error, ConfigError):
        return ConfigError(f"{where}: {error.where}", error.what, error.fix)
    if own and (found := _wrong_field([frame for frame, _ in frames], own, line)):
        return ConfigError(f"{where}: {found.where}", found.what, found.fix)
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    text = clip((text.splitlines() or [""])[0])
    return ConfigError(
        where, f"fails with {type(error).__name__}: {text}", f"correct it; {DEFINES}"
    )


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame, trace.tb_lineno
        trace = trace.tb_next


def _is_of(frame: FrameType, file: Path) -> bool:
    return _is_same(frame.f_code.co_filename, file)


def _is_same(name: str, file: Path) -> bool:
    return os.path.abspath(name) == os.path.abspath(file)


def _wrong_field(frames: list[FrameType], own: list[int], line: int) -> ConfigError | None:
    """Returns the error of a `ConfigDict` that refused a field or value; None for another error."""
    for frame in reversed(frames[own[-1] + 1 :]):
        section, names = frame.f_locals.get("self"), frame.f_locals
        name = names.get("attribute", names.get("key"))
        if not isinstance(section, ConfigDict) or not isinstance(name, str):
            continue
        key = _prefix(section, [frames[index] for index in own]) + name
        if key not in fields():
            text = linecache.getline(frames[own[-1]].f_code.co_filename, line)
            rest = re.search(rf"\b{re.escape(key)}\.(\w+)", text)  # of a section that is not there
            return unknown_key(f"{key}.{rest[1]}" if rest else key, fields())
        if "value" in names:
            what = f"must be {typed(key)}, got {clip(repr(names['value']))}"
            return ConfigError(f"config.{key}", what, f"give such as {fields()[key].default!r}")
    return None


def _prefix(section: ConfigDict, frames: list[FrameType]) -> str:
    """Returns "train." for the section of that name; frames are those that may hold the whole."""
    roots: list[Any] = [value for frame in frames for value in frame.f_locals.values()]
    for root in roots:
        if isinstance(root, ConfigDict) and root is not section:
            for name, part in root.items():
                if part is section:
                    return f"{name}."
    names = set(section.keys())
    groups: dict[str, set[str]] = {}
    for key in fields():
        group, _, leaf = key.rpartition(".")
        groups.setdefault(group, set()).add(leaf)
    return next((f"{group}." for group, leaves in groups.items() if group and leaves == names), "")
