"""`deeplab VERB ...` as a user types it, with its output kept in the stage's log."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evidence.record import Box, OutOfTime

_KEPT = 4000  # characters of an output that go into a result


class Done(NamedTuple):
    """What a command left: exit code, and the end of its output."""

    code: int
    text: str


def deeplab(box: Box, argv: Sequence[str], seconds: float, **env: str) -> Done:
    """Runs a command of the checkout to its end.

    Raises:
      OutOfTime: it took longer than `seconds`, and was ended.
    """
    command = [sys.executable, "-m", "deeplab_jax", *argv]
    print(f"$ deeplab {' '.join(argv)}", flush=True)
    with tempfile.TemporaryFile("w+") as output:
        try:
            got = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | env,
                timeout=max(seconds, 1),
            )
        except subprocess.TimeoutExpired as error:
            raise OutOfTime(argv[0]) from error
        finally:
            output.seek(0)
            text = output.read()
            print(text, flush=True)
    return Done(got.returncode, text.strip()[-_KEPT:])


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file, or None where it is missing or cut off."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
