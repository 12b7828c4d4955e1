"""Findings: kinds of fault of a data set, each with its places and its cure."""

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

SEVERITIES = ("error", "warning", "note")
NAMED_OTHERWISE = "mask-name"  # kind of a finding whose items are "IMAGE with MASK"


class Finding(NamedTuple):
    """One kind of fault and where it was found."""

    # "error" stops training or teaches something false, "warning" is legal but probably not
    # meant, "note" is good to know
    severity: str
    kind: str  # short name, such as "unreadable-image"
    title: str  # what is wrong, with the number of places
    fix: str  # what to do
    items: tuple[str, ...] = ()  # the places, each with what is wrong there


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Returns the findings by severity, then by number of places."""
    return sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), -len(f.items)))


def set_aside(folder: Path, names: Iterable[str]) -> str:
    """Returns a command that adds .old to the names of files below a folder; `names` may have *."""
    code = (
        f"from pathlib import Path; [path.rename(f'{{path}}.old') for name in {[*names]!r} "
        f"for path in sorted(Path({str(folder)!r}).rglob(name))]"
    )
    return f"python3 -c {shlex.quote(code)}"


def to_png(
    folder: Path, pattern: str, change: str = "", opened: str = "Image.open(path)"
) -> str:  # fmt: skip
    """Returns a command that stores pictures below a folder as PNG, each in place of its file.

    The old files get the further suffix .old. `change` is what becomes of a Pillow image, such as
    ".convert('L')", and `opened` how `path` becomes one.
    """
    code = (
        "import numpy; " * ("numpy" in opened) + "from pathlib import Path; from PIL import Image; "
        f"[(picture := {opened}{change}, picture.load(), path.rename(f'{{path}}.old'), "
        f"picture.save(path.with_suffix('.png'))) for path in "
        f"sorted(Path({str(folder)!r}).glob({pattern!r}))]"
    )
    return f"python3 -c {shlex.quote(code)}"
