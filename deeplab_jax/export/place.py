"""Where an exported folder may be written; known before JAX loads and the checkpoint is read."""

import os
from pathlib import Path

from deeplab_jax.errors import ConfigError, ResourceError
from deeplab_jax.inference.exported import standalone
from deeplab_jax.utils.places import is_address


def check(output: str, force: bool) -> None:
    """Refuses an output that is neither a new or empty folder nor, with `force`, an export.

    Raises:
      ConfigError: `output` is an address, a file, or a folder that holds files. With `force` a
        folder that an export wrote, and that holds nothing else, is accepted.
      ResourceError: the folder above it is a file, or cannot be written into.
    """
    target = Path(output)
    if not target.name or is_address(output):
        what = f"must name a folder of this machine, got {output!r}"
        raise ConfigError("--output", what, "give a path")
    if target.is_file():
        raise ConfigError(output, "is a file", "choose another --output")
    _check_parent(target)
    if not target.is_dir() or not any(target.iterdir()):
        return
    fix = "choose another --output"
    if not (target / standalone.DESCRIPTION).is_file():
        raise ConfigError(output, "holds files that are no export's", fix)
    if not force:
        raise ConfigError(output, "holds an export already", f"{fix}, or replace it with --force")
    listed = {line.partition("  ")[2] for line in _lines(target / standalone.SUMS)}
    present = {p.relative_to(target).as_posix() for p in target.rglob("*") if not p.is_dir()}
    if foreign := sorted(present - listed - {standalone.SUMS}):
        what = f"holds {foreign[0]}, which the export there did not write"
        raise ConfigError(output, what, "move it away, or choose another --output")


def _check_parent(target: Path) -> None:
    """Refuses a folder beside which nothing can be written: the export is made there first."""
    parent = target.absolute().parent
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir():
        raise ResourceError(str(parent), "is a file, not a folder", "choose another --output")
    if not os.access(parent, os.W_OK | os.X_OK):
        what = f"cannot be written into, and {target.name} is made there"
        raise ResourceError(str(parent), what, "choose another --output, or change its mode")


def _lines(file: Path) -> list[str]:
    return file.read_text("utf-8", "replace").splitlines() if file.is_file() else []
