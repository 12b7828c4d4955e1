"""The parts of a demo's folder; a demo removes there what demos and the verbs wrote, no other file.

A part that a demo made holds a stamp.
"""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from deeplab_jax.errors import ConfigError, check_folder, shorten
from deeplab_jax.utils.locks import try_lock

PARTS = ("data", "run", "predictions")  # all that a demo makes
_STAMP = ".deeplab_demo"
_WRITTEN = {  # paths in a part, as train, evaluate, report and predict write them
    "run": (
        r"(config|env|evaluation|label_counts)\.json|log\.jsonl|metrics\.csv|progress\.png|\.lock"
        r"|report\.html|bad_samples\.txt",
        r"checkpoints/\d[^/]*/.+",
    ),
    "predictions": (r"\d{4}(_[a-z]+)?\.\w+",),
}
_PARTIAL = r"(.+/)?\.[^/]+\.\d+\.tmp"  # left by a kill


@contextmanager
def claimed(output: Path, parts: Sequence[str]) -> Iterator[None]:
    """Empties `parts` of what earlier demos made, and locks `output` while the block runs.

    Args:
      output: made if missing.
      parts: some of PARTS, which the block fills.

    Raises:
      ConfigError: a part holds what no demo made, or another demo or a training runs here.
      ResourceError: `output` or a part is a file.
    """
    check_folder(output, "--output")
    output.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        _lock(stack, output, output, "another demo runs here")
        for part in parts:
            check_folder(output / part, "--output")
        foreign = [path for part in parts for path in _foreign(output / part)]
        if foreign:
            what = f"holds {shorten(foreign, 4)}, which no demo made"
            raise ConfigError(str(output), what, "name another --output, or move that away")
        lock = output / "run" / ".lock"
        if lock.is_file():  # a training may also read `data`
            _lock(stack, lock, lock.parent, "a training runs here")
        for part in parts:
            _empty(output / part)
        yield


def _lock(stack: ExitStack, path: Path, where: Path, what: str) -> None:
    """Locks a file or folder until the stack closes; ConfigError if another process has it."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    stack.callback(os.close, descriptor)
    if not try_lock(descriptor):
        raise ConfigError(str(where), what, "wait for its end, or name another --output")


def _foreign(part: Path) -> list[str]:
    """Returns the paths in a part that no demo made; its own name if that holds for all."""
    if part.is_symlink():
        return [part.name]
    found = []
    for root, folders, names in os.walk(part):
        links = [name for name in folders if Path(root, name).is_symlink()]
        found += [Path(root, name).relative_to(part).as_posix() for name in (*names, *links)]
    if found and _STAMP not in found:
        return [part.name]
    from deeplab_jax.demo.shapes import files

    own = {_STAMP, *(files() if part.name == "data" else ())}
    pattern = re.compile("|".join((_PARTIAL, *_WRITTEN.get(part.name, ()))))
    return [f"{part.name}/{path}" for path in sorted({*found} - own) if not pattern.fullmatch(path)]


def _empty(part: Path) -> None:
    """Removes all but the stamp, which is written first where it is missing."""
    part.mkdir(exist_ok=True)
    (part / _STAMP).touch()
    for path in part.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _STAMP:
            path.unlink()
