"""A directory of a run, which every host sees and can write to."""

import os
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import jax

from deeplab_jax.distributed import hosts
from deeplab_jax.errors import ConfigError, shorten
from deeplab_jax.utils.places import is_address

PATIENCE = 10.0  # seconds within which other hosts must see a new file


def check_shared(workdir: Path, folders: Sequence[Path] = ()) -> None:
    """Refuses a directory that not every host sees and can write to; leaves nothing there.

    Args:
      workdir: created for the test if it is missing.
      folders: below it; all hosts must be able to write to those that exist.

    Raises:
      ConfigError: hosts do not see it; names them.
      ResourceError: a host cannot write there.
    """
    if not hosts.are_multiple():
        return
    made: list[Path] = []
    token = workdir / f".seen-{hosts.all_gather(uuid.uuid4().hex)[0]}"
    try:
        with hosts.sync_errors():
            if hosts.is_primary():
                above = () if is_address(workdir) else (workdir, *workdir.parents)
                made = [path for path in above if not path.exists()]
                workdir.mkdir(parents=True, exist_ok=True)
                token.touch()
        seen = hosts.all_gather([hosts.name(), str(workdir.absolute()), _appears(token)])
        if all(is_seen for *_, is_seen in seen):
            with hosts.sync_errors():
                for folder in (workdir, *folders):
                    if folder.is_dir():
                        own = folder / f"{token.name}-{jax.process_index()}"
                        own.touch()
                        own.unlink()
    finally:
        if hosts.is_primary():
            token.unlink(missing_ok=True)
            with suppress(OSError):  # another run began there
                for folder in made:  # from the deepest up
                    folder.rmdir()
    if blind := [host for host, _, is_seen in seen if not is_seen]:
        what = f"what {seen[0][0]} writes here is not seen by {shorten(blind)}"
        if len(paths := dict.fromkeys(path for _, path, _ in seen)) > 1:
            what += f"; it is {' and '.join([*paths][:3])} there"
        fix = "use gs://BUCKET/NAME, or an absolute path that every host mounts, such as of NFS"
        raise ConfigError(str(workdir), what, fix)


def _appears(path: Path) -> bool:
    end = time.monotonic() + PATIENCE
    while not path.exists():
        if time.monotonic() > end:
            return False
        with suppress(OSError):
            os.listdir(path.parent)  # makes NFS look again
        time.sleep(0.1)
    return True
