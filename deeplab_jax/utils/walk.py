"""Lists the files under a folder. Links are followed within the root, and nowhere else."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from deeplab_jax.errors import DataError

OnFault = Callable[[DataError], None]
Links = dict[str, str]  # {path of a link that leads out of the root: its text}


def list_files(
    folder: Path,
    root: Path,
    on_fault: OnFault,
    links: Links,
    is_wanted: Callable[[str], bool] = lambda folder: True,
) -> list[str]:
    """Returns all files under `folder`, as sorted relative paths, hidden ones left out.

    Args:
      folder: where to look; it may be a link itself.
      root: links may lead into it, and into `folder`.
      on_fault: receives the error of a link to a folder that it lies in.
      links: receives the links that lead elsewhere; they are not followed.
      is_wanted: tells from a folder's path below `folder` whether to look into it.

    Raises:
      DataError: a folder or link cannot be read.
    """

    def walk(folder: str, prefix: str, above: tuple[str, ...]) -> Iterator[str]:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                name, here = prefix + entry.name, ""
                is_folder = entry.is_dir()
                if is_folder and not is_wanted(name):
                    continue
                if is_folder or entry.is_symlink():
                    here = os.path.join(os.path.realpath(entry.path), "")
                    if not here.startswith(inside):
                        links[entry.path] = os.readlink(entry.path)
                        continue
                if not is_folder:
                    yield name
                elif any(path.startswith(here) for path in above):
                    what = "is a link to a folder it lies in"
                    on_fault(DataError(entry.path, what, "remove the link"))
                else:
                    yield from walk(entry.path, f"{name}/", (*above, here))

    try:
        inside = tuple(os.path.join(os.path.realpath(path), "") for path in (root, folder))
        return sorted(walk(str(folder), "", (inside[1],)))
    except OSError as error:
        fix = "check its permissions, or remove the link"
        where = str(error.filename or folder)
        raise DataError(where, f"cannot be read ({error.strerror})", fix) from error
