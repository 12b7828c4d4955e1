"""The folder of a demo, and what a demo may remove there: what demos made, and nothing else."""

import fcntl
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from deeplab_jax.errors import ConfigError, shorten

PARTS = ("data", "run", "predictions")  # all that a demo makes
_STAMP = ".deeplab_demo"  # names those that were made


@contextmanager
def claimed(output: Path, parts: Sequence[str]) -> Iterator[None]:
    """Removes what earlier demos made of `parts` in `output`, and locks it while the block runs.

    Args:
      output: made if missing.
      parts: some of PARTS, which the block makes.

    Raises:
      ConfigError: `output` is a file or holds what no demo made, or another demo runs there.
    """
    stamp = output / _STAMP
    made = {part for part in PARTS if stamp.is_file() and part in stamp.read_text("utf-8").split()}
    if output.exists() and not output.is_dir():
        raise ConfigError(str(output), "is a file, not a folder", "name another --output")
    foreign = [
        path.name
        for path in (output.iterdir() if output.exists() else ())
        if path.name not in {_STAMP, *made} or path.is_symlink()
    ]
    if foreign:
        what = f"holds {shorten(foreign)}, which no demo made"
        raise ConfigError(str(output), what, "name another --output, or move that away")
    output.mkdir(parents=True, exist_ok=True)
    with stamp.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fix = "wait for its end, or name another --output"
            raise ConfigError(str(output), "another demo runs here", fix) from None
        except OSError:
            pass  # a file system without locks
        for part in made.intersection(parts):
            if (output / part).exists():
                shutil.rmtree(output / part)
        file.write("".join(f"{part}\n" for part in parts if part not in made))
        file.flush()
        yield
